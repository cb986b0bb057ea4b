"""Whole configurations of the stages before the loop. Imports nothing heavy."""

from typing import Literal

from pydantic import Field

from launch.settings.run import NAME, BandConfig, TrainingConfig
from learner.stages.config import DpoConfig, PreferenceConfig, SftConfig, StageConfig


class StageDivergenceConfig(BandConfig):
    """Reaction of a stage to figures outside a band. It never goes back: it would make the same updates again."""

    action: Literal["warn", "stop"] = Field(
        default="warn", description="warn: a message; stop: save a checkpoint, then fail"
    )


class StageRunConfig(StageConfig, TrainingConfig):
    """One run of a stage."""

    divergence: StageDivergenceConfig = Field(default_factory=StageDivergenceConfig)


class SftRunConfig(SftConfig, StageRunConfig):
    """One run of supervised fine-tuning."""

    name: str = Field(default="sft", pattern=NAME, description="names the output directory runs/NAME")


class DpoRunConfig(DpoConfig, StageRunConfig):
    """One run of offline preference learning."""

    name: str = Field(default="dpo", pattern=NAME, description="names the output directory runs/NAME")


class PreferenceRunConfig(PreferenceConfig, StageRunConfig):
    """One run of training a preference model."""

    name: str = Field(default="preference", pattern=NAME, description="names the output directory runs/NAME")
