"""Numbers of a run over its updates: `metrics.jsonl` for scripts and `tensorboard/` for eyes, always the same numbers.

Knows files only; what the numbers mean is their sender's business. TensorBoard's own event writer is used, so that the
process that writes metrics needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.errors import RunError

FLUSH_SECONDS = 10
"""Seconds until TensorBoard sees an event; the JSON lines are flushed one by one."""


def numbers(record: Any) -> dict[str, float]:
    """The numbers of a dataclass by name, flags as 0 or 1; what it does not have (None) is left out."""
    return {key: float(value) for key, value in asdict(record).items() if isinstance(value, int | float)}


class MetricsWriter:
    """Appends one line, and one set of TensorBoard scalars, per step.

    A resumed run goes on after step `resume_from`: what an earlier part had written past it is taken back, and a line
    cut short by a crash with it. 0 starts afresh.

    Raises:
        RunError: the directory cannot be written.
    """

    def __init__(self, directory: str | Path, resume_from: int = 0) -> None:
        self._path = Path(directory) / "metrics.jsonl"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _truncate_after(self._path, resume_from)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self._events = _Events(self._path.parent / "tensorboard", resume_from)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line `{"step": ..., "time": seconds since 1970, NAME: value, ...}`.

        JSON has no NaN or infinity: such a value is null in the line, and itself in TensorBoard.

        Raises:
            RunError: the disk is full or gone.
        """
        now = time.time()
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, "time": now, **finite}) + "\n")
            self._file.flush()
            self._events.write(step, now, values)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Closes both; a second call does nothing. A disk that fails here has been reported by `write`."""
        for part in (self._file, self._events):
            with contextlib.suppress(OSError):
                part.close()

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self._path}: {error.strerror or error}; free space there or choose another directory with "
            "--output DIR"
        )


def _truncate_after(path: Path, step: int) -> None:
    """Keeps the leading whole lines of steps up to `step`."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n") or _step_of(line) > step:
                break
            kept += len(line)
        file.truncate(kept)


def _step_of(line: bytes) -> float:
    """The line's step; infinity for a line that is not one of ours, which ends what is kept."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class _Events:
    """TensorBoard scalars. A resumed run tells the reader to forget later steps of the earlier part."""

    def __init__(self, directory: Path, resume_from: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = Event
        self._summary: Any = Summary
        self._writer = EventFileWriter(str(directory), flush_secs=FLUSH_SECONDS)
        restart = Event(wall_time=time.time(), step=resume_from + 1)
        restart.session_log.status = SessionLog.START
        self._writer.add_event(restart)

    def write(self, step: int, now: float, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=now, step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()
