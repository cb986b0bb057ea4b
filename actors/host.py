"""Count the cores that this process may use, and find TCP ports of this host. Standard library only."""

import contextlib
import errno
import os
import secrets
import socket
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_CANDIDATES = range(20_000, 32_768)
"""Ports above those of Ray's workers and below those that Linux gives to outgoing connections."""
_ATTEMPTS = 50


def free_port(host: str = "", port: int | None = None) -> int:
    """Return a port that a server can listen on at `host` (all interfaces if empty): `port` itself if given.

    Raises OSError if `port` is taken. Nothing reserves the port, but no outgoing connection takes it before the caller.
    """
    if port is not None:
        return _bound(host, port)
    for candidate in secrets.SystemRandom().sample(_CANDIDATES, _ATTEMPTS):
        try:
            return _bound(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def bound_socket(host: str, port: int = 0) -> socket.socket:
    """Return a socket bound to `host` alone, for a server; port 0 is any port. Raises OSError if the port is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As torch's servers do: connections of an earlier server may still be waiting for their end.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Count the cores of this process's affinity, within its control group's quota."""
    return within_quota(len(os.sched_getaffinity(0)), cgroup)


def within_quota(cores: int, cgroup: Path = CGROUP) -> int:
    """Return as many of `cores` as the control group may use: a whole number, at least 1."""
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Read how many cores' time the control group may use; None if it has no limit.

    Reads control groups of version 2, or of version 1, in which `-1` is no limit.
    """
    old = (cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us")
    for files in ((cgroup / "cpu.max",), old):
        with contextlib.suppress(OSError, ValueError):  # `max` is no number
            quota, period = (int(part) for file in files for part in file.read_text().split())
            if quota > 0 and period > 0:
                return quota / period
    return None


def threads(cores: int) -> int:
    """Return the number of threads: one for each of `cores`, but at most OMP_NUM_THREADS if that is set."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(given)) if given.isdecimal() and int(given) > 0 else cores
