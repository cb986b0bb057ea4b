"""Trackers that keep what they are told, and trackers that fail as services do."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from launch.tracking.tracker import RunFacts


class FakeTracker:
    """Keeps its calls by name. `fails` counts down: each call before it is used up raises `error`."""

    def __init__(self, fails: int = 0, error: BaseException | None = None, seconds: float = 0.0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.run: RunFacts | None = None
        self.abandoned = False
        self._fails, self._error, self._seconds = fails, error or ConnectionError("no route to host"), seconds

    def begin(self, run: RunFacts) -> None:
        self._take()
        self.run = run

    def log(self, step: int, values: Mapping[str, float], now: float) -> None:
        self._take("log", step, dict(values))

    def text(self, step: int, name: str, text: str) -> None:
        self._take("text", step, name, text)

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        self._take("end", status, dict(summary))

    def abandon(self) -> None:
        self.abandoned = True

    def _take(self, *call: Any) -> None:
        time.sleep(self._seconds)
        if self._fails:
            self._fails -= 1
            raise self._error
        self.calls += [call] if call else []


class HangingTracker(FakeTracker):
    """Hangs in the call with the name `hangs` until `release` is set."""

    def __init__(self, hangs: str = "begin") -> None:
        super().__init__()
        self.release = threading.Event()
        self._hangs = hangs

    def begin(self, run: RunFacts) -> None:
        self._hang("begin")
        super().begin(run)

    def _take(self, *call: Any) -> None:
        if call:
            self._hang(call[0])
        super()._take(*call)

    def _hang(self, name: str) -> None:
        if name == self._hangs:
            self.release.wait()
