"""A tracker in a thread of its own: what it does wrong stays there.

The run puts figures into a bounded queue and goes on. The thread hands them over, and repeats what fails. A run that
ends waits a bounded time for the rest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from actors.foreign.text import shown
from launch.tracking.tracker import RunFacts, Tracker

MOST_WAITING = 2_000
"""Figures of updates that wait for a tracker; beyond it the oldest are left out."""
ATTEMPTS = 5
"""Calls with the same figures before they are left out."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after a failure; doubled by each further one."""
QUIET_SECONDS = 2.0  # of the wait at the end, before the run says that it waits
LONGEST_CAUSE = 300  # characters of an error

_Call = Callable[[], None]


class Background:
    """Gives one tracker what it is to take, in order. No method raises; only `wait` waits."""

    def __init__(self, name: str, tracker: Tracker, run: RunFacts, say: Callable[[str], None]) -> None:
        self.name, self._tracker, self._run, self._say = name, tracker, run, say
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._complained = False
        self._failures = 0  # in a row
        self.lost = 0
        """Figures that were left out so far."""
        self._thread = threading.Thread(target=self._work, name=f"offbeat-{name}", daemon=True)
        self._thread.start()

    def call(self, method: str, *arguments: Any) -> None:
        """Let the tracker's `method` be called with `arguments` once all before it was."""
        with self._changed:
            if overflows := len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(partial(getattr(self._tracker, method), *arguments))
            self._changed.notify()
        if overflows:
            self._complain(f"{MOST_WAITING} of them wait, and the oldest are left out")

    def finish(self) -> None:
        """Take nothing more, and pause no longer between attempts."""
        with self._changed:
            self._ending.set()
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` for the rest, after `finish`; then leave it out, and say so."""
        try:
            self._thread.join(max(0.0, min(QUIET_SECONDS, seconds)))
            if self._thread.is_alive() and seconds > QUIET_SECONDS:
                self._say(f"waiting for {self.name}, at most {seconds:.0f} s")
                self._thread.join(seconds - QUIET_SECONDS)
        finally:
            alive = self._thread.is_alive()
            if alive:
                self._abandon()
        left = self.lost + (len(self._waiting) + 1 if alive else 0)
        if left:
            late = f" within {seconds:.3g} s" if alive else ""
            self._say(
                f"warning: {self.name} has not taken {left} of the run's figures{late}; metrics.jsonl has all of them"
            )

    def _abandon(self) -> None:
        self._complained = True  # what it raises from now on is not the cause
        try:
            self._tracker.abandon()
        except Exception as error:
            self._say(f"warning: {self.name} may keep this process from ending: {_cause(error)}")

    def _work(self) -> None:
        while not self._succeeds(partial(self._tracker.begin, self._run)):
            if self._ending.is_set():
                self.lost += len(self._waiting)
                return
            self._pause()
        while (call := self._next()) is not None:
            self._hand_over(call)

    def _next(self) -> _Call | None:
        """Wait for the next call; None at the end."""
        with self._changed:
            while not self._waiting and not self._ending.is_set():
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _hand_over(self, call: _Call) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            if self._succeeds(call):
                return
            if self._ending.is_set() or attempt == ATTEMPTS:
                break
            self._pause()
        self.lost += 1

    def _succeeds(self, call: _Call) -> bool:
        try:
            call()
        except BaseException as error:  # also SystemExit: this thread is the tracker's own
            self._failures += 1
            self._complain(_cause(error))
            return False
        self._failures = 0
        return True

    def _pause(self) -> None:
        self._ending.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._failures - 1)))

    def _complain(self, cause: str) -> None:
        """Say once what is wrong."""
        if not self._complained:
            self._complained = True
            self._say(
                f"warning: {self.name} does not take the run's figures: {cause}; the run goes on, its directory has "
                "all of them, and it is offered them again"
            )


def _cause(error: BaseException) -> str:
    return shown(f"{type(error).__name__}: {error}".strip(": "), LONGEST_CAUSE)


def close(trackers: list[Background], seconds: float) -> None:
    """End all trackers; wait at most `seconds` for them together."""
    until = time.monotonic() + seconds
    for tracker in trackers:
        tracker.finish()
    for tracker in trackers:
        tracker.wait(until - time.monotonic())
