"""What a replay did beside the run that it replays: numbers in, a record and a table out. Pure, but for printing."""

from __future__ import annotations

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

from actors.errors import RunError

WINDOWS = 5
SHOWN = (
    *("loss", "margin", "accuracy", "kl_chosen", "kl_rejected", "player_preference", "kl_players", "advantage_std"),
    *("grad_norm", "log_ratio_mean", "behaviour_kl", "staleness_mean", "exploitability", "exact_kl"),
)
"""Metrics in the table, where there are any; the record has all."""
SAME = ("loss", "grad_norm")
"""Metrics that are the same float as long as weights and batches are the same."""

Lines = Mapping[int, Mapping[str, float | None]]
"""Values by name, by step: `metrics.jsonl`. None: not finite."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The replay's last weights beside the run's."""

    recorded: str
    """Model directory of the run."""
    tensors: int
    different: int
    largest_difference: float | None
    """None: infinite or not a number."""
    tensor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """`report.json`. Names are relied on: add, never rename."""

    run: str
    first: int
    """The first update that was replayed, counted from 0."""
    end: int
    """One more than the last."""
    trained: int
    """Updates with anything to train on."""
    groups: int
    """Consumed, each counted at every consumption."""
    left_out: int = 0
    """Groups over the staleness asked for."""
    max_staleness: int | None = None
    """As asked for."""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings that differ from the run's: as recorded, as replayed."""
    resumed_with: dict[str, list[str]] = field(default_factory=dict)
    """Settings that parts of the run had and its last part has not, by the first update of each part."""
    weights: Weights | None = None
    """None where the run left no weights of after the last update."""
    first_difference: int | None = None
    """The first step with another loss or gradient norm than recorded; None: there is none."""
    windows: list[tuple[int, int]] = field(default_factory=list)
    """First and last step of each part that metrics are averaged over."""
    metrics: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    """By name, `recorded` and `replay`: mean over each window; None where a window has none."""
    exact: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """By name, `recorded` and `replay`: the policy after the last update, by enumeration; None where the run did not
    measure it then. Empty where the game is not known."""
    seconds: float = 0.0

    @property
    def like_the_run(self) -> bool:
        """Whether nothing was changed, so that the weights should be the run's."""
        return not (self.changed or self.resumed_with or self.left_out)

    def write(self, path: Path) -> None:
        """Writes JSON. Raises RunError when the disk refuses."""
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}; free space there") from error

    def render(self, console: Console) -> None:
        """Prints the metrics side by side, then what became of the weights."""
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
            console.print(Text(line), soft_wrap=True)

    def lines(self) -> list[str]:
        """The result in sentences."""
        end = f"updates {self.first + 1} to {self.end}" if self.end > self.first else "no update"
        told = [f"replayed {end} of {self.run}: {self.trained} steps, {self.groups:,} groups consumed"]
        if self.max_staleness is not None:
            told.append(f"{self.left_out:,} groups over staleness {self.max_staleness} left out")
        told += [f"{name}: {_setting(was)} recorded, {_setting(now)} here" for name, (was, now) in self.changed.items()]
        told += [
            f"the run had other settings from update {int(first) + 1} on ({', '.join(names)}) than it ended with: "
            "replayed with those it ended with"
            for first, names in self.resumed_with.items()
        ]
        told += [
            f"{name}: {_shown(values['recorded'])} recorded, {_shown(values['replay'])} here, at the end"
            for name, values in self.exact.items()
        ]
        if self.first_difference is not None and self.like_the_run:
            told.append(f"loss or gradient norm first differ from the recorded ones in update {self.first_difference}")
        return [*told, self._verdict()]

    def _verdict(self) -> str:
        weights = self.weights
        if weights is None:
            return "the run has no weights of after the last update to compare with"
        if not weights.different:
            return f"weights: bit-identical to {weights.recorded} ({weights.tensors} tensors)"
        gap = "" if weights.largest_difference is None else f" by at most {weights.largest_difference:.3g}"
        return (
            f"weights: {weights.different} of {weights.tensors} tensors differ from {weights.recorded}{gap}, most in "
            f"{weights.tensor}"
        )


def changed_settings(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the leaves that differ: as recorded, as given."""
    before, after = dict(_leaves(recorded)), dict(_leaves(given))
    names = list(dict.fromkeys([*before, *after]))
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        below = isinstance(value, Mapping)
        found += _leaves(value, f"{prefix}{name}.") if below else [(f"{prefix}{name}", value)]
    return found


def windows(first: int, end: int, count: int = WINDOWS) -> list[tuple[int, int]]:
    """The steps `first` + 1 to `end` in at most `count` parts of equal length, as nearly as can be."""
    parts = min(count, end - first)
    edges = [first + (end - first) * number // parts for number in range(parts + 1)] if parts > 0 else []
    return [(low + 1, high) for low, high in pairwise(edges)]


def side_by_side(
    recorded: Lines, replay: Lines, parts: Sequence[tuple[int, int]]
) -> dict[str, dict[str, list[float | None]]]:
    """Means of every metric of either over each of `parts`, by name, `recorded` and `replay`."""
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
    """The first step that either has, up to the last recorded one, and whose `SAME` metrics are not the same floats.

    None: there is none. A run that died has batches in its journal beyond its last line of metrics.
    """
    last = max(recorded, default=0)
    for step in sorted(step for step in recorded.keys() | replay.keys() if step <= last):
        a, b = recorded.get(step, {}), replay.get(step, {})
        if any(a.get(name) != b.get(name) for name in SAME) or not a or not b:
            return step
    return None


def read_lines(path: Path, first: int, end: int) -> dict[int, dict[str, float | None]]:
    """Steps `first` + 1 to `end` of a `metrics.jsonl`; a line cut short by a crash and those after it are left out."""
    lines: dict[int, dict[str, float | None]] = {}
    if not path.is_file():
        return lines
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break
        step = values.pop("step")
        values.pop("time", None)
        if first < step <= end:
            lines[step] = values
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _setting(value: Any) -> str:
    return "unset" if value is None else str(value)
