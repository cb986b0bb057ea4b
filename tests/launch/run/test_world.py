"""Evaluation by enumeration: figures of a policy written by hand, and of what the last tenth of a run adds up to."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors import world
from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.records import Canary
from actors.settings import STARTS
from actors.world import EOS, FIRST_SYMBOL, INVALID, NOEOS, PROMPTS, SYMBOLS, World
from launch.run.protocols import Publication
from launch.run.world import EmbeddedWorld, ExactEvaluation, ExactFigures
from launch.settings.loading import load_config
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from learner.world.exact import exact_policy
from learner.world.policy import TINY, build_policy

TOKENS = len(world.VOCABULARY)


@pytest.fixture(scope="module")
def uniform_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose logits are all 0."""
    directory = tmp_path_factory.mktemp("uniform")
    model = build_policy(TINY)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # tied to the output's
    model.save_pretrained(directory)
    return directory


def _single_symbols() -> tuple[list[int], np.ndarray]:
    """A policy that always says one symbol: of the corpus's favourite family, and not the wanted one."""
    table = np.full((PROMPTS, NOEOS, TOKENS), -np.inf)
    symbols = []
    for index in range(PROMPTS):
        family = int(world.family_cycle()[index, 0])
        wanted = world.wanted_symbol(*divmod(index, 4))
        symbol = next(each for each in (2 * family, 2 * family + 1) if each != wanted)
        table[index, :, EOS] = 0.0
        table[index, 0, EOS] = -np.inf
        table[index, 0, FIRST_SYMBOL + symbol] = 0.0
        symbols.append(symbol)
    return symbols, table


def _uniform_outcomes() -> np.ndarray:
    """Probability of each outcome where each of the 18 tokens is as likely as any other."""
    probs = [TOKENS ** -(len(response) + 1.0) for response in world.RESPONSES]
    symbol = SYMBOLS / TOKENS
    forbidden = (TOKENS - 1 - SYMBOLS) / TOKENS
    return np.array([*probs, symbol**4, sum(symbol**length * forbidden for length in range(4))])


def test_the_figures_of_a_policy_written_by_hand(uniform_dir: Path) -> None:
    """It says one symbol and ends: two tokens that the reference gives 1/18 each. The best answer is of the family that
    beats it and holds the wanted symbol, which it does not: it wins with sigmoid(2 + 1.5)."""
    symbols, table = _single_symbols()
    evaluation = ExactEvaluation("intransitive", 0, uniform_dir)
    figures = evaluation.measure(7, table)
    assert figures.update == 7
    assert figures.exact_kl == pytest.approx(2 * math.log(18), abs=1e-5)
    assert figures.exploitability == pytest.approx(1 / (1 + math.exp(-3.5)) - 0.5)
    assert figures.family_shares == pytest.approx((1.0, 0.0, 0.0))
    game, outcomes = World("intransitive"), _uniform_outcomes()
    assert outcomes.sum() == pytest.approx(1.0)
    wins = [game.preference_matrix(index)[1 + symbol] @ outcomes for index, symbol in enumerate(symbols)]
    assert figures.preference == pytest.approx(np.mean(wins), abs=1e-6)
    assert evaluation.history == []  # figures of a policy aside leave no trace


def test_metrics_name_each_figure_and_no_family_where_the_task_has_none(uniform_dir: Path) -> None:
    _, table = _single_symbols()
    intransitive = ExactEvaluation("intransitive", 0, uniform_dir).measure(1, table)
    assert intransitive.metrics() == {
        "exploitability": intransitive.exploitability,
        "exact_kl": intransitive.exact_kl,
        "exact_preference": intransitive.preference,
        "family_0": pytest.approx(1.0),
        "family_1": 0.0,
        "family_2": 0.0,
    }
    transitive = ExactEvaluation("transitive", 0, uniform_dir).measure(1, table)
    assert transitive.family_shares is None
    assert set(transitive.metrics()) == {"exploitability", "exact_kl", "exact_preference"}


def test_the_game_is_that_of_the_task(uniform_dir: Path) -> None:
    """Transitive: the most that any answer wins by against one of reward r is sigmoid(max r* - r)."""
    symbols, table = _single_symbols()
    figures = ExactEvaluation("transitive", 0, uniform_dir).measure(1, table)
    gains = []
    for (p, q), symbol in zip(itertools.product(range(4), range(4)), symbols, strict=True):
        best = max(world.reward(p, q, response) for response in world.RESPONSES)
        gains.append(1 / (1 + math.exp(world.reward(p, q, (symbol,)) - best)) - 0.5)
    assert figures.exploitability == pytest.approx(np.mean(gains))


def test_the_reference_is_taken_at_the_sampling_temperature(tmp_path: Path) -> None:
    """A policy that has not moved is its own reference at the temperature it samples at, and at no other."""
    torch.manual_seed(0)
    model = build_policy(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    table = exact_policy(loaded, 2.0).token_logprobs
    same = ExactEvaluation("intransitive", 0, tmp_path, temperature=2.0).measure(0, table)
    assert same.exact_kl == pytest.approx(0.0, abs=1e-9)
    assert same.preference == pytest.approx(0.5, abs=1e-9)
    assert ExactEvaluation("intransitive", 0, tmp_path).measure(0, table).exact_kl > 0.01


def _at(update: int, exploitability: float) -> ExactFigures:
    return ExactFigures(update, exploitability, 0.0, 0.5, None)


def test_the_tail_is_the_mean_over_the_last_tenth_of_the_updates() -> None:
    """Of 100 updates those after the 90th."""
    evaluation = ExactEvaluation("intransitive", 0, Path("unused"))
    evaluation.history += [_at(80, 0.4), _at(90, 0.3), _at(95, 0.2), _at(100, 0.1)]
    assert evaluation.tail(100) == pytest.approx(0.15)


def test_nothing_measured_in_the_last_tenth_has_no_mean() -> None:
    evaluation = ExactEvaluation("intransitive", 0, Path("unused"))
    assert evaluation.tail(100) is None
    evaluation.history.append(_at(90, 0.3))
    assert evaluation.tail(100) is None


def test_an_invalid_answer_is_one_of_the_outcomes(uniform_dir: Path) -> None:
    """A policy that always says a colour: no family, and the reference is preferred."""
    table = np.full((PROMPTS, NOEOS, TOKENS), -np.inf)
    table[..., world.FIRST_COLOUR] = 0.0
    figures = ExactEvaluation("intransitive", 0, uniform_dir).measure(1, table)
    assert figures.family_shares == (0.0, 0.0, 0.0)
    assert figures.exact_kl == pytest.approx(math.log(18), abs=1e-5)
    expected = np.mean([World("intransitive").preference_matrix(x)[INVALID] @ _uniform_outcomes() for x in range(16)])
    assert figures.preference == pytest.approx(expected, abs=1e-6)


def test_the_policy_of_a_publication_is_measured_at_the_sampling_temperature(tmp_path: Path) -> None:
    """What is measured are the published weights, whatever the directory holds by then."""
    torch.manual_seed(0)
    reference, policy = build_policy(TINY), build_policy(TINY)
    reference.save_pretrained(tmp_path)
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    tensors = {name: each.detach() for name, each in policy.named_parameters()}
    publication = Publication(publisher.publish(3, tensors, Canary((0, 1), (0.0,))))
    observed = ExactEvaluation("intransitive", 0, tmp_path, temperature=0.7)
    by_hand = ExactEvaluation("intransitive", 0, tmp_path, temperature=0.7)
    figures = by_hand.measure(3, exact_policy(policy.eval(), 0.7).token_logprobs.astype("float32"))
    assert asyncio.run(observed.observe(3, publication)) == figures.metrics()
    assert observed.history[0].exact_kl > 0.01
    publisher.close()


def test_published_adapters_are_measured_on_their_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_policy(TINY).save_pretrained(tmp_path / "base")
    build_policy(TINY).save_pretrained(tmp_path / "reference")
    lora = LoraConfig(rank=3)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    peft_form.adapt(policy, lora)
    tensors = {name: each.detach().normal_(std=0.3) for name, each in peft_form.tensors(policy).items()}
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    publication = Publication(publisher.publish(3, tensors, Canary((0, 1), (0.0,))))
    observed = ExactEvaluation("intransitive", 0, tmp_path / "reference", adapted=(tmp_path / "base", lora))
    by_hand = ExactEvaluation("intransitive", 0, tmp_path / "reference")
    figures = by_hand.measure(3, exact_policy(policy, 1.0).token_logprobs.astype("float32"))
    assert asyncio.run(observed.observe(3, publication)) == figures.metrics()
    publisher.close()


@pytest.mark.parametrize(
    ("every", "per_publish", "due"),
    [(4, 1, [4, 8, 12]), (5, 1, [5, 10, 12]), (4, 3, [6, 9, 12]), (100, 1, [12])],
)
def test_it_is_due_at_the_first_publication_after_every_so_many_updates_and_at_the_end(
    every: int, per_publish: int, due: list[int]
) -> None:
    evaluation = ExactEvaluation(
        "intransitive", 0, Path("unused"), every=every, updates=12, updates_per_publish=per_publish
    )
    published = range(per_publish, 13, per_publish)
    assert [update for update in published if evaluation.due(update)] == due


def test_runs_of_a_sweep_start_from_one_policy_that_the_first_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTS, str(tmp_path / "starts"))
    trained: list[Path] = []

    def train(function: object, directory: Path, **settings: object) -> None:
        time.sleep(0.2)  # long enough for the others to come meanwhile
        directory.mkdir(exist_ok=True)
        (directory / "model").write_text(f"{settings['seed']}")
        trained.append(directory)

    def start(run: tuple[str, str]) -> str:
        name, seed = run
        config = load_config("embedded", [f"world.seed={seed}"])
        return EmbeddedWorld().starting_policy(config, tmp_path / name, lambda text: None, train)

    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(start, [("a", "0"), ("b", "0"), ("c", "1"), ("d", "0")]))
    assert begun == [str(tmp_path / name) for name in "abcd"]
    assert [(tmp_path / name / "model").read_text() for name in "abcd"] == ["0", "0", "1", "0"]
    assert len(trained) == 2
    assert all(directory.parent == tmp_path / "starts" for directory in trained)
    start(("a", "0"))
    assert trained[2:] == [tmp_path / "a"], "a run that goes on has its own"
