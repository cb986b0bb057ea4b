"""Ctrl-C and SIGTERM outside of the event loop: both raise KeyboardInterrupt until the outcome of a run stands.

Ray sets a handler of its own, which ends the process with code 15. An interrupt that arrives while a run is taken down
must not change what its summary says.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from launch.output.process import supervisor

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_settled = False
_missed = False
"""Whether an interrupt came after the outcome."""


def heed() -> None:
    """Let both signals raise KeyboardInterrupt in this process; one that is ignored stays so, as in a shell's `&`."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def heeding() -> Iterator[None]:
    """Heed both signals until its end, or until `settle`. Raises KeyboardInterrupt if one waits since the last run."""
    global _settled, _missed
    missed, _settled, _missed = _missed, False, False
    supervisor.tell("settled", False)
    if missed:
        raise KeyboardInterrupt
    with keeping():
        heed()
        yield


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Set both handlers back at its end, whatever was set within."""
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def settle() -> None:
    """Let interrupts wait from now on: the outcome stands, and what is left takes seconds."""
    global _settled
    _settled = True
    supervisor.tell("settled", True)


def _interrupt(number: int, frame: Any) -> None:
    global _missed
    if not _settled:
        raise KeyboardInterrupt
    _missed = True
