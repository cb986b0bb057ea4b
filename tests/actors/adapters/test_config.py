"""Settings of LoRA, and which of them fit together."""

import pytest
from pydantic import ValidationError

from actors.adapters.config import LoraConfig, MergedLoraConfig
from learner.config import LearnerConfig
from learner.stages.config import PreferenceTrainerConfig


def test_adapters_without_layers_are_refused():
    with pytest.raises(ValidationError, match="targets is empty, so nothing would be trained"):
        LoraConfig(targets=[])


def test_a_preference_model_is_saved_whole():
    assert PreferenceTrainerConfig(lora={"rank": 4}).lora == MergedLoraConfig(rank=4)
    with pytest.raises(ValidationError, match=r"lora\.save"):
        PreferenceTrainerConfig(lora={"save": "adapter"})


def test_an_average_of_past_policies_is_published_whole():
    loss = {"kind": "nash_pg", "opponent": {"kind": "ema"}}
    with pytest.raises(ValidationError, match=r"average of adapted weights is no adapter; set lora\.publish to merged"):
        LearnerConfig(loss=loss, lora={})
    LearnerConfig(loss=loss, lora={"publish": "merged"})
