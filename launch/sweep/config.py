"""Settings of `offbeat sweep`, and how command-line overrides are shared out. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from actors.errors import UsageError
from launch.settings.fields import format_value
from launch.settings.loading import load_config
from launch.settings.run import NamedConfig
from launch.settings.verbs import SWEEP
from launch.settings.yaml_text import YamlError, dump, parse_yaml

SEED_SETTINGS = ("seed", "learner.seed", "prompts.seed")
"""Settings that take a run's seed. `world.seed` is none of them: all runs play the same game."""
_LABEL = re.compile(r"[A-Za-z0-9._+-]+")
_OF_THE_SWEEP = {**dict.fromkeys(SEED_SETTINGS, "write `seeds`"), "output": "every run gets its own; give --output DIR"}
_EXAMPLE = "`dpo: {learner.loss.kind: dpo}` for each label, or `replay.max_staleness: [0, 4]` for one setting"

Axis = dict[str, dict[str, Any]]


class SweepConfig(NamedConfig):
    """A sweep: one training configuration, varied along axes and over seeds."""

    base: str = Field(description="preset or YAML file of a training run, which every run of the sweep starts from")
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of all runs, by dotted key; KEY=VALUE on the command line adds some"
    )
    axes: dict[str, Axis] = Field(
        description="by name, what differs: settings by label, or one setting with a list of values. Every combination "
        "of labels is a row of the table"
    )
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="one run of every row for each: engines, learner, order of prompts"
    )
    compare: dict[str, str] = Field(
        default_factory=dict,
        description="axis and label of what a row is compared with, its other labels being equal; unset: the first row",
    )
    x: str | None = Field(default=None, description="axis along which figures are drawn; unset: the last one")

    @field_validator("axes", mode="before")
    @classmethod
    def _axes_by_label(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not given:
            raise ValueError(f"given {format_value(given)}; allowed: one axis or more, each with {_EXAMPLE}")
        return {_label(name, "axis name"): _axis(str(name), axis) for name, axis in given.items()}

    @field_validator("compare", mode="before")
    @classmethod
    def _labels_as_text(cls, given: Any) -> Any:
        return {str(axis): format_value(label) for axis, label in given.items()} if isinstance(given, dict) else given

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"given {format_value(seeds)}; allowed: different integers >= 0")
        return seeds

    @model_validator(mode="after")
    def _labels_exist(self) -> SweepConfig:
        for axis, label in self.compare.items():
            if label not in self.axes.get(axis, ()):
                raise ValueError(
                    f"compare.{axis} {label} is none of the rows; allowed: {_choices(self.axes)}; name one of these"
                )
        if self.x is not None and self.x not in self.axes:
            raise ValueError(f"x {self.x} is no axis; allowed: {', '.join(self.axes)}; name one of these")
        return self

    @model_validator(mode="after")
    def _every_setting_has_one_place(self) -> SweepConfig:
        owner: dict[str, str] = {}
        for axis, labels in self.axes.items():
            for key in dict.fromkeys(key for settings in labels.values() for key in settings):
                if owner.setdefault(key, axis) != axis:
                    raise ValueError(f"axes {owner[key]} and {axis} both set {key}; leave it out of one of them")
                if key in self.set and all(key in settings for settings in labels.values()):
                    raise ValueError(f"set.{key} has no effect: every label of axis {axis} sets it; leave it out")
        for key, remedy in _OF_THE_SWEEP.items():
            if key in owner or key in self.set:
                raise ValueError(f"{key} is given for the runs, and the sweep sets it; leave it out: {remedy}")
        return self

    @property
    def x_axis(self) -> str:
        """The axis along which figures are drawn."""
        return list(self.axes)[-1] if self.x is None else self.x

    @property
    def compared_with(self) -> dict[str, str]:
        """Labels of the row that others are compared with; an axis that is missing keeps a row's own label."""
        return self.compare or {axis: next(iter(labels)) for axis, labels in self.axes.items()}


def load_sweep(file: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Load a sweep with overrides; those that are no settings of the sweep go to all of its runs.

    Raises UsageError that names every mistake in the file, or an override that cannot be read.
    """
    own = [each for each in overrides if each.partition("=")[0].strip().split(".")[0] in SweepConfig.model_fields]
    given = dict(_key_and_value(each) for each in overrides if each not in own)
    config: SweepConfig = load_config(file, own, SWEEP)
    return load_config(file, [*own, as_override("set", config.set | given)], SWEEP) if given else config


def as_override(key: str, value: Any) -> str:
    """Write a setting as `KEY=VALUE`, which `load_config` reads back to the same value."""
    text = dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    return f"{key}={text.strip().removesuffix('...').strip()}"


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{override}: not an override; write KEY=VALUE, for example {SWEEP.example}")
    try:
        return key.strip(), parse_yaml(text)
    except YamlError as error:
        raise UsageError(f"{key}: the value is not valid YAML ({error}); quote it, as in {key}='\"text\"'") from error


def _axis(name: str, given: Any) -> Axis:
    """Return an axis with its settings by label, whichever of the two forms it has."""
    items = list(given.items()) if isinstance(given, dict) else []
    if len(items) == 1 and isinstance(items[0][1], list) and items[0][1]:
        setting, values = items[0]
        pairs = [(format_value(value), {str(setting): value}) for value in values]
    elif items and all(settings is None or isinstance(settings, dict) for _, settings in items):
        pairs = [(format_value(label), dict(settings or {})) for label, settings in items]
    else:
        raise ValueError(f"axis {name}: given {format_value(given)}; allowed: {_EXAMPLE}")
    labels = [_label(label, f"label of axis {name}") for label, _ in pairs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"axis {name}: given {', '.join(labels)}; allowed: different labels; leave the repeats out")
    return dict(zip(labels, (settings for _, settings in pairs), strict=True))


def _label(given: Any, what: str) -> str:
    """Return a name that may be part of a directory's."""
    text = format_value(given)
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{what} {text!r}: allowed are letters, digits and . _ + -, because it names a directory; name it with "
            "these, and give its settings below"
        )
    return text


def _choices(axes: Mapping[str, Axis]) -> str:
    return "; ".join(f"{axis}: {', '.join(labels)}" for axis, labels in axes.items())
