"""Ray's own processes: a stopped one is noticed by its state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from launch.cluster.ray_processes import RayProcess, ray_processes

NAMED = "open('/proc/self/comm', 'w').write('raylet'); print(flush=True); import time; time.sleep(600)"


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """A program of that name, which sleeps."""
    process = subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_only_the_processes_that_this_one_started_are_watched(raylet: subprocess.Popen[bytes]) -> None:
    assert [each.name for each in ray_processes()] == ["Ray's raylet"]
    assert ray_processes(parent=raylet.pid) == []


def test_a_stopped_process_says_since_when_until_it_goes_on(raylet: subprocess.Popen[bytes]) -> None:
    times = iter([100.0, 100.0, 107.5])
    watched = RayProcess("Ray's raylet", raylet.pid, clock=lambda: next(times))
    assert watched.stopped_seconds() == 0.0
    os.kill(raylet.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, raylet.pid, os.WSTOPPED | os.WNOWAIT)
    assert [watched.stopped_seconds() for _ in range(2)] == [0.0, 7.5]
    os.kill(raylet.pid, signal.SIGCONT)
    os.waitid(os.P_PID, raylet.pid, os.WCONTINUED | os.WNOWAIT)
    assert watched.stopped_seconds() == 0.0
    assert not watched.gone
    watched.kill()
    os.waitid(os.P_PID, raylet.pid, os.WEXITED | os.WNOWAIT)
    assert watched.gone, "though nobody has waited for it"
    raylet.wait()
    assert watched.gone
    assert watched.stopped_seconds() == 0.0
    watched.kill()
