"""Standard streams that cannot end or delay a run. Must not import anything heavy.

Their reader may have died, as a `tee` does of the same Ctrl-C. That of stderr may also have stopped reading, as a
terminal behind a broken connection, or be a file on a full disk. Only what is said is lost then, never the run.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections import deque
from typing import Any

from actors.foreign.text import shown

MOST_WAITING = 1 << 20
"""Bytes that wait for a reader; more are left out."""
FLUSH_SECONDS = 0.5
"""Longest wait for a reader; none before it has read again."""


def install() -> None:
    """Put /dev/null in place of standard streams that are closed, and streams of this module in place of the others.

    A file that is opened later would have the number of a closed one, and get what libraries print.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = _text(sys.stdout, Deserted(1), at_once=os.isatty(1))
    sys.stderr = _text(sys.stderr, Unfailing(2), at_once=True)


def _text(old: Any, raw: io.RawIOBase, *, at_once: bool) -> io.TextIOWrapper:
    """Return a stream that writes as `old` does, which is None if it was closed."""
    with contextlib.suppress(AttributeError, OSError):
        old.flush()
    encoding, errors = getattr(old, "encoding", "utf-8"), getattr(old, "errors", "backslashreplace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=at_once)


def finish(code: int) -> int:
    """Write what waits in standard output and return `code`; if a success cannot be written, say so and return 1."""
    try:
        sys.stdout.flush()
    except OSError as error:
        why = f"standard output cannot be written: {error.strerror}; free space, or write to another place"
        if not code:
            print(shown(f"offbeat: error: {why}"), file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # for what still waits
        if nowhere != 1:
            os.close(nowhere)
        return code or 1
    return code


class Deserted(io.RawIOBase):
    """A descriptor whose reader may go away: then nobody misses what is written. Other errors are raised."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        text = bytes(data)
        with contextlib.suppress(BrokenPipeError):
            self._put(text)
        return len(text)

    def _put(self, text: bytes) -> None:
        while text:
            text = text[os.write(self._descriptor, text) :]


class Unfailing(Deserted):
    """One that raises nothing. A thread of its own writes, so that nobody else waits for a reader that has stopped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._process = os.getpid()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._stalled = False  # since the last flush that waited in vain
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="offbeat-stderr", daemon=True).start()

    def write(self, data: Any) -> int:
        """Take `data`, and wait a little until it is written; leave it out if too much waits already."""
        text = bytes(data)
        if os.getpid() != self._process:  # a fork has no such thread
            self._put(text)
            return len(text)
        with self._changed:
            if self._bytes + len(text) <= MOST_WAITING:
                self._waiting.append(text)
                self._bytes += len(text)
                self._changed.notify_all()
            if not self._stalled:
                self._stalled = not self._changed.wait_for(lambda: not self._bytes, FLUSH_SECONDS)
        return len(text)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = self._waiting.popleft()
            self._put(text)
            with self._changed:
                self._bytes -= len(text)
                self._stalled = False
                self._changed.notify_all()

    def _put(self, text: bytes) -> None:
        with contextlib.suppress(OSError):
            super()._put(text)
