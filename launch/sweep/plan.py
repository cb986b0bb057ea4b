"""Runs of a sweep by its settings: every combination of labels, each with every seed. Starts and writes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.sweep.config import SEED_SETTINGS, SweepConfig, as_override


@dataclass(frozen=True, slots=True)
class Row:
    """One combination of labels: runs that differ in their seed alone."""

    labels: Mapping[str, str]  # by axis
    overrides: tuple[str, ...]  # on top of the base
    config: RunConfig  # with the base's own seeds

    @property
    def name(self) -> str:
        """The row's directory: `loss=dpo,staleness=4`."""
        return row_name(self.labels)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    row: Row
    seed: int
    base: str
    directory: Path

    @property
    def name(self) -> str:
        """Row and seed."""
        return f"{self.row.name}/seed-{self.seed}"

    @property
    def log(self) -> Path:
        """Return the file of the output of the run's process."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def resumed_mark(self) -> Path:
        """A file that is there once the run has gone on from an earlier process."""
        return self.directory.with_name(f"{self.directory.name}.resumed")

    @property
    def overrides(self) -> list[str]:
        """The overrides of this run, its seed included."""
        return [*self.row.overrides, *(as_override(key, self.seed) for key in SEED_SETTINGS)]


def row_name(labels: Mapping[str, str]) -> str:
    """Return the name of the row with these labels."""
    return ",".join(f"{axis}={label}" for axis, label in labels.items())


def plan_rows(sweep: SweepConfig) -> list[Row]:
    """Return the rows in the order of the file, the last axis varying fastest.

    Loads the configuration of each. Raises UsageError with every different mistake and the rows that have it.
    """
    rows: list[Row] = []
    mistakes: dict[str, list[str]] = {}
    for chosen in itertools.product(*(labels.items() for labels in sweep.axes.values())):
        labels = dict(zip(sweep.axes, (label for label, _ in chosen), strict=True))
        # A label's own value in place of that of all runs: an override is given once.
        settings = sweep.set | dict(item for _, own in chosen for item in own.items())
        overrides = tuple(as_override(key, value) for key, value in settings.items())
        try:
            rows.append(Row(labels, overrides, load_config(sweep.base, overrides)))
        except UsageError as error:
            mistakes.setdefault(str(error), []).append(row_name(labels))
    if mistakes:
        raise UsageError("\n".join(f"{_listed(names)}: {text}" for text, names in mistakes.items()))
    return rows


def plan_runs(sweep: SweepConfig, rows: Sequence[Row], directory: Path) -> list[PlannedRun]:
    """Return the runs of all rows, seed by seed, so that every row has a run before one has two."""
    return [
        PlannedRun(row, seed, sweep.base, directory / "runs" / row.name / f"seed-{seed}")
        for seed in sweep.seeds
        for row in rows
    ]


def _listed(rows: Sequence[str]) -> str:
    return f"row {rows[0]}" if len(rows) == 1 else f"{len(rows)} rows, the first {rows[0]}"
