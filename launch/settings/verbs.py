"""The verbs that a file configures: settings, presets and entry point of each. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line. Places are `module:name`, imported only if asked for."""

    name: str
    model_place: str
    """The configuration model."""
    presets: Path
    """Directory of .yaml files; need not exist."""
    example: str
    """An override that the model accepts, for error messages."""
    run_place: str = ""
    """The function that runs a configuration and returns the exit code."""

    @property
    def model(self) -> Any:
        """The configuration model."""
        return _imported(self.model_place)

    @property
    def run(self) -> Callable[..., int]:
        """The function that runs a configuration; importing it imports Ray, torch and the like."""
        return _imported(self.run_place)


TRAIN = Verb("train", "launch.settings.run:RunConfig", PRESETS, "replay.max_staleness=2", "launch.train:run_training")
VERBS = {
    verb.name: verb
    for verb in (
        TRAIN,
        Verb(
            "sft",
            "launch.stages.config:SftRunConfig",
            PRESETS / "sft",
            "training.epochs=2",
            "launch.stages.driver:run_sft",
        ),
        Verb(
            "preference",
            "launch.stages.config:PreferenceRunConfig",
            PRESETS / "preference",
            "preference.kind=skew",
            "launch.stages.preference:run_preference",
        ),
        Verb(
            "dpo",
            "launch.stages.config:DpoRunConfig",
            PRESETS / "dpo",
            "learner.loss.beta=0.05",
            "launch.stages.dpo:run_dpo",
        ),
        Verb(
            "data",
            "launch.data.config:DataConfig",
            PRESETS / "data",
            "validation_fraction=0.1",
            "launch.data.prepare:run_data",
        ),
    )
}


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
