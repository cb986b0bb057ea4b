"""Commands that are configured by a file, by name. Imports nothing heavy, and each verb's settings only when asked."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from launch.loading import Verb

VERBS = {
    "train": "launch.loading:TRAIN",
    "sft": "launch.stage_config:SFT",
    "preference": "launch.stage_config:PREFERENCE",
    "dpo": "launch.stage_config:DPO",
    "data": "launch.data_config:DATA",
}


def verb_of(name: str) -> Verb[Any]:
    """The verb called `name`, a key of `VERBS`."""
    module, _, constant = VERBS[name].partition(":")
    return getattr(import_module(module), constant)
