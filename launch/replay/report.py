"""Compare a replay with its run: metrics in, a JSON record and a table out. Pure, except for writing and printing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from actors.errors import writing
from actors.files import atomic_write
from actors.foreign.text import many, shown
from launch.output.metrics import damaged_lines, read_json_lines
from launch.settings.yaml_text import leaves

WINDOWS = 5
SHOWN = (
    *("loss", "margin", "accuracy", "kl_chosen", "kl_rejected", "player_preference", "kl_players", "advantage_std"),
    *("kl_anchor", "value_error"),
    *("grad_norm", "log_ratio_mean", "behaviour_kl", "staleness_mean", "exploitability", "exact_kl"),
)
"""Metrics in the table; the record has all."""
SAME = ("loss", "grad_norm")
"""Metrics that are bit-identical as long as weights and batches are."""

Lines = Mapping[int, Mapping[str, float | None]]
"""Lines of `metrics.jsonl`: values by name, by step. None: not finite."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The final weights of replay and run, compared."""

    recorded: str  # model directory of the run
    tensors: int
    different: int
    largest_difference: float | None  # None: infinite or not a number
    tensor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """`report.json`. Scripts rely on the names: add, never rename."""

    run: str
    first: int  # first replayed update, counted from 0
    end: int  # last replayed update plus 1
    trained: int  # updates with anything to train on
    groups: int  # consumed groups, counted once per consumption
    left_out: int = 0  # groups above `max_staleness`
    max_staleness: int | None = None  # as requested
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings that differ from the run's: (recorded, replayed)."""
    resumed_with: dict[str, list[str]] = field(default_factory=dict)
    """Settings in which earlier parts of the run differ from its last part, by the first update of each part."""
    weights: Weights | None = None
    """None: the run has no weights from after the last update."""
    first_difference: int | None = None
    """First step whose loss or gradient norm differs from the recorded one."""
    windows: list[tuple[int, int]] = field(default_factory=list)
    """First and last step of each window that metrics are averaged over."""
    metrics: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    """Means over each window, `recorded` and `replay`, by name; None for a window without values."""
    damaged: int = 0  # lines of the run's metrics that cannot be read
    exact: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Exact metrics of the final policy, `recorded` and `replay`, by name; None if the run did not measure it."""
    seconds: float = 0.0

    @property
    def unchanged(self) -> bool:
        """Return whether the replay should reach the run's weights."""
        return not (self.changed or self.resumed_with or self.left_out)

    def write(self, path: Path) -> None:
        """Write JSON. Raises RunError."""
        with writing(path, "then replay again"):
            atomic_write(path, json.dumps(asdict(self), indent=2) + "\n")

    def render(self, console: Console) -> None:
        """Print the metrics side by side, then the result in sentences."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("mean over updates", no_wrap=True)
        table.add_column("")
        for first, last in self.windows:
            table.add_column(f"{first}-{last}" if last > first else f"{first}", justify="right", no_wrap=True)
        for name in SHOWN:
            for who, values in self.metrics.get(name, {}).items():
                label = name if who == "recorded" else ""
                table.add_row(label, Text(who, style="dim" if who == "recorded" else ""), *map(_shown, values))
        console.print(table)
        for line in self.lines():
            console.print(Text(shown(line)), soft_wrap=True)

    def lines(self) -> list[str]:
        """Return the result in sentences."""
        end = f"updates {self.first + 1} to {self.end}" if self.end > self.first else "no update"
        lines = [f"replayed {end} of {self.run}: {many(self.trained, 'step')}, {many(self.groups, 'group')} consumed"]
        if self.max_staleness is not None:
            lines.append(f"{many(self.left_out, 'group')} above staleness {self.max_staleness} left out")
        lines += [
            f"{name}: {_setting(was)} recorded, {_setting(now)} here" for name, (was, now) in self.changed.items()
        ]
        lines += [
            f"from update {int(first) + 1} on, the run had other settings than at its end ({', '.join(names)}); "
            "replayed with those of its end"
            for first, names in self.resumed_with.items()
        ]
        lines += [
            f"{name}: {_shown(values['recorded'])} recorded, {_shown(values['replay'])} here, at the end"
            for name, values in self.exact.items()
        ]
        if self.damaged:
            lines.append(damaged_lines("metrics.jsonl of the run", self.damaged))
        if self.first_difference is not None and self.unchanged:
            lines.append(f"loss or gradient norm first differ from the recorded ones in update {self.first_difference}")
        return [*lines, self._verdict()]

    def _verdict(self) -> str:
        weights = self.weights
        if weights is None:
            return "weights: not compared; the run has none from after the last update"
        if not weights.different:
            return f"weights: bit-identical to {weights.recorded} ({many(weights.tensors, 'tensor')})"
        gap = "" if weights.largest_difference is None else f" by at most {weights.largest_difference:.3g}"
        return (
            f"weights: {weights.different} of {weights.tensors} tensors differ from {weights.recorded}{gap}, most in "
            f"{weights.tensor}"
        )


def changed_settings(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the leaves that differ, by dotted name: (recorded, given)."""
    before, after = dict(_leaves(recorded)), dict(_leaves(given))
    names = list(dict.fromkeys([*before, *after]))
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def changed_since(part: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Return the settings of a `part` of a run that differ from those `recorded` for the whole.

    One that the part does not name is newer than the part, which ran as by its default.
    """
    known = dict(_leaves(part))
    return [name for name in changed_settings(part, recorded) if name in known]


def _leaves(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """List the settings of a configuration, without empty sections."""
    return [(name, value) for name, value in leaves(tree) if value != {}]


def windows(first: int, end: int, count: int = WINDOWS) -> list[tuple[int, int]]:
    """Split the steps `first` + 1 to `end` into at most `count` windows of nearly equal length."""
    parts = min(count, end - first)
    edges = [first + (end - first) * number // parts for number in range(parts + 1)] if parts > 0 else []
    return [(low + 1, high) for low, high in pairwise(edges)]


def side_by_side(
    recorded: Lines, replay: Lines, parts: Sequence[tuple[int, int]]
) -> dict[str, dict[str, list[float | None]]]:
    """Average every metric over each of `parts`; by name, `recorded` and `replay`."""
    names = dict.fromkeys(name for lines in (recorded, replay) for values in lines.values() for name in values)
    return {
        name: {
            who: [
                _mean([lines[step].get(name) for step in range(low, high + 1) if step in lines]) for low, high in parts
            ]
            for who, lines in (("recorded", recorded), ("replay", replay))
        }
        for name in names
    }


def first_difference(recorded: Lines, replay: Lines) -> int | None:
    """Return the first step, up to the last recorded one, whose `SAME` metrics are not bit-identical; None if all are.

    The journal of a run that died may hold batches after its last line of metrics.
    """
    last = max(recorded, default=0)
    for step in sorted(step for step in recorded.keys() | replay.keys() if step <= last):
        a, b = recorded.get(step, {}), replay.get(step, {})
        if any(a.get(name) != b.get(name) for name in SAME) or not a or not b:
            return step
    return None


def read_lines(path: Path, first: int, end: int) -> tuple[dict[int, dict[str, float | None]], int]:
    """Read steps `first` + 1 to `end` of a `metrics.jsonl`, and count its damaged lines."""
    lines: dict[int, dict[str, float | None]] = {}
    if not path.is_file():
        return lines, 0
    rows, damaged = read_json_lines(path)
    for values in rows:
        step = values.pop("step", None)
        values.pop("time", None)
        if not isinstance(step, int | float):
            damaged += 1
        elif first < step <= end:
            lines[int(step)] = values
    return lines, damaged


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _setting(value: Any) -> str:
    return "unset" if value is None else str(value)
