"""Timeline of the roles' work from the lines of `metrics.jsonl`. Leaves out roles and spans without records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.report.drawing.diagrams import Lane
from launch.report.drawing.series import number
from launch.report.records import Run, finite

MOST_STRETCHES = 300
MOST_MOMENTS = 200
_CHECKPOINT = re.compile(r"update-(\d+)")


def moments_of(run: Run) -> tuple[list[float], list[tuple[Mapping[str, Any], float, float]]]:
    """Return when each update ended (s since the first began), and each line with its wall and training seconds.

    A clock that was set back between two parts of a run counts for nothing: an update took at least its own seconds.
    """
    ends: list[float] = []
    rows: list[tuple[Mapping[str, Any], float, float]] = []
    before: float | None = None
    for row in run.rows:
        time, trained = finite(row.get("time")), finite(row.get("seconds"))
        if time is None or trained is None:
            continue
        wall = trained if before is None else max(time - before, trained)
        before = time
        ends.append((ends[-1] if ends else 0.0) + wall)
        rows.append((row, wall, trained))
    return ends, rows


def lanes_of(run: Run) -> tuple[list[Lane], float]:
    """Return the lanes that the run's lines describe, and its length in seconds; no lanes without records."""
    ends, rows = moments_of(run)
    if not ends or ends[-1] <= 0.0:
        return [], 0.0
    lanes = [Lane("learner: share of the time spent training", _stretches(ends, rows))]
    every = run.setting("replay.updates_per_publish")
    if isinstance(every, int) and every > 0:
        published = [
            (end, f"version {int(row['step']) // every} after update {int(row['step'])}")
            for end, (row, _, _) in zip(ends, rows, strict=True)
            if int(row["step"]) % every == 0
        ]
        lanes.append(_lane("publications", published))
    lanes += _marks(run, ends, rows)
    return lanes, ends[-1]


def _marks(run: Run, ends: Sequence[float], rows: Sequence[tuple[Mapping[str, Any], float, float]]) -> list[Lane]:
    evaluated, at = [], {}
    for end, (row, _, _) in zip(ends, rows, strict=True):
        at[int(row["step"])] = end
        if (rate := finite(row.get("win_rate"))) is not None:
            evaluated.append((end, f"win rate {number(rate)}, reported with update {int(row['step'])}"))
        if (exact := finite(row.get("exploitability"))) is not None:
            evaluated.append((end, f"exploitability {number(exact)} after update {int(row['step'])}"))
    kept = [int(found[1]) for name in _names(run) if (found := _CHECKPOINT.fullmatch(name))]
    saved = [(at[step], f"checkpoint after update {step}") for step in sorted(kept) if step in at]
    lanes = []
    if evaluated:
        lanes.append(_lane("evaluations", evaluated))
    if saved:
        lanes.append(_lane("checkpoints that are kept", saved))
    return lanes


def _names(run: Run) -> list[str]:
    folder = run.files.checkpoints
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _stretches(
    ends: Sequence[float], rows: Sequence[tuple[Mapping[str, Any], float, float]]
) -> list[tuple[float, float, float]]:
    """Return start, end and training share of at most `MOST_STRETCHES` parts of the run."""
    size = -(-len(rows) // MOST_STRETCHES)
    found = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        end = ends[min(first + size, len(rows)) - 1]
        wall = sum(wall for _, wall, _ in part)
        found.append((end - wall, end, sum(trained for _, _, trained in part) / wall if wall else 0.0))
    return found


def _lane(name: str, moments: Sequence[tuple[float, str]]) -> Lane:
    """Name and count moments; draw at most `MOST_MOMENTS` of them, and say so."""
    step = max(1, -(-len(moments) // MOST_MOMENTS))
    drawn = f", one of {step} is drawn" if step > 1 else ""
    return Lane(f"{name}: {len(moments):,}{drawn}", moments=list(moments[::step]))
