"""Read the results of one run of a sweep from its `summary.json` and `metrics.jsonl`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.output.metrics import read_json_lines
from launch.sweep.plan import PlannedRun
from launch.sweep.runs import summary_of


@dataclass(frozen=True, slots=True)
class Quality:
    """A figure that says how good a policy is, and its column of `metrics.jsonl`."""

    name: str
    column: str
    title: str
    lower_is_better: bool = False


QUALITIES = (
    Quality("exploitability", "exploitability", "exploitability", lower_is_better=True),
    Quality("reward_rise", "reward", "rise of the reward"),
    Quality("win_rate", "win_rate", "win rate"),
)
"""The first that every completed run has is the sweep's."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation during a run."""

    update: int
    tokens: float
    """Trained on until then, prompts included, with the run's discarded tokens charged in proportion."""
    values: Mapping[str, float]  # by name of the quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Results of one run."""

    row: str
    labels: Mapping[str, str]
    seed: int
    directory: str  # below the sweep's
    status: str  # `completed`, `interrupted`, `failed`, or `new` if it left no summary
    error: str | None = None
    resumed: bool = False
    """It went on from an earlier process, of which its times and token counts say nothing."""
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    damaged: int = 0  # lines of its metrics that cannot be read


def read_outcome(run: PlannedRun, directory: Path, error: str | None = None) -> Outcome:
    """Read what a run has left below the sweep's `directory`; `error` is what its process said last."""
    summary = summary_of(run)
    completed = summary is not None and summary.get("status") == "completed"
    figures = figures_of(summary) if completed and summary is not None else {}
    lines, damaged = _lines(run.directory / "metrics.jsonl") if completed else ([], 0)
    told = None if completed else error or (summary or {}).get("error")
    return Outcome(
        row=run.row.name,
        labels=run.row.labels,
        seed=run.seed,
        directory=run.directory.relative_to(directory).as_posix(),
        status="failed" if error and not completed else str((summary or {}).get("status", "new")),
        error=None if told is None else str(told),
        resumed=run.resumed_mark.exists(),
        figures=figures,
        curve=curve_of(lines, summary or {}, figures),
        damaged=damaged,
    )


def figures_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a completed run by name; what was not measured is absent.

    Exact figures stand in for estimates if the game is known: `kl`, `win_rate`.
    """
    tail, reward, rate = summary.get("exploitability_tail"), summary.get("reward"), summary.get("win_rate")
    exact = summary.get("preference")
    found = {
        "exploitability": summary.get("exploitability") if tail is None else tail,
        "reward_rise": None if reward is None else reward.get("rise"),
        "win_rate": (None if rate is None else rate.get("value")) if exact is None else exact,
        "kl": summary.get("kl") if summary.get("exact_kl") is None else summary["exact_kl"],
        "wall_seconds": summary.get("wall_seconds"),
        "trained_share": trained_share(summary),
        "staleness": (summary.get("staleness") or {}).get("mean"),
        **_budget(summary.get("time_budget") or {}),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def trained_share(summary: Mapping[str, Any]) -> float | None:
    """Return trained / (trained + discarded) response tokens; None if nothing was consumed.

    Trained tokens are tokens per second x (groups / groups per second), both over the seconds of learning.
    """
    groups = sum(((summary.get("staleness") or {}).get("histogram") or {}).values())
    rate = summary.get("groups_per_second")
    if not groups or not rate:
        return None
    trained = summary.get("tokens_per_second", 0.0) * groups / rate
    sampled = trained + summary.get("dropped_tokens", 0)
    return float(trained / sampled) if sampled else None


def curve_of(
    lines: Iterable[Mapping[str, Any]], summary: Mapping[str, Any], figures: Mapping[str, float]
) -> list[Point]:
    """Return the evaluations during a run, in order of updates."""
    start = (summary.get("reward") or {}).get("start", 0.0)
    share = figures.get("trained_share") or 1.0
    lines = list(lines)
    trained = itertools.accumulate(float(line.get("tokens") or 0) for line in lines)
    points = []
    for line, tokens in zip(lines, trained, strict=True):
        given = {quality.name: line.get(quality.column) for quality in QUALITIES}
        values = {name: float(value) for name, value in given.items() if value is not None}
        if "reward_rise" in values:
            values["reward_rise"] -= start
        if values:
            points.append(Point(int(line["step"]), tokens / share, values))
    return points


def _budget(budget: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return seconds by role and activity, and each activity's share of the learner's time."""
    seconds = {f"seconds.{role}.{activity}": value for role, own in budget.items() for activity, value in own.items()}
    learner = budget.get("learner") or {}
    total = sum(learner.values())
    if not total:
        return seconds
    return seconds | {f"share.learner.{activity}": value / total for activity, value in learner.items()}


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of a file of metrics, and count those that are damaged."""
    try:
        found, damaged = read_json_lines(path)
    except OSError:
        return [], 0
    rows = [row for row in found if isinstance(row.get("step"), int | float)]
    return rows, damaged + len(found) - len(rows)
