"""Ray's own processes on this host, as the watchdog sees them: Ray itself would wait for a stopped one."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

NAMES = {"raylet": "Ray's raylet", "gcs_server": "Ray's GCS"}
"""By the name of the program."""
_ENDED, _STOPPED = "ZX", "Tt"
"""States of /proc of a process that nobody waited for yet, and of one that a signal or a debugger stopped."""


class RayProcess:
    """One of them. It has no sign of life of its own, so its state is asked of the kernel."""

    def __init__(self, name: str, process: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.process = name, process
        self._clock = clock
        self._since: float | None = None

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        known = _state(self.process)
        return known is None or known[0] in _ENDED

    def stopped_seconds(self) -> float:
        """Return for how long it has been seen stopped; 0 if it runs or is gone."""
        known = _state(self.process)
        if known is None or known[0] not in _STOPPED:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        return 0.0 if self._since is None else self._clock() - self._since

    def kill(self) -> None:
        """End it; Ray then ends this process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)


def ray_processes(parent: int | None = None) -> list[RayProcess]:
    """Return those that `parent`, by default this process, has started; none on systems without /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (entry / "comm").read_text(errors="replace").strip()
            if program in NAMES and (known := _state(int(entry.name))) and known[1] == (parent or os.getpid()):
                found.append(RayProcess(NAMES[program], int(entry.name)))
    return found


def _state(process: int) -> tuple[str, int] | None:
    """Return a process's state and parent; None if it is gone."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return state, int(parent)
