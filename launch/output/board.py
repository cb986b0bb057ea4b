"""Progress display of a run: a live board in a terminal, an occasional line anywhere else.

Draws `RunSnapshot`s. Must not know where they come from, and must never delay a run.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from typing import IO, Self

from rich.box import ROUNDED
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from actors.foreign.text import shown
from actors.records import GeneratorStatus

MIN_SECONDS = 5.0
"""Least time between two lines of a plain log."""
MAX_SECONDS = 30.0
"""Longest silence of a plain log, so that a waiting run does not look like a hanging one."""
PROGRESS_STEP = 0.1
"""Share of all updates after which a line is due."""
REFRESH_PER_SECOND = 4
WARNING = "warning: "
"""Beginning of a message about a fault."""
JSON_WIDTH = 10_000  # columns of a table whose rows are JSON lines
MAX_ROWS = 8
"""Most generators shown one by one; also the largest staleness bound shown with every age below it."""


@dataclass(frozen=True)
class RunSnapshot:
    """The state of a run at one moment. Made by the driver, drawn here. Rates are recent averages."""

    elapsed_seconds: float
    version: int
    updates: int
    total_updates: int
    tokens_per_second: float
    groups_per_second: float
    generators: tuple[GeneratorStatus, ...]
    ages: tuple[int, ...]  # current staleness of each buffered group
    max_staleness: int
    buffered: int  # judged groups that are not yet consumed
    in_flight: int  # leases at a generator or judge
    learner_state: str  # `training`, `waiting`, `publishing`, `checkpointing` or `evaluating`
    learner_seconds: Mapping[str, float]  # seconds spent in each state so far
    scores: Mapping[str, str | None] = field(default_factory=dict)
    """Figures of the run's goal as texts, by name; None if not known yet."""
    dropped: Mapping[str, int] = field(default_factory=dict)  # groups dropped, by reason
    outside: tuple[str, ...] = ()  # figures outside the band of `divergence`, with their values
    ended_generators: int = 0  # processes of generators that died or were ended so far
    seconds_left: float | None = None  # estimated

    @property
    def progress(self) -> float:
        """Share of the updates done, in [0, 1]."""
        return self.updates / self.total_updates if self.total_updates else 1.0


class Board:
    """Show snapshots and messages: redrawn in place in a terminal, as lines elsewhere. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last_line: RunSnapshot | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep the last board on the screen and release the terminal; later output appears below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, snapshot: RunSnapshot) -> None:
        """Show a snapshot: at once in a terminal, elsewhere if a line is due."""
        if self.console.is_terminal:
            if self._live is None:  # not earlier: an empty board would be shown
                self._live = Live(console=self.console, refresh_per_second=REFRESH_PER_SECOND)
                self._live.start()
            self._live.update(render(snapshot))
        elif line_due(self._last_line, snapshot):
            self._last_line = snapshot
            self.console.print(Text(shown(f"offbeat: {line(snapshot)}")), soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a permanent line, above the board if there is one."""
        self.console.print(Text(shown(f"offbeat: {text}", lines=True)), soft_wrap=True)


class JsonBoard(Board):
    """Show the same as a JSON object per line, with the run that each belongs to; never redrawn.

    `run` returns the run's name and its id, if it has one already.
    """

    def __init__(self, run: Callable[[], tuple[str, str | None]], file: IO[str] | None = None) -> None:
        super().__init__(Console(file=_Lines(self._line), force_terminal=False, width=JSON_WIDTH, highlight=False))
        self._run, self._file = run, file
        self._version: int | None = None

    def update(self, snapshot: RunSnapshot) -> None:
        """Print a snapshot if a line is due."""
        self._version = snapshot.version
        if line_due(self._last_line, snapshot):
            self._last_line = snapshot
            self._line(line(snapshot))

    def message(self, text: str) -> None:
        """Print a message as one object, however many lines it has."""
        self._line(text)

    def _line(self, text: str) -> None:
        name, run_id = self._run()
        warning = text.startswith(WARNING)
        row = {
            "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
            "level": "warning" if warning else "info",
            "run": name,
            "run_id": run_id,
            "role": "driver",
            "version": self._version,
        }
        message = text.removeprefix(WARNING)
        print(json.dumps(row | {"message": shown(message, lines=True)}), file=self._file or sys.stderr, flush=True)


class _Lines(StringIO):
    """Gives each whole line that is written to it to `take`."""

    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self._take, self._rest = take, ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for each in whole:
            if each.strip():
                self._take(each.rstrip())
        return len(text)


# ---------------------------------------------------------------- plain lines


def line_due(last: RunSnapshot | None, now: RunSnapshot) -> bool:
    """Return whether a plain log needs a line: first snapshot, last update, a tenth of the run, or a long silence."""
    if last is None or last.updates < now.updates == now.total_updates:
        return True
    silence = now.elapsed_seconds - last.elapsed_seconds
    advanced = now.progress - last.progress >= PROGRESS_STEP - 1e-9
    return silence >= MAX_SECONDS or (advanced and silence >= MIN_SECONDS)


def line(snapshot: RunSnapshot) -> str:
    """Return a snapshot as one line of plain text."""
    oldest = max(snapshot.ages, default=0)
    parts = [
        f"update {snapshot.updates}/{snapshot.total_updates} ({snapshot.progress:.0%}) version {snapshot.version}",
        *(f"{name} {text}" for name, text in snapshot.scores.items() if text is not None),
        f"{snapshot.tokens_per_second:,.0f} tokens/s {snapshot.groups_per_second:.1f} groups/s",
        f"buffered {snapshot.buffered} in flight {snapshot.in_flight} oldest {oldest} of {snapshot.max_staleness}",
        f"learner {snapshot.learner_state}",
        *([f"dropped {_counts(snapshot.dropped)}"] if any(snapshot.dropped.values()) else []),
        *([f"outside the band: {', '.join(snapshot.outside)}"] if snapshot.outside else []),
        f"elapsed {clock(snapshot.elapsed_seconds)}",
        *([] if snapshot.seconds_left is None else [f"left {clock(snapshot.seconds_left)}"]),
    ]
    return " | ".join(parts)


def clock(seconds: float) -> str:
    """Return `1:02:03` for 3723 seconds; hours do not wrap into days."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


# ---------------------------------------------------------------- the board


def render(snapshot: RunSnapshot) -> RenderableType:
    """Return the board of one snapshot."""
    middle = Table.grid(Column(ratio=1), Column(ratio=1), expand=True, padding=(0, 3, 0, 0))
    middle.add_row(_buffer(snapshot), _learner(snapshot))
    return Panel(
        Group(_progress(snapshot), Text(), _generators(snapshot), Text(), middle, Text(), _scores_row(snapshot)),
        title=Text(f"offbeat  version {snapshot.version}", style="bold"),
        title_align="left",
        subtitle=Text(_times(snapshot)),
        subtitle_align="right",
        box=ROUNDED,
        padding=(0, 1),
    )


def _times(snapshot: RunSnapshot) -> str:
    elapsed = f"{clock(snapshot.elapsed_seconds)} elapsed"
    return elapsed if snapshot.seconds_left is None else f"{elapsed}, {clock(snapshot.seconds_left)} left"


def _progress(snapshot: RunSnapshot) -> RenderableType:
    columns = Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True, justify="right")
    row = Table.grid(*columns, expand=True, padding=(0, 2, 0, 0))
    rates = f"{snapshot.tokens_per_second:,.0f} tokens/s   {snapshot.groups_per_second:.1f} groups/s"
    row.add_row(
        f"update {snapshot.updates}/{snapshot.total_updates}",
        ProgressBar(total=max(1, snapshot.total_updates), completed=snapshot.updates),
        f"{snapshot.progress:4.0%}   {rates}",
    )
    return row


def _generators(snapshot: RunSnapshot) -> RenderableType:
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("generator", no_wrap=True)
    for name in ("version", "running", "held", "tokens", "generating", "updating", "idle"):
        table.add_column(name, justify="right", no_wrap=True)
    for status in snapshot.generators[:MAX_ROWS]:
        behind = snapshot.version - status.version
        version = Text(str(status.version))
        if behind > 0:
            version.append(f" (-{behind})", style="yellow")
        seconds = (status.generating_seconds, status.updating_seconds, status.idle_seconds)
        total = sum(seconds) or 1.0
        shares = [f"{part / total:.0%}" for part in seconds]
        table.add_row(
            Text(shown(status.name)), version, str(status.running), str(status.waiting), f"{status.tokens:,}", *shares
        )
    if len(snapshot.generators) > MAX_ROWS:
        table.add_row(Text(f"and {len(snapshot.generators) - MAX_ROWS} more", style="dim"))
    return table


def _buffer(snapshot: RunSnapshot) -> RenderableType:
    table = _bars(f"buffer  {snapshot.buffered} ready, {snapshot.in_flight} in flight")
    counts = Counter(snapshot.ages)
    most = max(counts.values(), default=1)
    bound = snapshot.max_staleness
    rows = set(range(bound + 1)) if bound < MAX_ROWS else {bound}
    for age in sorted(rows | set(counts)):
        name = f"age {age}" + (" = bound" if age == bound else " > bound" if age > bound else "")
        _add_bar(table, name, counts[age] / most, str(counts[age]), "red" if age > bound else "cyan")
    return table


def _learner(snapshot: RunSnapshot) -> RenderableType:
    table = _bars(f"learner  {snapshot.learner_state}")
    total = sum(snapshot.learner_seconds.values()) or 1.0
    for state, seconds in snapshot.learner_seconds.items():
        style = {"training": "green", "waiting": "yellow"}.get(state, "blue")
        _add_bar(table, state, seconds / total, f"{seconds / total:.0%}", style)
    return table


def _bars(title: str) -> Table:
    columns = Column(no_wrap=True, min_width=13), Column(ratio=1), Column(justify="right", no_wrap=True, min_width=4)
    table = Table.grid(*columns, expand=True, padding=(0, 1, 0, 0))
    table.title, table.title_justify = Text(title, style="bold", no_wrap=True), "left"
    return table


def _add_bar(table: Table, name: str, share: float, value: str, style: str) -> None:
    table.add_row(name, ProgressBar(total=1.0, completed=share, complete_style=style, finished_style=style), value)


def _scores_row(snapshot: RunSnapshot) -> RenderableType:
    # Columns: a narrow terminal breaks between two scores, never inside one.
    items = [Text.assemble((f"{name} ", "dim"), (text or "-", "bold")) for name, text in snapshot.scores.items()]
    if any(snapshot.dropped.values()):
        items.append(Text(f"dropped {_counts(snapshot.dropped)}", style="yellow"))
    if snapshot.outside:
        items.append(Text(f"outside the band: {', '.join(snapshot.outside)}", style="red"))
    return Columns(items, padding=(0, 3))
