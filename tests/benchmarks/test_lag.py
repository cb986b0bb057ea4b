"""The lag benchmark computes only the prefixes that a batch reaches, and gets what the whole tree gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.world import FIRST_SYMBOL, PROMPTS
from benchmarks.lag import Reached, _prefixes
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
