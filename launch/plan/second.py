"""Learn from a second run: the slowdown of a generator with many groups, and the seconds of an update without any."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from actors.errors import UsageError
from launch.plan.derive import CALIBRATION_GROUPS, Derived, Given, Value, differences, from_run, under
from launch.plan.prediction import predict
from launch.plan.recorded import Recorded

MOST_BATCHING = 256.0
"""Beyond it a generator is as fast with any number of groups."""
HALVINGS = 6
"""Halvings of the range of `batching`: the 64th root of 256 is 1.09."""


def from_runs(run: Recorded, second: Recorded, given: Given) -> Derived:
    """Make the model of `run` with what `second` shows beside it, on the same machine.

    Raises UsageError if they differ in what the model does not know, or in nothing that shows more.
    """
    _refuse(run, second)
    batching = given.batching or (fitted_batching(run, second, given) if _other_load(run, second) else None)
    own = replace(given, batching=batching)
    derived = from_run(run, own)
    values = list(derived.values)
    if batching is not None and given.batching is None:
        values = [value for value in values if value.name != "batching"]
        values.append(Value("batching", batching, "measured", f"by {second.name}"))
    if given.update_seconds is not None or not _other_size(run, second):
        return replace(derived, values=tuple(values))
    fixed = fixed_seconds(
        (run.config.replay.prompts_per_update, derived.model.learner.update.mean),
        (second.config.replay.prompts_per_update, from_run(second, own).model.learner.update.mean),
    )
    values.append(Value("update_fixed_seconds", fixed, "measured", f"of an update without prompts, by {second.name}"))
    return replace(derived, values=tuple(values), fixed_seconds=fixed)


def fixed_seconds(one: tuple[int, float], other: tuple[int, float]) -> float:
    """Return what an update takes without prompts, from the prompts and seconds of two.

    The line through both, at 0 prompts; never below 0, nor above the shorter one.
    """
    (prompts, seconds), (others, other_seconds) = one, other
    each = (other_seconds - seconds) / (others - prompts)
    return min(max(0.0, seconds - each * prompts), seconds, other_seconds)


def fitted_batching(run: Recorded, second: Recorded, given: Given) -> float:
    """Return the `batching` with which `run` predicts what a generator of `second` samples per second.

    The closer end of its range if none does.
    """
    measured = second.measured().sampling_rate

    def error(batching: float) -> float:
        derived = under(from_run(run, replace(given, batching=batching)), run.config, second.config)
        model = replace(derived.model, updates=second.updates)
        return predict(model, most_groups=CALIBRATION_GROUPS).sampling_rate - measured

    return crossing(error, 1.0, MOST_BATCHING)


def crossing(error: Callable[[float], float], low: float, high: float) -> float:
    """Return where `error` changes its sign, by halving the ratio of `high` and `low`.

    The end with the smaller error if it does not change.
    """
    at_low, at_high = error(low), error(high)
    if (at_low > 0.0) == (at_high > 0.0):
        return low if abs(at_low) <= abs(at_high) else high
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        if (error(middle) > 0.0) == (at_low > 0.0):
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _refuse(run: Recorded, second: Recorded) -> None:
    if unknown := differences(run.config, second.config):
        raise UsageError(
            f"--with {second.name}: it differs from {run.name} in {', '.join(sorted(unknown))}, whose effect on "
            "seconds the model does not know; give a run that differs in generators.count or replay.prompts_per_update"
        )
    if not _other_load(run, second) and not _other_size(run, second):
        raise UsageError(
            f"--with {second.name}: it has as many generators, prompts per update and groups at a time as {run.name}, "
            "so it shows no more; give a run with another generators.count or replay.prompts_per_update"
        )


def _other_load(run: Recorded, second: Recorded) -> bool:
    """Return whether a generator of `second` samples another number of groups at a time."""
    one, other = run.config.generators, second.config.generators
    return (one.count, one.max_running_prompts) != (other.count, other.max_running_prompts)


def _other_size(run: Recorded, second: Recorded) -> bool:
    return run.config.replay.prompts_per_update != second.config.replay.prompts_per_update
