"""Commands that are configured by a file, by name. Imports nothing heavy, and each verb's settings only when asked."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from launch.settings.loading import Verb

VERBS = {
    "train": "launch.settings.loading:TRAIN",
    "sft": "launch.stages.config:SFT",
    "preference": "launch.stages.config:PREFERENCE",
    "dpo": "launch.stages.config:DPO",
    "data": "launch.data.config:DATA",
}


RUNNERS = {
    "train": "launch.train:run_training",
    "sft": "launch.stages.sft:run_sft",
    "preference": "launch.stages.preference:run_preference",
    "dpo": "launch.stages.dpo:run_dpo",
}


def verb_of(name: str) -> Verb[Any]:
    """The verb called `name`, a key of `VERBS`."""
    return _found(VERBS[name])


def runner_of(name: str) -> Callable[..., int]:
    """What runs the configuration of the verb called `name`, a key of `RUNNERS`; takes `resume`, returns the exit code.

    Imports what does the work.
    """
    return _found(RUNNERS[name])


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
