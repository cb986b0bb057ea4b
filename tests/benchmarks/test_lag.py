"""The lag benchmark computes only the prefixes that a batch reaches, and gets what the whole tree gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.world import FIRST_SYMBOL, PROMPTS
from benchmarks.lag import ROWS, Reached, _add, _prefixes, _with_anchor
from learner.world import exact
from learner.world.policy import TINY, train_sft


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    directory: Path = tmp_path_factory.mktemp("policy") / "tiny"
    train_sft(directory, updates=2, seed=0, size=TINY)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def test_log_probs_at_reached_prefixes_are_those_of_the_whole_tree(model: torch.nn.Module) -> None:
    """Prompts reach unlike numbers of prefixes, one of them the empty one alone."""
    rng = np.random.default_rng(0)
    rows = np.array([0, 1, 1, 5, PROMPTS - 1])
    nodes = rng.integers(0, exact.PREFIXES, size=(len(rows), 3))
    nodes[0] = 0
    with torch.no_grad():
        found = Reached(rows, nodes).logprobs(model)(rows, nodes).numpy()
    expected = exact.exact_policy(model).token_logprobs[rows[:, None], nodes]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_other_weights_take_the_place_of_the_models_own(model: torch.nn.Module) -> None:
    rows, nodes = np.array([3]), np.array([[0, 7, 200]])
    other = {name: 1.1 * value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        own = Reached(rows, nodes).logprobs(model)(rows, nodes)
        given = Reached(rows, nodes).logprobs(model, other)(rows, nodes)
    assert float((own - given).abs().max()) > 1e-3


def test_prefixes_number_what_stands_before_each_token() -> None:
    """Symbols 0 and 2, then a token that is no symbol: prefixes (), (0), (0, 2), and nothing is read after."""
    tokens = np.array([[FIRST_SYMBOL, FIRST_SYMBOL + 2, 1, FIRST_SYMBOL]])
    assert _prefixes(tokens).tolist() == [[0, 1, 1 * 6 + 1 + 2, 0]]


def test_an_anchor_is_replaced_part_by_part_and_only_in_rows_that_have_one() -> None:
    assert ROWS["dpo-lag-64-anchor"].anchor == (0.8, 128)
    assert _with_anchor(ROWS["dpo-lag-64-anchor"], 0.2, None).anchor == (0.2, 128)
    assert _with_anchor(ROWS["dpo-lag-64-anchor"], None, 512).anchor == (0.8, 512)
    assert _with_anchor(ROWS["dpo-lag-64"], 0.2, 512).anchor is None


def test_a_run_takes_the_place_of_one_with_the_same_anchor_alone(tmp_path: Path) -> None:
    """Older runs hold no weight and horizon, and had the row's."""
    path = tmp_path / "lag.json"
    row = {"row": "dpo-lag-64-anchor", "seed": 0}
    for entry in (
        {**row, "seconds": 1.0},
        {**row, "weight": 0.2, "horizon": 128, "seconds": 2.0},
        {**row, "weight": 0.8, "horizon": 128, "seconds": 3.0},
        {**row, "seed": 1, "weight": 0.8, "horizon": 128, "seconds": 4.0},
    ):
        _add(path, entry, ("seed",))
    assert [run["seconds"] for run in json.loads(path.read_text())["runs"]] == [2.0, 3.0, 4.0]
