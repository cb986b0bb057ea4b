"""Rows of a sweep's table: means over seeds, 95% intervals, paired differences, areas under curves. Pure.

Seeds are the independent draws. An interval is Student's, of n - 1 degrees of freedom, and there is none for one seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from actors.intervals import mean_interval
from launch.sweep.results import QUALITIES, Outcome, Quality

AREAS = {"area_updates": "update", "area_tokens": "tokens"}
_OF_ONE_PROCESS = ("wall_seconds", "trained_share", "staleness", "seconds.", "share.")
"""Beginnings of the figures that leave out what a run did before it was resumed."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n seeds, with its 95% interval; no interval if n is 1, or all values are equal."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: what its completed runs show."""

    name: str
    labels: Mapping[str, str]
    runs: int  # completed
    planned: int
    figures: Mapping[str, Estimate]
    compared_with: str | None = None  # another row's name
    differences: Mapping[str, Estimate] | None = None
    """This row less the one that it is compared with, over the seeds of both."""


@dataclass(frozen=True, slots=True)
class Results:
    """Results of a sweep."""

    name: str
    axes: Mapping[str, Sequence[str]]  # labels by axis
    x: str
    quality: Quality | None  # None if no run is completed, or nothing was evaluated
    rows: Sequence[TableRow]
    outcomes: Sequence[Outcome]

    def of(self, row: TableRow) -> list[Outcome]:
        """The completed runs of a row."""
        return [each for each in self.outcomes if each.row == row.name and each.status == "completed"]


def make_rows(outcomes: Sequence[Outcome], compare: Mapping[str, str]) -> list[TableRow]:
    """Return one row for each combination of labels, in the order of `outcomes`.

    `compare` holds the labels that replace a row's own in the row that it is compared with.
    """
    rows: dict[str, list[Outcome]] = {}
    for each in outcomes:
        rows.setdefault(each.row, []).append(each)
    by_labels = {tuple(sorted(own[0].labels.items())): name for name, own in rows.items()}
    table = []
    for name, own in rows.items():
        labels = own[0].labels
        other = by_labels.get(tuple(sorted({**labels, **compare}.items())))
        done = [each for each in own if each.status == "completed"]
        row = TableRow(name, labels, len(done), len(own), {key: estimate(values) for key, values in _values(done)})
        if other is not None and other != name:
            differences = paired(own, rows[other])
            row = replace(row, compared_with=other, differences=differences)
        table.append(row)
    return table


def quality_of(outcomes: Sequence[Outcome]) -> Quality | None:
    """Return the first quality that every completed run has; None if there is none."""
    done = [each for each in outcomes if each.status == "completed"]
    found = (quality for quality in QUALITIES if done and all(quality.name in each.figures for each in done))
    return next(found, None)


def estimate(values: Sequence[float]) -> Estimate:
    """Average values, one per seed."""
    low, high = mean_interval(values) or (None, None)
    return Estimate(statistics.fmean(values), low, high, len(values))


def paired(own: Sequence[Outcome], other: Sequence[Outcome]) -> dict[str, Estimate]:
    """Average each figure's difference over the seeds that both have completed."""
    theirs = {each.seed: _figures(each) for each in other if each.status == "completed"}
    found: dict[str, list[float]] = {}
    for each in own:
        if each.status == "completed" and each.seed in theirs:
            for name, value in _figures(each).items():
                if name in theirs[each.seed]:
                    found.setdefault(name, []).append(value - theirs[each.seed][name])
    return {name: estimate(values) for name, values in found.items()}


def with_areas(outcomes: Sequence[Outcome], quality: Quality | None) -> list[Outcome]:
    """Add each run's mean quality over its updates and over its tokens, between limits that all runs reach."""
    if quality is None:
        return list(outcomes)
    added: list[dict[str, float]] = [{} for _ in outcomes]
    for name, along in AREAS.items():
        curves = [
            [(float(getattr(at, along)), at.values[quality.name]) for at in each.curve if quality.name in at.values]
            for each in outcomes
        ]
        drawn = [curve for curve in curves if len(curve) > 1]
        low = max((curve[0][0] for curve in drawn), default=0.0)
        high = min((curve[-1][0] for curve in drawn), default=0.0)
        for figures, curve in zip(added, curves, strict=True):
            if len(curve) > 1 and low < high:
                figures[name] = area(curve, low, high)
    return [replace(each, figures={**each.figures, **more}) for each, more in zip(outcomes, added, strict=True)]


def area(curve: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Return the area under a piecewise linear curve between `low` and `high`, divided by high - low."""
    total = 0.0
    for (x, y), (next_x, next_y) in pairwise(curve):
        left, right = max(x, low), min(next_x, high)
        if left < right:
            slope = (next_y - y) / (next_x - x)
            total += (right - left) * (y + slope * ((left + right) / 2.0 - x))
    return total / (high - low)


def _figures(outcome: Outcome) -> dict[str, float]:
    """Return a run's figures, without those that a resumed run has for its last process alone."""
    return {
        name: value
        for name, value in outcome.figures.items()
        if not (outcome.resumed and name.startswith(_OF_ONE_PROCESS))
    }


def _values(outcomes: Sequence[Outcome]) -> list[tuple[str, list[float]]]:
    found: dict[str, list[float]] = {}
    for each in outcomes:
        for name, value in _figures(each).items():
            found.setdefault(name, []).append(value)
    return list(found.items())
