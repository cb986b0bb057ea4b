"""Updates from log-probs that a reference actor recorded, beside updates of a learner that holds the reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.errors import UsageError
from actors.generation.config import OpponentConfig
from actors.records import Completion, Game, Pair
from learner.config import LearnerConfig
from learner.losses.config import CorrectionConfig, PairLossConfig
from learner.reference.config import ReferenceConfig, ReferenceSpec
from learner.reference.worker import ReferenceWorker
from learner.tensors.batching import rollout
from tests.learner.backend.ranks import (
    CONFIG,
    OPTIMIZER,
    TEMPERATURE,
    VOCABULARY,
    full_state,
    make_model,
    random_pairs,
    spec_of,
)
from tests.learner.losses.games import conversed, loss_of, random_games

NONE = CorrectionConfig(opponents="none")
DRAWN, SPLIT = (3, 2), (4, 0)
PAIRS = {kind: PairLossConfig(kind=kind, beta=0.5) for kind in ("dpo", "ipo", "slic")}
GAMES: dict[str, tuple[Any, tuple[int, int]]] = {
    "rloo": (loss_of("rloo"), DRAWN),
    "nash_pg uncorrected": (loss_of("nash_pg", NONE), SPLIT),
    "nash_pg self": (loss_of("nash_pg", opponent=OpponentConfig(kind="self")), SPLIT),
    "nash_pg reference": (loss_of("nash_pg", opponent=OpponentConfig(kind="reference")), DRAWN),
    "nash_pg average": (loss_of("nash_pg", opponent=OpponentConfig(kind="ema")), DRAWN),
    "online_ipo": (loss_of("online_ipo", NONE), DRAWN),
    "ipo_md": (loss_of("ipo_md", opponent=OpponentConfig(kind="reference")), DRAWN),
    "ipo_md renormalised": (
        loss_of("ipo_md", CorrectionConfig(renormalise=True), opponent=OpponentConfig(kind="reference")), DRAWN,
    ),
}  # fmt: skip
OTHER_STAGES = ((0, True), (0, False), (1, False), (2, True), (2, False), (3, True))
"""Variants: the stage of ZeRO, and whether prompts are shared."""
Update = Callable[..., tuple[list[Any], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded")
    make_model(path / "policy")
    make_model(path / "reference", initializer_range=0.25)
    return path


@pytest.fixture(scope="module")
def update(directory: Path) -> Iterator[Update]:
    """Two updates on two batches by an engine with these settings: what it reports, and its weights after them."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    from learner.training.engine import TrainEngine

    def updated(batches: Sequence[Any], *, held: bool, mu: str = "reference", **settings: Any) -> Any:
        # With Adam's usual epsilon rounding decides where a weight goes whose gradient is next to nothing.
        optimizer = OPTIMIZER.model_copy(update={"eps": 1e-4})
        config = LearnerConfig.model_validate(CONFIG.model_dump() | {"optimizer": optimizer} | settings)
        places = {"reference_dir": str(directory / mu), "with_reference": held}
        engine = TrainEngine(spec_of(directory / "policy", config, **places))
        assert (engine.policies.reference is not None) == held
        try:
            return [engine.update(items) for items in batches], full_state(engine)
        finally:
            engine.policy.destroy()

    yield updated
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def scored(directory: Path, items: Sequence[Any], *, share_prompts: bool = True, mu: str = "reference") -> list[Any]:
    """`items` whose completions bring the log-probs of a reference actor."""
    spec = ReferenceSpec(
        config=ReferenceConfig(count=1),
        model_dir=str(directory / mu),
        dtype="float32",
        logprob_chunk=CONFIG.logprob_chunk,
        temperature=TEMPERATURE,
        share_prompts=share_prompts,
    )
    worker = ReferenceWorker(spec)

    def score(item: Pair | Game, completions: tuple[Completion, ...]) -> tuple[Completion, ...]:
        rows = worker.score([rollout(item.prompt_token_ids, each) for each in completions]) if completions else ()
        return tuple(replace(each, reference_logprobs=row) for each, row in zip(completions, rows, strict=True))

    def with_logprobs(item: Pair | Game) -> Pair | Game:
        if isinstance(item, Pair):
            chosen, rejected = score(item, item.completions)
            return replace(item, chosen=chosen, rejected=rejected)
        return replace(item, players=score(item, item.players), opponents=score(item, item.opponents))

    return [with_logprobs(item) for item in items]


def assert_alike(update: Update, directory: Path, batches: Sequence[Any], **settings: Any) -> None:
    share = settings.get("share_prompts", True)
    places = {"mu": settings.get("mu", "reference"), "share_prompts": share}
    recorded = [scored(directory, items, **places) for items in batches]
    held, held_weights = update(batches, held=True, **settings)
    given, given_weights = update(recorded, held=False, **settings)
    for ours, theirs in zip(given, held, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert ours.kl_players == pytest.approx(theirs.kl_players, abs=1e-5)
        assert ours.kl_chosen == pytest.approx(theirs.kl_chosen, abs=1e-5)
        assert ours.opponent_ess == pytest.approx(theirs.opponent_ess, abs=1e-5)
        assert ours.tokens == theirs.tokens
    assert given_weights.keys() == held_weights.keys()
    for name, tensor in given_weights.items():
        assert torch.allclose(tensor, held_weights[name], atol=2e-5), name


@pytest.mark.parametrize("kind", PAIRS)
def test_a_loss_on_pairs_reaches_the_weights_of_a_learner_with_a_reference(
    update: Update, directory: Path, kind: str
) -> None:
    assert_alike(update, directory, [random_pairs(seed) for seed in (0, 1)], loss=PAIRS[kind].model_dump())


@pytest.mark.parametrize("case", GAMES)
def test_a_loss_on_games_reaches_the_weights_of_a_learner_with_a_reference(
    update: Update, directory: Path, case: str
) -> None:
    """With an environment's tokens in the completions, which have no log-probs."""
    loss, shape = GAMES[case]
    games = [conversed(random_games(seed, 3, *shape, vocabulary=VOCABULARY), seed) for seed in (2, 3)]
    assert_alike(update, directory, games, loss=loss.model_dump())


def test_the_base_of_adapters_is_the_reference_of_the_actors_too(update: Update, directory: Path) -> None:
    """The learner computes it with its adapters off."""
    batches = [random_pairs(seed) for seed in (0, 1)]
    assert_alike(update, directory, batches, loss=PAIRS["dpo"].model_dump(), lora={"rank": 4}, mu="policy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "share_prompts"),
    [(1, True), (3, False), *(pytest.param(*each, marks=pytest.mark.long) for each in OTHER_STAGES)],
)
def test_recorded_log_probs_serve_every_zero_stage(
    update: Update, directory: Path, stage: int, share_prompts: bool
) -> None:
    games = [random_games(seed, 3, *DRAWN, vocabulary=VOCABULARY) for seed in (2, 3)]
    loss = GAMES["nash_pg reference"][0].model_dump()
    assert_alike(update, directory, games, loss=loss, zero_stage=stage, share_prompts=share_prompts)
    pairs = [random_pairs(seed) for seed in (0, 1)]
    assert_alike(update, directory, pairs, zero_stage=stage, share_prompts=share_prompts)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [3, pytest.param(1, marks=pytest.mark.long)])
def test_an_offloaded_reference_changes_no_bit(update: Update, directory: Path, stage: int) -> None:
    """On CPU, where host memory is the device's own: what is tested is that DeepSpeed and the hooks take it."""
    mixture = loss_of("nash_pg", opponent=OpponentConfig(beta=0.25)).model_dump()
    games = [random_games(seed, 3, *SPLIT, vocabulary=VOCABULARY) for seed in (2, 3)]
    for loss, batches in ((mixture, games), (PAIRS["dpo"].model_dump(), [random_pairs(0), random_pairs(1)])):
        (plain, weights), (offloaded, same) = (
            update(batches, held=True, loss=loss, zero_stage=stage, offload_reference=offload)
            for offload in (False, True)
        )
        assert [(each.loss, each.grad_norm) for each in offloaded] == [(each.loss, each.grad_norm) for each in plain]
        assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())


def test_a_completion_that_nobody_scored_is_refused_by_a_learner_without_a_reference(
    update: Update, directory: Path
) -> None:
    first, *rest = scored(directory, random_pairs(0))
    bare = replace(first, rejected=replace(first.rejected, reference_logprobs=()))
    tokens = len(first.rejected.token_ids)
    with pytest.raises(UsageError) as told:
        update([[*rest, bare]], held=False)
    assert str(told.value) == (
        f"a completion of lease 0 has 0 reference log-probs for {tokens} tokens, and with reference.count above 0 the "
        "learner holds no reference; set reference.count to 0"
    )


def test_without_a_reference_the_learner_scores_the_policy_alone(directory: Path, update: Update) -> None:
    from learner.training.engine import TrainEngine

    engine = TrainEngine(spec_of(directory / "policy", CONFIG, with_reference=False))
    ((own, reference),) = engine.policies.score([((1, 2), (3, 4, 5))])
    assert (len(own), reference) == (3, [])
    engine.policy.destroy()
