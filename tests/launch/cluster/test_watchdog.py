"""Actors that live and do nothing: who is told of, when, and what is done about them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors.errors import RunError
from actors.records import Pulse
from launch.cluster import watchdog as module
from launch.cluster.ray_processes import RayProcess
from launch.cluster.watchdog import Watchdog, stacks_of
from launch.settings.run import WatchdogConfig
from tests.launch.run.pools.serving import heard

ELSEWHERE = Pulse("another-host", 7)
SUCCESSOR = Pulse("another-host", 8)


class Actor:
    """Answers as `script` says, once per sign of life, and the last one for ever: a pulse, an error, or ... (never)."""

    def __init__(self, *script: Any, vital: bool = False) -> None:
        self.name, self.vital = "generator-3", vital
        self.script = list(script)
        self.kills = 0
        self.restarts = 0

    async def pulse(self) -> Pulse:
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if answer is ...:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def kill(self) -> None:
        self.kills += 1
        self.script = [ELSEWHERE]

    def silent_restarts(self) -> int:
        return self.restarts


BESIDE = Watchdog._watch_beside


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], list[str]]]:
    """Watch an actor during `work`, in hundredths of the real times."""
    monkeypatch.setattr(module, "PULSE_SECONDS", 0.02)
    # At this pace a busy machine makes any process late.
    monkeypatch.setattr(module, "LATE_SECONDS", 60.0)
    monkeypatch.setattr(Watchdog, "_watch_beside", lambda self, ended: None)
    monkeypatch.setattr(module, "stacks_of", lambda pulse: "its stacks")

    def run(
        actor: Actor,
        work: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0.5),
        tell: Any = 0.1,
        end: Any = None,
        start: Any = 600.0,
    ) -> tuple[list[str], list[str]]:
        said: list[str] = []
        records: list[str] = []
        config = WatchdogConfig(warn_seconds=tell, end_seconds=end, start_seconds=start)

        async def working() -> Any:
            return await work()

        asyncio.run(Watchdog([actor], config, said.append, records.append).guard(working()))
        return said, records

    return run


def test_an_actor_that_answers_is_never_told_of(watch: Any) -> None:
    assert watch(Actor(ELSEWHERE)) == ([], [])


def test_silence_is_told_once_with_process_and_stacks(watch: Any) -> None:
    (said,), (record,) = watch(Actor(ELSEWHERE, ...))
    assert said == "warning: generator-3 has not answered for 0 s (process 7 on another-host)"
    assert record == "generator-3 has not answered for 0 s, process 7 on another-host\nits stacks"


def test_an_actor_that_answers_again_is_told_of(watch: Any) -> None:
    async def stopped() -> None:
        await asyncio.sleep(0.3)

    class Stopped(Actor):
        async def pulse(self) -> Pulse:
            if self.script:
                return self.script.pop()
            if not self.kills:
                self.kills = 1
                await stopped()
            return ELSEWHERE

    said, _ = watch(Stopped(ELSEWHERE))
    assert [text.partition(" for ")[0] for text in said] == [
        "warning: generator-3 has not answered",
        "generator-3 goes on",
    ]


def test_a_start_has_no_limit_and_neither_has_a_restart(watch: Any) -> None:
    assert watch(Actor(...), end=0.2) == ([], [])
    assert watch(Actor(ELSEWHERE, RuntimeError("unavailable"), ...), end=0.2) == ([], [])


def test_each_restart_is_said_once_whether_the_actor_answers_again_or_still_loads(watch: Any) -> None:
    """Ray sends a judge's calls to the next process, and a judge model that found no memory died unseen."""

    class Restarted(Actor):
        async def pulse(self) -> Pulse:
            answer = await super().pulse()
            self.restarts = 2 * (answer == SUCCESSOR)
            return answer

    for script in ((ELSEWHERE, RuntimeError("unavailable"), SUCCESSOR), (ELSEWHERE, SUCCESSOR)):
        (said,), _ = watch(Restarted(*script))
        assert said.startswith("generator-3 died and is being restarted; ")
    loading = Actor(...)
    loading.restarts = 1
    (said,), _ = watch(loading)
    assert said.startswith("generator-3 died and is being restarted; ")


def test_a_start_that_lasts_is_told_once_and_not_ended(watch: Any) -> None:
    actor = Actor(...)
    (said,), records = watch(actor, end=0.2, start=0.1)
    assert said.startswith("warning: generator-3 has been starting for 0 s: it waits for room in the cluster, ")
    assert (actor.kills, records) == (0, [])
    assert watch(Actor(...), start=None) == ([], [])


def test_an_actor_on_another_host_is_killed_through_ray_after_the_second_limit(watch: Any) -> None:
    actor = Actor(ELSEWHERE, ...)
    said, _ = watch(actor, end=0.2)
    assert actor.kills == 1
    assert said[0].endswith("(process 7 on another-host); after 0.2 s it is ended (watchdog.end_seconds)")
    assert said[1].startswith("generator-3 has not answered for 0 s and was ended")
    assert len(said) == 2


def test_a_process_that_answers_without_progress_is_ended_too(watch: Any) -> None:
    waits = iter([0.0, 0.0, 0.12, 0.15, 0.3])
    said, _ = watch(Actor(lambda: Pulse("another-host", 7, next(waits, 0.0))), end=0.25)
    assert [text.partition(" for ")[0].removeprefix("warning: ") for text in said] == 2 * [
        "generator-3 has made no progress on its work"
    ]
    assert said[1].endswith("and was ended (process 7 on another-host)")


def test_a_learner_s_rank_that_stays_silent_ends_the_run_and_its_work(watch: Any) -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(RunError, match=r"generator-3 has not answered for 0 s and was ended .*; hangs.txt has its"):
        watch(Actor(ELSEWHERE, ..., vital=True), work, end=0.2)
    assert ended == [True]


def test_an_error_of_work_that_is_given_up_is_not_printed_after_the_cause(watch: Any) -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("its connections broke") from None

    with heard(), pytest.raises(RunError, match="generator-3 has not answered"):
        watch(Actor(ELSEWHERE, ..., vital=True), fails_when_cancelled, end=0.2)


def test_the_death_of_ray_s_own_process_is_the_cause_of_what_its_actors_say(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    monkeypatch.setattr(module, "ray_processes", lambda: [RayProcess("Ray's raylet", process.pid)])
    process.wait()

    async def work() -> None:
        raise RunError("a learner process died: Socket closed")

    why = rf"^Ray's raylet \(process {process.pid}\) died, and the run's actors with it; .* with --resume$"
    with pytest.raises(RunError, match=why) as told:
        watch(Actor(ELSEWHERE), work)
    assert str(told.value.__cause__) == "a learner process died: Socket closed"
    monkeypatch.setattr(module, "ray_processes", list)
    with pytest.raises(RunError, match=r"^a learner process died: Socket closed$"):
        watch(Actor(ELSEWHERE), work)


class Stopped:
    """A process of Ray's that is seen stopped for so many seconds, one look after the other, and then runs."""

    name, process, gone, vital = "Ray's raylet", 7, False, True

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.kills = 0

    def stopped_seconds(self) -> float:
        return self.seconds.pop(0) if self.seconds else 0.0

    def kill(self) -> None:
        self.kills += 1


@pytest.mark.parametrize(
    ("seconds", "end", "said", "kills"),
    [
        ((0.0, 0.05, 0.08), None, [], 0),
        (
            (0.0, 0.14, 0.3),
            None,
            ["warning: Ray's raylet was stopped 0 s ago (`kill -CONT 7` lets it go on)", "Ray's raylet goes on"],
            0,
        ),
        (
            (0.14, 0.3),
            0.25,
            [
                "warning: Ray's raylet was stopped 0 s ago (`kill -CONT 7` lets it go on); after 0.25 s it is ended "
                "(watchdog.end_seconds)",
                "Ray's raylet was ended after 0 s; the run ends with it",
                "Ray's raylet goes on",
            ],
            1,
        ),
    ],
)
def test_a_stopped_process_of_ray_s_is_told_of_and_ended(
    watch: Any,
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, ...],
    end: float | None,
    said: list[str],
    kills: int,
) -> None:
    process = Stopped(*seconds)
    monkeypatch.setattr(module, "ray_processes", lambda: [process])
    monkeypatch.setattr(Watchdog, "_watch_beside", BESIDE)
    monkeypatch.setattr(Watchdog, "_waits", lambda self, seconds, told: None)
    assert watch(Actor(ELSEWHERE), end=end) == (said, [])
    assert process.kills == kills


def test_a_stopped_actor_that_is_starting_is_told_of_and_ended(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Stopped(0.14, 0.3)
    process.name, process.vital = "RemoteGenerator, which is starting (process 7),", False
    raylet = Stopped()
    monkeypatch.setattr(module, "ray_processes", lambda: [raylet])
    monkeypatch.setattr(module.StartingActors, "now", lambda self: [process] * bool(process.seconds))
    monkeypatch.setattr(Watchdog, "_watch_beside", BESIDE)
    monkeypatch.setattr(Watchdog, "_waits", lambda self, seconds, told: None)
    told = watch(Actor(ELSEWHERE), end=0.25)[0]
    assert told[0].startswith("warning: RemoteGenerator, which is starting (process 7), was stopped 0 s ago (`kill")
    assert told[1].endswith("(process 7), was ended after 0 s; it starts again while restarts are left")
    assert (process.kills, raylet.kills) == (1, 0)


def test_a_call_in_which_the_driver_waits_is_told_of_with_its_stack(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call into Ray blocks the event loop while the raylet is stopped."""
    monkeypatch.setattr(Watchdog, "_watch_beside", BESIDE)

    async def work() -> None:
        await asyncio.sleep(0.1)
        _a_call_that_lasts()
        await asyncio.sleep(1.0)

    said, (record, *_) = watch(Actor(ELSEWHERE), work, tell=0.9)
    said = [text for text in said if "driver" in text]
    assert re.fullmatch(r"warning: the driver has waited in one call for [12] s; hangs\.txt says in which", said[0])
    assert said[-1] == "the driver goes on"
    assert "_a_call_that_lasts" in record


def _a_call_that_lasts() -> None:
    time.sleep(2.0)


def test_an_actor_is_not_ended_for_what_the_driver_waited(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer came, and could not be read."""
    monkeypatch.setattr(module, "LATE_SECONDS", 0.04)

    class Slow(Actor):
        async def pulse(self) -> Pulse:
            await asyncio.sleep(0.03)  # longer than a pulse's pause, so that the call finds it under way
            return await super().pulse()

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.1)
            time.sleep(0.5)
        await asyncio.sleep(0.2)

    actor = Slow(ELSEWHERE)
    said, _ = watch(actor, work, tell=0.3, end=0.4)
    assert actor.kills == 0
    assert [text for text in said if "generator" in text] == []


def test_a_stopped_process_of_this_host_is_ended_by_the_kernel(watch: Any) -> None:
    """A stopped process would not hear Ray."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    os.kill(process.pid, signal.SIGSTOP)
    try:
        watch(Actor(Pulse(socket.gethostname(), process.pid), ...), end=0.2)
        assert process.wait(timeout=5) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def test_without_a_limit_nobody_is_watched(watch: Any) -> None:
    assert watch(Actor(ELSEWHERE, ...), tell=None, end=0.1) == ([], [])


def test_the_work_s_own_error_and_result_pass_through(watch: Any) -> None:
    async def fails() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        watch(Actor(ELSEWHERE), fails)


def test_a_sign_of_life_names_this_process() -> None:
    assert Pulse.of_this_process(2.5) == Pulse(socket.gethostname(), os.getpid(), 2.5)


def test_stacks_are_those_of_both_processes_or_say_where_to_look() -> None:
    told = stacks_of(ELSEWHERE)
    assert "run `py-spy dump --pid 7` on another-host" in told
    assert "in test_stacks_are_those" in told
