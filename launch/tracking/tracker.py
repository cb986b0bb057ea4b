"""Interface of a tracker, the facts of a run that it gets, and the forms of values that trackers share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launch.settings.yaml_text import leaves


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts of a run that trackers get before its first number. Made by the driver."""

    name: str
    run_id: str
    directory: Path
    verb: str
    """`train`, `sft`, `dpo` or `preference`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole configuration as JSON values, secrets masked."""

    @property
    def own(self) -> Path:
        """Directory of the trackers' own files, below the run's."""
        return self.directory / "tracking"


class Tracker(Protocol):
    """Takes a run's figures somewhere. Called by one thread alone. May raise whatever it likes, and may hang.

    `begin` is called again if it has raised, and any call is repeated that has.
    """

    def begin(self, run: RunFacts) -> None:
        """Open the run; a run that is resumed goes on in the one with its id."""

    def log(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Take numbers of an update by TensorBoard's names; `now` is in seconds since 1970."""

    def text(self, step: int, name: str, text: str) -> None:
        """Take a Markdown text of an update."""

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """Take the summary and close the run, `completed`, `interrupted` or `failed`, once all is delivered."""

    def abandon(self) -> None:
        """Let go of what would keep this process from ending. Called at any moment, by another thread."""


def figures_in(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a summary as `summary/NAME`."""
    return {
        f"summary/{name}": float(value)
        for name, value in leaves(summary)
        if isinstance(value, int | float) and math.isfinite(value)
    }


def children(named: str) -> Iterator[int]:
    """Yield the processes that this one has started and whose program's name begins with `named`."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and (entry / "comm").read_text().startswith(named):
                yield int(entry.name)
        except (OSError, IndexError, ValueError):
            continue
