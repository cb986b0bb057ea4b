"""Turn signals into requests to a run; outside the event loop into KeyboardInterrupt, until the run has an outcome.

Ray sets a handler of its own, which ends the process with code 15. An interrupt that arrives while a run is taken down
must not change its summary.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, Literal

from launch.output.process import supervisor

NUMBERS = supervisor.FORWARDED
WARNINGS = (signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
"""Warnings that an end is near; a limit of CPU time sends one every second. They never end a run at once."""
SAME_SECONDS = 1.0
"""Time within which two signals are one: the kernel sends one for each thread of a supervisor that was killed, and a
terminal that closes one more than its shell. Two Ctrl-C are two."""
_settled = False
_missed = False
"""True if an interrupt came after the outcome."""
_raised = False
"""True if an interrupt was raised and did not end the run: a package that is being imported may have caught it."""


class Requests:
    """The request behind each signal to a run in the event loop. A state machine without a clock."""

    def __init__(self) -> None:
        self._stopped = False
        self._asked: tuple[int, float] | None = None  # the newest that is no warning

    def hear(self, number: int, now: float) -> Literal["stop", "repeat", "end"] | None:
        """Return `stop`: save and end; `repeat`: say again that the run does; `end`: end at once; None: nothing new."""
        first, self._stopped = not self._stopped, True
        if number in WARNINGS or (number == signal.SIGHUP and not first):  # after Ctrl-C the terminal may be closed
            return "stop" if first else None
        before, self._asked = self._asked, (number, now)
        if first:
            return "stop"
        if before is None:
            return "repeat"
        twice = before[0] == number == signal.SIGINT
        return "end" if twice or now - before[1] >= SAME_SECONDS else None


def heed() -> None:
    """Let them raise KeyboardInterrupt in this process; one that is ignored stays so, as in a shell's `&`."""
    for number in heard():
        signal.signal(number, _interrupt)


def heard() -> list[signal.Signals]:
    """Return the signals that this process does not ignore."""
    return [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Heed them until its end, or until `settle`. Raises KeyboardInterrupt if one waits since the last run."""
    global _settled, _missed, _raised
    missed, _settled, _missed = _missed, False, False
    supervisor.tell("settled", False)
    try:
        check()
        if missed:
            raise KeyboardInterrupt
        with keeping():
            heed()
            yield
    finally:
        _raised = False


def check() -> None:
    """Raise KeyboardInterrupt again if somebody has caught the last one."""
    if _raised:
        raise KeyboardInterrupt


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Set all handlers back at its end, whatever was set within."""
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)


def settle() -> None:
    """Let interrupts wait from now on: the outcome stands, and what is left takes seconds."""
    global _settled
    _settled = True
    supervisor.tell("settled", True)


def _interrupt(number: int, frame: Any) -> None:
    global _missed, _raised
    if not _settled:
        _raised = True
        raise KeyboardInterrupt
    _missed = True
