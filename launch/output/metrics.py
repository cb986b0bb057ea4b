"""Metrics of a run over its updates: `metrics.jsonl` for scripts and `tensorboard/` for people, with the same numbers.

TensorBoard has the field's names for them (`TAGS`); scripts rely on those of the file, so add, never rename. Uses
TensorBoard's own event format, so that the process needs no torch.
"""

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.errors import writing, writing_remedy

TENSORBOARD = "tensorboard"
_EVENTS_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")

TAGS = {
    "loss": "loss/train",
    "seconds": "time/update_seconds",
    "score_mean": "reward/mean",
    "margin": "reward/margin",
    "accuracy": "reward/accuracy",
    "player_preference": "reward/preference",
    "advantage_std": "advantage/std",
    "value_error": "advantage/value_error",
    "kl_players": "kl/policy",
    "kl_chosen": "kl/chosen",
    "kl_rejected": "kl/rejected",
    "kl_anchor": "kl/anchor",
    "staleness_max": "staleness/max",
    "staleness_mean": "staleness/mean",
    "opponent_staleness_max": "staleness/opponent_max",
    "opponent_staleness_mean": "staleness/opponent_mean",
    "behaviour_kl": "off_policy/kl",
    "log_ratio_max": "off_policy/log_ratio_max",
    "log_ratio_mean": "off_policy/log_ratio_mean",
    "opponent_log_ratio_max": "off_policy/opponent_log_ratio_max",
    "player_ess": "importance_weights/player_ess",
    "player_truncated": "importance_weights/player_clip_fraction",
    "opponent_ess": "importance_weights/opponent_ess",
    "opponent_truncated": "importance_weights/opponent_clip_fraction",
    "opponent_weight_mean": "importance_weights/opponent_mean",
    "completion_tokens_mean": "completions/mean_length",
    "finished_share": "completions/finished_share",
    "tie_share": "batch/tie_share",
    "pairs": "batch/pairs",
    "ties": "batch/ties",
    "games": "batch/games",
    "tokens": "batch/tokens",
    "padded_tokens": "batch/padded_tokens",
    "outside_band": "divergence/updates_outside",
    "win_rate": "eval/win_rate",
    "win_rate_low": "eval/win_rate_low",
    "win_rate_high": "eval/win_rate_high",
    "reward": "eval/reward",
    "kl": "eval/kl",
    "exploitability": "eval/exploitability",
    "exact_kl": "eval/exact_kl",
    "exact_preference": "eval/exact_preference",
}
"""TensorBoard's name of each name in `metrics.jsonl`; others are the same in both."""


def tag(name: str) -> str:
    """Return TensorBoard's name of a metric."""
    held_out = name.removeprefix("held_out_")
    return f"eval/{held_out}" if held_out != name else TAGS.get(name, name)


def numbers(record: Any) -> dict[str, float]:
    """Return the numbers of a dataclass by name, flags as 0 or 1, without those that are None."""
    return {key: float(value) for key, value in asdict(record).items() if isinstance(value, int | float)}


class MetricsWriter:
    """Append one line, and one set of TensorBoard scalars, per step.

    A resumed run continues after step `resume_from` (0: a fresh run): later lines of an earlier part are removed, as is
    a line cut short by a crash. Constructor and `write` raise RunError if the file of lines cannot be written.
    TensorBoard only watches: if its files cannot be written, `say` reports it once, and no more of them are written.
    """

    def __init__(
        self, directory: str | Path, resume_from: int = 0, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._path, self._say = Path(directory) / "metrics.jsonl", say
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.last = truncate_after(self._path, resume_from)
            """The newest value of each name that was kept; empty for a fresh run."""
            self._file = self._path.open("a", encoding="utf-8")
        self._start = time.time() - time.monotonic()
        self._events: _Events | None = None
        with self._showing():
            self._events = _Events(self._path.parent / TENSORBOARD, resume_from, self._now())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line `{"step": ..., "time": seconds since 1970, NAME: value, ...}`.

        The clock is read once, at the start: its jumps are no part of the time between two lines. JSON has no NaN or
        infinity: such a value is null in the line, and unchanged in TensorBoard.
        """
        now = self._now()
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        with self._writing():
            self._file.write(json.dumps({"step": step, "time": now, **finite}) + "\n")
            self._file.flush()
        with self._showing():
            if self._events is not None:
                self._events.write(step, now, values)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text of `step` to TensorBoard alone."""
        with self._showing():
            if self._events is not None:
                self._events.write_text(step, self._now(), name, text)

    def close(self) -> None:
        """Close both files; may be called again. A disk error is not raised here: `write` has raised it."""
        for part in (self._file, self._events):
            with contextlib.suppress(OSError):
                if part is not None:
                    part.close()

    def _now(self) -> float:
        return self._start + time.monotonic()

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        """Leave out what TensorBoard would show if its files cannot be written, and say so."""
        try:
            yield
        except OSError as error:
            events, self._events = self._events, None
            if events is not None:
                with contextlib.suppress(OSError):
                    events.close()
            self._say(
                f"warning: cannot write {self._path.parent / TENSORBOARD}: {error.strerror or error}; the run goes on "
                f"and {self._path.name} has all numbers; {writing_remedy(error)}, and a resume writes there again"
            )

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._path, "then use --resume, or choose another directory with --output DIR")


def truncate_after(path: Path, step: int) -> dict[str, Any]:
    """Remove the lines of steps after `step`; return the newest value of each name in those before.

    A damaged line is kept if a whole one of such a step follows it: what comes after it is not lost with it.
    """
    newest: dict[str, Any] = {}
    if not path.exists():
        return newest
    kept = end = 0
    with path.open("rb+") as file:
        for line in file:
            end += len(line)
            values = _values_of(line)
            if not line.endswith(b"\n") or (values and values["step"] > step):
                break
            kept = end if values else kept
            newest |= values
        file.truncate(kept)
    return newest


def _values_of(line: bytes) -> dict[str, Any]:
    """Return the line's values; none for a damaged line."""
    try:
        values = dict(json.loads(line))
        return values | {"step": float(values["step"])}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return {}


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of a file that a run writes line by line, and how many other lines it has. Raises OSError."""
    rows: list[dict[str, Any]] = []
    damaged = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                damaged += 1
    return rows, damaged


def damaged_lines(name: object, count: int) -> str:
    """Say that lines of a file were left out, for they cannot be read."""
    told = "1 line that cannot be read and is" if count == 1 else f"{count:,} lines that cannot be read and are"
    return f"{name} has {told} left out"


class _Events:
    """TensorBoard scalars. A resumed run makes the reader discard later steps of the earlier part. Raises OSError.

    TensorBoard's own writer would write in a thread of its own, which reports a full disk with a traceback.
    """

    def __init__(self, directory: Path, resume_from: int, now: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        self._summary: Any = Summary
        directory.mkdir(exist_ok=True)
        self._writer = RecordWriter(_next_events_file(directory, now).open("xb"))
        self._add(Event(wall_time=now, file_version="brain.Event:2"))
        restart = Event(wall_time=now, step=resume_from + 1)
        restart.session_log.status = SessionLog.START
        self._add(restart)

    def write(self, step: int, now: float, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=tag(name), simple_value=value) for name, value in values.items()]
        self._add(self._event(wall_time=now, step=step, summary=self._summary(value=scalars)))

    def write_text(self, step: int, now: float, name: str, text: str) -> None:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        value = self._summary.Value(
            tag=name, tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8", "replace")])
        )
        value.metadata.plugin_data.plugin_name = "text"
        self._add(self._event(wall_time=now, step=step, summary=self._summary(value=[value])))

    def close(self) -> None:
        self._writer.close()

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _next_events_file(directory: Path, now: float) -> Path:
    """Return the name of a new file of events, after all others: TensorBoard reads them in the order of their names.

    Names hold the second of their start; the clock may have been set back since the last one.
    """
    seconds = [int(found[1]) for path in directory.iterdir() if (found := _EVENTS_FILE.match(path.name))]
    second = max([int(now), *(each + 1 for each in seconds)])
    return directory / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
