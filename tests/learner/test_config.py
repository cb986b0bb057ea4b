"""Settings of the learner that do not go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from learner.config import LearnerConfig, TrainerConfig
from learner.stages.config import DpoTrainerConfig, PreferenceConfig, SftTrainerConfig


def test_groups_of_ranks_that_split_sequences_hold_all_ranks() -> None:
    with pytest.raises(ValidationError, match="sequence_parallel 4 does not divide ranks 6; set ranks to a multiple"):
        TrainerConfig(ranks=6, sequence_parallel=4)
    with pytest.raises(ValidationError, match="sequence_parallel 2 does not divide ranks 1"):
        TrainerConfig(sequence_parallel=2)


def test_the_tokens_of_a_micro_batch_are_those_of_all_ranks_that_share_it() -> None:
    assert TrainerConfig(micro_batch_tokens=100).pass_tokens == 100
    assert TrainerConfig(micro_batch_tokens=100, ranks=6, sequence_parallel=3).pass_tokens == 300


@pytest.mark.parametrize("trainer", [LearnerConfig, DpoTrainerConfig])
def test_split_sequences_share_prompts(trainer: Any) -> None:
    with pytest.raises(ValidationError, match=r"sequence_parallel 2 splits rows without padding.*set share_prompts"):
        trainer(ranks=2, sequence_parallel=2, share_prompts=False)
    assert trainer(ranks=2, sequence_parallel=2).share_prompts


def test_fine_tuning_may_split_sequences_and_a_preference_model_may_not() -> None:
    split = {"ranks": 2, "sequence_parallel": 2}
    assert SftTrainerConfig(**split).pass_tokens == 2 * 8192
    settings = {"model": {"path": "/m"}, "data": {"source": "/d.jsonl"}, "learner": split}
    with pytest.raises(ValidationError, match=r"sequence_parallel 2 splits sequences, and a preference model reads"):
        PreferenceConfig.model_validate(settings)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_that_are_never_gathered_cannot_be_in_host_memory(stage):
    with pytest.raises(ValidationError, match=f"offload_weights with zero_stage {stage}: only stage 3 gathers weights"):
        TrainerConfig(offload_weights=True, zero_stage=stage, dtype="float32")
    TrainerConfig(offload_weights=True, zero_stage=3)
