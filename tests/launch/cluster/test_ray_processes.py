"""Ray's own processes: a stopped one is noticed by its state."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors.errors import ray_logs
from launch.cluster.ray_processes import RayProcess, StartingActors, no_ray, own_handlers, ray_processes

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


def test_a_process_is_not_taken_for_dead_because_no_more_files_may_be_opened(raylet: subprocess.Popen[bytes]) -> None:
    watched, limits = RayProcess("Ray's raylet", raylet.pid), resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.open(os.devnull, os.O_RDONLY)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, limits[1]))
    try:
        seen = watched.gone, watched.stopped_seconds()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen == (False, 0.0)


STARTS_TWO = """
import subprocess, sys, time
for title in ("ray::RemoteGenerator.__init__", "ray::RemoteGenerator"):
    subprocess.Popen([title, "-c", "import time; time.sleep(600)"], executable=sys.executable)
print(flush=True)
time.sleep(600)
"""


def test_an_actor_that_is_starting_is_found_by_its_worker_s_title_and_kept() -> None:
    raylet = subprocess.Popen([sys.executable, "-c", STARTS_TWO], stdout=subprocess.PIPE)
    assert raylet.stdout is not None
    raylet.stdout.readline()
    starting = StartingActors(raylet.pid)
    try:
        (actor,) = wait_for(starting.now)
        assert re.fullmatch(r"RemoteGenerator, which is starting \(process \d+\),", actor.name)
        assert not actor.vital
        assert starting.now()[0] is actor, "it knows since when it is stopped"
        actor.kill()
        wait_for(lambda: actor.gone)
        assert starting.now() == []
    finally:
        for child in subprocess.run(["pgrep", "-P", str(raylet.pid)], capture_output=True, text=True).stdout.split():
            os.kill(int(child), signal.SIGKILL)
        raylet.kill()
        raylet.communicate()
    assert starting.now() == []


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_what_a_run_starts_has_the_hard_limit_of_cpu_time_and_the_run_keeps_its_soft_one() -> None:
    """SIGXCPU, at which a run saves, ended Ray's workers first."""
    script = """
import resource, subprocess, sys
from launch.cluster.ray_processes import without_notice_of_cpu_time
own = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"
resource.setrlimit(resource.RLIMIT_CPU, (5000, 9000))
with without_notice_of_cpu_time():
    subprocess.run([sys.executable, "-c", own], check=True)
print(resource.getrlimit(resource.RLIMIT_CPU))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == ["(9000, 9000)", "(5000, 9000)"]


@pytest.mark.parametrize(
    ("load", "step"),
    [
        (9.6, "try again when this machine, of 2 cores and with a load of 10, is less busy"),
        (0.4, f"read its logs in {ray_logs()}"),
    ],
)
def test_a_ray_that_does_not_start_here_is_not_blamed_on_an_address(
    load: float, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray waits 30 s for itself; on a busy machine the demo was told to set cluster.address=local, which it had."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert no_ray(None, "timed out", runtime_env=False) == f"Ray could not be started: timed out; {step}"
    told = no_ray(None, "timed out", runtime_env=True)
    assert told == f"Ray could not be started: timed out; check cluster.runtime_env, or {step}"


def test_a_ray_that_does_not_answer_is_told_by_its_address() -> None:
    told = no_ray("head:6379", "refused", runtime_env=True)
    assert told.startswith("Ray could not be joined at head:6379: refused; check that the cluster runs and the address")
    assert told.endswith("and cluster.runtime_env are right, or set cluster.address=local")


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that this process's own handlers have heard."""
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_whose_exception_is_lost_while_ray_starts_reaches_the_own_handler(heard: list[int]) -> None:
    """SIGTERM came while Python forked: Ray's handler raised SystemExit in a callback, and the run went on."""
    own = signal.getsignal(signal.SIGTERM)
    with own_handlers():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is own


def test_without_a_signal_no_handler_is_called(heard: list[int]) -> None:
    with own_handlers():
        pass
    assert heard == []


def test_signals_heard_within_are_not_repeated_if_ray_does_not_start(heard: list[int]) -> None:
    def start() -> None:
        with own_handlers():
            os.kill(os.getpid(), signal.SIGUSR1)
            raise RuntimeError("no Ray")

    with pytest.raises(RuntimeError, match="no Ray"):
        start()
    assert heard == [signal.SIGUSR1]
    assert signal.set_wakeup_fd(-1) == -1
