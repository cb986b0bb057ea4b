"""The verbs that a file configures: settings, entry point and presets of each. Imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Verb:
    """A verb of the command line. Model and entry point are `module:name`, imported only if asked for."""

    name: str
    model_place: str
    run_place: str
    example: str
    """An override that the model accepts, for error messages."""
    presets: Path = PRESETS  # directory of .yaml files; need not exist

    @property
    def model(self) -> Any:
        """The configuration model."""
        return _imported(self.model_place)

    @property
    def run(self) -> Callable[..., int]:
        """The function that runs a configuration and returns the exit code."""
        return _imported(self.run_place)


def _stage(name: str, model: str, run: str, example: str) -> Verb:
    return Verb(name, f"launch.stages.config:{model}", f"launch.stages.{run}", example, PRESETS / name)


TRAIN = Verb("train", "launch.settings.run:RunConfig", "launch.train:run_training", "replay.max_staleness=2")
SFT = _stage("sft", "SftRunConfig", "sft:run_sft", "training.epochs=2")
PREFERENCE = _stage("preference", "PreferenceRunConfig", "preference:run_preference", "preference.kind=skew")
DPO = _stage("dpo", "DpoRunConfig", "dpo:run_dpo", "learner.loss.beta=0.05")
SWEEP = Verb(
    "sweep",
    "launch.sweep.config:SweepConfig",
    "launch.sweep.sweep:run_sweep",
    "seeds=[0,1]",
    Path(__file__).parent.parent / "sweep" / "presets",
)
DATA = Verb(
    "data", "launch.data.config:DataConfig", "launch.data.prepare:run_data", "validation_fraction=0.1", PRESETS / "data"
)
VERBS = {verb.name: verb for verb in (TRAIN, SFT, PREFERENCE, DPO, DATA, SWEEP)}


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
