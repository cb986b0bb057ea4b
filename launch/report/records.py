"""Read a run's records from its directory, whatever the run's state. Missing parts are named, not guessed."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.documents import read_object
from launch.output.metrics import damaged_lines, read_json_lines
from launch.output.run_directory import MOST_NAMED, RUN_ID, RunDirectory, no_run, runs_below
from launch.report.drawing.series import Point
from launch.settings.yaml_text import YamlError, read_yaml

LOOKED_FOR = ("config.yaml", "metrics.jsonl", "summary.json", RUN_ID)
"""A directory with one of these is a run's."""
LARGEST = 1e150
"""Figures above this are no figures of a run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, by its files."""

    files: RunDirectory
    config: Mapping[str, Any]  # empty if there is none that can be read
    config_text: str
    rows: Sequence[Mapping[str, Any]]  # lines of `metrics.jsonl`
    summary: Mapping[str, Any]  # empty if there is none that can be read
    error_text: str  # traceback of a run that failed
    running: bool
    missing: Sequence[str]
    """Unreadable parts, a sentence each."""
    label: str = ""  # distinguishes it from other runs
    replayed: str = ""
    """The run whose journal it trained on, if it is a replay, which evaluates nothing and leaves no summary."""

    @property
    def name(self) -> str:
        """Its label, else its directory in one word; `name` of a configuration is the same for many runs."""
        return self.label or self.files.path.resolve().name

    @property
    def status(self) -> str:
        """`running`, or `replayed`, or as the summary has it, or `unfinished` if there is none."""
        if self.running:
            return "running"
        if self.replayed:
            return "replayed"
        return str(self.summary.get("status") or "unfinished")

    @property
    def updates(self) -> int:
        """Updates so far: the summary's, or the last line's."""
        last = int(self.rows[-1]["step"]) if self.rows else 0
        told = self.summary.get("updates")
        return max(last, int(told)) if isinstance(told, int | float) else last

    @property
    def planned(self) -> int | None:
        """Updates that the run wants to make; None if that is not recorded."""
        found = self.summary.get("total_updates", self.setting("updates"))
        return found if isinstance(found, int) else None

    @property
    def loss(self) -> str:
        """Kind of the loss; empty if it is not recorded, or the run is a stage with only one."""
        told = self.summary.get("loss")  # of a stage the last value
        return told if isinstance(told, str) and told else str(self.setting("learner.loss.kind") or "")

    @property
    def is_stage(self) -> bool:
        """Return whether the run trained on given examples, without generators, by its settings or its summary."""
        return "training" in self.config or "train_examples" in self.summary

    @property
    def bound(self) -> int | None:
        """Largest staleness allowed (versions)."""
        found = self.summary.get("max_staleness_bound", self.setting("replay.max_staleness"))
        return found if isinstance(found, int) else None

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted key; None if the configuration lacks it."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a mapping of the summary, empty if it has none."""
        found = self.summary.get(name)
        return found if isinstance(found, Mapping) else {}

    def figure(self, name: str) -> float | None:
        """Return a number of the summary; None if it has none."""
        return finite(self.summary.get(name))

    def column(self, name: str) -> list[Point]:
        """Return update and value of every line that has a finite `name`."""
        found = ((float(row["step"]), finite(row.get(name))) for row in self.rows)
        return [(step, value) for step, value in found if value is not None]


def finite(value: Any) -> float | None:
    """Return a number as a float; None for anything else, and for one so large that it cannot be drawn or summed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= LARGEST else None  # NaN is not


def read_run(directory: Path) -> Run:
    """Read a run's directory. Raises UsageError if it is none, naming what was looked for."""
    require_run(directory)
    missing: list[str] = []
    config, config_text = _config(directory / "config.yaml", missing)
    files = RunDirectory(directory)
    running = files.in_use
    replayed = _replayed(directory / "report.json")
    return Run(
        files=files,
        config=config,
        config_text=config_text,
        rows=_rows(directory / "metrics.jsonl", missing),
        summary={} if replayed else _summary(files.summary, running, missing),
        replayed=replayed,
        error_text=_text(directory / "error.txt"),
        running=running,
        missing=missing,
    )


def _replayed(path: Path) -> str:
    """Return which run the directory of `path` is a replay of; empty if it is none."""
    with contextlib.suppress(UsageError):
        return str(read_object(path).get("run") or "") if path.is_file() else ""
    return ""


def require_run(directory: Path) -> None:
    """Raise UsageError unless `directory` is a run's."""
    if not directory.is_dir():
        raise no_run(directory, "", "give the directory of a run, as runs/embedded")
    below = runs_below(directory)
    own = [name for name in LOOKED_FOR if (directory / name).is_file()]
    # A demo leaves a summary beside its two runs.
    if own and not (own == ["summary.json"] and below):
        return
    looked = ", ".join(LOOKED_FOR[:-1])
    if below:
        named = shlex.join(map(str, below[:MOST_NAMED]))
        more = f" (and {len(below) - MOST_NAMED} more below it)" if len(below) > MOST_NAMED else ""
        raise UsageError(f"{directory} is no run but holds runs; compare these: offbeat report {named}{more}")
    raise UsageError(
        f"{directory} is no run: it has none of {looked} and {LOOKED_FOR[-1]}, and no run is below it; give the "
        "directory that a run wrote, as runs/embedded"
    )


def _config(path: Path, missing: list[str]) -> tuple[Mapping[str, Any], str]:
    text = _text(path)
    if not path.is_file():
        missing.append("There is no config.yaml, so the settings of this run are not known.")
        return {}, text
    try:
        tree = read_yaml(path)
    except (YamlError, OSError, UnicodeDecodeError) as error:
        missing.append(f"config.yaml cannot be read: {error}.")
        return {}, text
    if not isinstance(tree, Mapping) or not tree:
        missing.append("config.yaml holds no settings.")
        return {}, text
    return tree, text


def _summary(path: Path, running: bool, missing: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        told = "the run has not ended" if running else "the run did not end in order, or has not begun"
        missing.append(f"There is no summary.json: {told}.")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, OSError, RecursionError) as error:
        missing.append(f"summary.json cannot be read: {error}.")
        return {}
    if running:
        missing.append("summary.json is of the part before the last resume; its figures are of that part.")
    return found if isinstance(found, Mapping) else {}


def _rows(path: Path, missing: list[str]) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        missing.append("There is no metrics.jsonl, so there are no curves.")
        return []
    found: list[dict[str, Any]] = []
    damaged = 0
    try:
        found, damaged = read_json_lines(path)
    except OSError as error:
        missing.append(f"metrics.jsonl cannot be read: {error.strerror}.")
    rows = [row for row in found if finite(row.get("step")) is not None]
    damaged += len(found) - len(rows)
    if damaged:
        missing.append(f"{damaged_lines('metrics.jsonl', damaged)}.")
    if not rows:
        missing.append("metrics.jsonl holds no update yet.")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""
