"""Ray's own processes on this host, as the watchdog sees them: Ray itself would wait for a stopped one."""

import contextlib
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from actors.errors import ray_logs
from actors.foreign.text import many

RAYLET = "Ray's raylet"
NAMES = {"raylet": RAYLET, "gcs_server": "Ray's GCS"}
"""Ray's own processes, by the name of the program."""
_STARTING = re.compile(r"ray::(\w+)\.__init__")
"""Title of a worker while it makes an actor."""
_ENDED, _STOPPED = "ZX", "Tt"
"""States of /proc of a process that nobody waited for yet, and of one that a signal or a debugger stopped."""


def no_ray(address: str | None, why: str, *, runtime_env: bool) -> str:
    """Return an error text: Ray could not be joined at `address`, or did not start here if `address` is None.

    `runtime_env`: the run sets one. A busy machine takes longer to start than Ray waits.
    """
    if address is not None:
        checked = "the address and cluster.runtime_env are" if runtime_env else "the address is"
        return (
            f"Ray could not be joined at {address}: {why}; check that the cluster runs and {checked} right, or set "
            "cluster.address=local"
        )
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    step = f"read its logs in {ray_logs()}"
    if load > cores:
        step = f"try again when this machine, of {many(cores, 'core')} and with a load of {load:.0f}, is less busy"
    return f"Ray could not be started: {why}; {'check cluster.runtime_env, or ' * runtime_env}{step}"


class RayProcess:
    """One of them. It has no sign of life of its own, so its state is asked of the kernel."""

    def __init__(
        self, name: str, process: int, clock: Callable[[], float] = time.monotonic, *, vital: bool = True
    ) -> None:
        self.name, self.process = name, process
        self.vital = vital  # whether the run ends with it
        self._clock = clock
        self._since: float | None = None

    @property
    def gone(self) -> bool:
        """Return whether the process has ended."""
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
        """End it. If it is one of Ray's own, Ray then ends this process."""
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


@contextlib.contextmanager
def without_notice_of_cpu_time() -> Iterator[None]:
    """Let processes that are started within run to the hard limit of CPU time, not only to the soft one.

    At the soft limit the kernel sends SIGXCPU, at which a run saves and Ray's workers die.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Keep this process's signal handlers while Ray starts, and call them at the end for each signal of that time.

    Ray puts a handler of its own in place of the one for SIGTERM. Its exception, as any other, is lost if the signal
    arrives in a callback, such as Python's at a fork: the run would go on. For the main thread only.
    """
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    arrived = b""
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handlers[signal.SIGTERM])
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(reading, 4096)
        os.close(reading)
        os.close(writing)
    for number in dict.fromkeys(arrived):
        if callable(handler := handlers[number]):
            handler(number, None)


class StartingActors:
    """Workers of one raylet that are making an actor: they answer nothing before it is made."""

    def __init__(self, raylet: int) -> None:
        self._raylet = raylet
        self._known: dict[int, RayProcess] = {}

    def now(self) -> list[RayProcess]:
        """Look for them; a worker that was there before is the same object."""
        found = {}
        for process in _children(self._raylet):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{process}/cmdline").read_text(errors="replace").partition("\0")[0]
                if starting := _STARTING.fullmatch(title):
                    new = RayProcess(f"{starting[1]}, which is starting (process {process}),", process, vital=False)
                    found[process] = self._known.get(process, new)
        self._known = found
        return list(found.values())


def _children(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _state(process: int) -> tuple[str, int] | None:
    """Return a process's state and parent; None if it is gone, `?` if this process may open no more files."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return "?", 0
    return state, int(parent)
