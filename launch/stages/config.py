"""Whole configurations of the stages before the loop, and where their presets are. Imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from launch.settings.loading import PRESETS, Verb
from launch.settings.run import NAME, TrainingConfig
from learner.stages.config import DpoConfig, PreferenceConfig, SftConfig, StageConfig


class StageRunConfig(StageConfig, TrainingConfig):
    """One run of a stage."""


class SftRunConfig(SftConfig, StageRunConfig):
    """One run of supervised fine-tuning."""

    name: str = Field(default="sft", pattern=NAME, description="names the output directory runs/NAME")


SFT = Verb("sft", SftRunConfig, PRESETS / "sft", "training.epochs=2")


class DpoRunConfig(DpoConfig, StageRunConfig):
    """One run of offline preference learning."""

    name: str = Field(default="dpo", pattern=NAME, description="names the output directory runs/NAME")


DPO = Verb("dpo", DpoRunConfig, PRESETS / "dpo", "learner.loss.beta=0.05")


class PreferenceRunConfig(PreferenceConfig, StageRunConfig):
    """One run of training a preference model."""

    name: str = Field(default="preference", pattern=NAME, description="names the output directory runs/NAME")


PREFERENCE = Verb("preference", PreferenceRunConfig, PRESETS / "preference", "preference.kind=skew")
