"""How `learner.deepspeed` reaches DeepSpeed, and what is said where DeepSpeed refuses it."""

from __future__ import annotations

from typing import Any

import pytest

from actors.errors import UsageError
from learner.backend.deepspeed_config import deepspeed_config, naming_the_section, reference_config
from learner.config import TrainerConfig

MILLION = 1_000_000


def config_with(**deepspeed: Any) -> TrainerConfig:
    return TrainerConfig(dtype="float32", zero_stage=3, offload_optimizer=True, deepspeed=deepspeed)


def test_the_section_is_merged_at_any_depth_and_nothing_else_changes() -> None:
    own = deepspeed_config(config_with(), MILLION)
    given = deepspeed_config(
        config_with(
            zero_optimization={
                "reduce_bucket_size": 1000,
                "overlap_comm": True,
                "offload_optimizer": {"pin_memory": False},
            },
            comms_logger={"enabled": True},
        ),
        MILLION,
    )
    assert given.pop("comms_logger") == {"enabled": True}
    zero = given["zero_optimization"]
    assert zero.pop("overlap_comm") is True
    assert zero.pop("reduce_bucket_size") == 1000
    assert zero.pop("offload_optimizer") == {"device": "cpu", "pin_memory": False}
    assert own["zero_optimization"].pop("reduce_bucket_size") == MILLION
    assert own["zero_optimization"].pop("offload_optimizer") == {"device": "cpu"}
    assert given == own


def test_the_reference_is_sharded_by_the_same_section_and_never_offloaded() -> None:
    zero = {"stage3_max_live_parameters": 5, "offload_param": {"device": "cpu"}}
    reference = reference_config(config_with(zero_optimization=zero), MILLION)["zero_optimization"]
    assert reference["stage3_max_live_parameters"] == 5
    assert not [key for key in reference if "offload" in key]


def test_what_deepspeed_refuses_names_the_section_and_only_if_it_is_set() -> None:
    given = config_with(zero_optimization={"overlap_comm": "perhaps"}, log_level="no")
    said = (
        r"learner\.deepspeed \(zero_optimization\.overlap_comm='perhaps', log_level='no'\): not a boolean; correct the "
        "key that it names"
    )
    with pytest.raises(UsageError, match=said), naming_the_section(given):
        raise ValueError("not a boolean")
    with pytest.raises(ValueError, match=r"^not a boolean$"), naming_the_section(config_with()):
        raise ValueError("not a boolean")
