"""Which losses can do without a reference at the learner."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from actors.generation.config import OpponentConfig
from learner.config import LearnerConfig
from learner.losses.config import CorrectionConfig, GameLossConfig, PairLossConfig, RewardLossConfig
from learner.reference.config import ReferenceConfig, reference_problem

ACTORS = ReferenceConfig(count=2)


def problem(loss: object, reference: ReferenceConfig = ACTORS, **settings: object) -> str | None:
    return reference_problem(reference, LearnerConfig(loss=loss, **settings), own_model=False)


def game(kind: str, opponent: str, beta: float = 0.25, *, weights: str = "sequence") -> GameLossConfig:
    return GameLossConfig(
        kind=kind, opponent=OpponentConfig(kind=opponent, beta=beta), correction=CorrectionConfig(opponents=weights)
    )


@pytest.mark.parametrize(
    "loss",
    [
        *(PairLossConfig(kind=kind) for kind in ("dpo", "ipo", "slic")),
        RewardLossConfig(),
        *(game(kind, "weighted", weights="none") for kind in ("nash_pg", "online_ipo", "ipo_md")),
        *(game("nash_pg", opponent) for opponent in ("self", "reference", "ema")),
        *(game("nash_pg", "mixture", beta) for beta in (0.0, 1.0)),
    ],
)
def test_losses_that_read_sampled_tokens_alone_take_recorded_log_probs(loss: object) -> None:
    assert problem(loss) is None


@pytest.mark.parametrize("opponent", ["weighted", "mixture"])
def test_weights_of_the_exact_mixture_need_the_reference_s_whole_distribution_at_the_learner(opponent: str) -> None:
    told = problem(game("nash_pg", opponent))
    assert told == (
        "reference.count 2 records the reference's log-probs of sampled tokens alone, and the importance weights of "
        f"learner.loss.opponent.kind {opponent} with beta 0.25 need its whole distribution in every update; set "
        "reference.count to 0, learner.loss.correction.opponents to none, or beta to 0 or 1"
    )
    assert problem(game("nash_pg", opponent), ReferenceConfig()) is None


def test_a_reference_that_the_learner_does_not_hold_cannot_be_offloaded() -> None:
    told = problem(PairLossConfig(), offload_reference=True)
    assert told is not None
    assert told.startswith("learner.offload_reference has no effect with reference.count 2")
    assert problem(PairLossConfig(), ReferenceConfig(), offload_reference=True) is None


def test_the_base_of_adapters_is_no_reference_that_could_be_offloaded() -> None:
    learner = LearnerConfig.model_validate({"lora": {"rank": 4}, "offload_reference": True})
    told = reference_problem(ReferenceConfig(), learner, own_model=False)
    assert told is not None
    assert told.startswith("learner.offload_reference has no effect with learner.lora")
    assert reference_problem(ReferenceConfig(), learner, own_model=True) is None


def test_threads_are_set_by_their_own_setting() -> None:
    with pytest.raises(ValidationError, match=r"it follows reference\.cpus; set that"):
        ReferenceConfig(environment={"OMP_NUM_THREADS": "4"})
