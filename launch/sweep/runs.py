"""Start the runs of a sweep as processes of their own, several at a time, and pass signals on to them.

A run is `offbeat train` in a directory of its own: completed ones are skipped, begun ones go on, and one that fails
does not stop the others. Must stay in the main thread: the kernel ends a process with the thread that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.errors import INTERRUPTED, UsageError, writing
from actors.foreign.documents import read_object
from actors.foreign.text import many
from launch.output.board import clock
from launch.output.process import interrupts
from launch.output.process.supervisor import die_with_parent
from launch.settings.loading import RECORDED
from launch.sweep.left import seconds_left
from launch.sweep.plan import PlannedRun

POLL_SECONDS = 0.1
_MARK = "offbeat: error: "
_LONGEST_TAIL = 1 << 16
"""Bytes at the end of a log that are searched for an error."""

Command = Callable[[PlannedRun], Sequence[str]]
Tell = Callable[[str], None]


def summary_of(run: PlannedRun) -> dict[str, Any] | None:
    """Return the summary that a run has left; None if there is none that can be read."""
    try:
        return read_object(run.directory / "summary.json")
    except UsageError:
        return None


def status_of(run: PlannedRun) -> str:
    """Return `completed`, `begun`, or `new`."""
    if (summary_of(run) or {}).get("status") == "completed":
        return "completed"
    return "begun" if (run.directory / RECORDED).is_file() else "new"


def train_command(run: PlannedRun) -> list[str]:
    """Return the command that starts a run, or goes on with one that was begun."""
    resume = ["--resume"] if status_of(run) == "begun" else []
    return [
        *(sys.executable, "-m", "launch", "train", run.base, *run.overrides),
        *("--output", str(run.directory), *resume),
    ]


@dataclass
class Ended:
    """Outcome of the processes of this call."""

    interrupted: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    """Runs that failed, by name, with their last error."""


def run_all(
    runs: Sequence[PlannedRun], slots: Sequence[Mapping[str, str]], tell: Tell, command: Command = train_command
) -> Ended:
    """Run everything that is not completed, at most one run for each slot, with the slot's environment variables.

    After a signal no run starts, and those that run get it too: they save a checkpoint and end. Returns when no
    process is left.
    """
    waiting = deque(run for run in runs if status_of(run) != "completed")
    skipped, ended = len(runs) - len(waiting), Ended()
    if skipped:
        tell(f"{skipped} of {many(len(runs), 'run')} completed already and skipped")
    running: dict[int, _Process] = {}
    pace = _Pace(runs, len(slots))
    with _heard() as signals:
        try:
            while running or (waiting and not signals):
                for process in running.values():
                    process.pass_on(signals)
                for slot in sorted(set(range(len(slots))) - set(running)) if not signals else ():
                    if waiting:
                        left = pace.left(running.values(), waiting)
                        running[slot] = _Process(waiting.popleft(), slots[slot], command)
                        tell(f"{running[slot].began}: {len(runs) - len(waiting)} of {len(runs)}{left}")
                time.sleep(POLL_SECONDS)
                for slot, process in list(running.items()):
                    if process.ended:
                        del running[slot]
                        pace.note(process)
                        _note(process, bool(signals), ended, tell)
        finally:
            for process in running.values():  # after an error of this process alone
                process.end()
    ended.interrupted = bool(signals)
    return ended


def last_error(log: Path, start: int, code: int) -> str:
    """Return what a failed process said last, in one line: its error in the log, from byte `start` on."""
    text = ""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _LONGEST_TAIL))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return (told or lines or [f"its process ended with code {code} and said nothing"])[-1]


class _Process:
    """One running process, in a session apart: a signal to the terminal reaches it once, through the sweep."""

    def __init__(self, run: PlannedRun, environment: Mapping[str, str], command: Command) -> None:
        self.run, self.resumed = run, status_of(run) == "begun"
        self.passed_on, self._since = 0, time.monotonic()
        words = command(run)
        with writing(f"to the output directory {run.directory.parent}", "then give the same command again"):
            run.directory.parent.mkdir(parents=True, exist_ok=True)
            if self.resumed:
                run.resumed_mark.touch()
            with run.log.open("ab") as log:
                self.start = log.tell()
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )

    @property
    def began(self) -> str:
        """Return the message of the start: a new run, or one that continues."""
        return f"{self.run.name} {'goes on' if self.resumed else 'begins'}"

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self._since

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def code(self) -> int:
        return int(self._process.returncode)

    def pass_on(self, signals: Sequence[int]) -> None:
        """Send every signal that came since the last call."""
        for number in signals[self.passed_on :]:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
        self.passed_on = len(signals)

    def end(self) -> None:
        """Let the run save, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait()


class _Pace:
    """Seconds of the runs of each row: of earlier calls by their summaries, of this call by the clock."""

    def __init__(self, runs: Sequence[PlannedRun], slots: int) -> None:
        self._slots = slots
        self._taken: dict[str, list[float]] = {}
        for run in runs:
            summary = summary_of(run) or {}
            seconds = summary.get("wall_seconds")
            if summary.get("status") == "completed" and isinstance(seconds, int | float):
                self._add(run, seconds)

    def note(self, process: _Process) -> None:
        """Take in a run that ended, if its process did all of it."""
        if process.code == 0 and not process.resumed:
            self._add(process.run, process.seconds)

    def left(self, running: Iterable[_Process], waiting: Iterable[PlannedRun]) -> str:
        """Say how long all runs still take; nothing before one is completed."""
        going_on = [(process.run.row.name, process.seconds) for process in running]
        seconds = seconds_left(self._taken, going_on, [run.row.name for run in waiting], self._slots)
        return "" if seconds is None else f", about {clock(seconds)} left"

    def _add(self, run: PlannedRun, seconds: float) -> None:
        self._taken.setdefault(run.row.name, []).append(seconds)


@contextlib.contextmanager
def _heard() -> Iterator[list[int]]:
    """Yield a list that signals are added to; one that is ignored stays so, as under nohup."""
    heard: list[int] = []
    previous = {number: signal.getsignal(number) for number in interrupts.heard()}
    try:
        for number in previous:
            signal.signal(number, lambda number, frame: heard.append(number))
        yield heard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _note(process: _Process, interrupted: bool, ended: Ended, tell: Tell) -> None:
    """Say how a process ended; record it if it failed."""
    run = process.run
    if process.code == 0:
        tell(f"{run.name} completed")
    elif interrupted and (process.code == INTERRUPTED or process.code < 0):
        tell(f"{run.name} interrupted")
    else:
        ended.failed[run.name] = last_error(run.log, process.start, process.code)
        tell(f"{run.name} failed: {ended.failed[run.name]}; see {run.log}")
