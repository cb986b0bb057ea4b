"""The watchdog: notices actors that live and do nothing, warns, and ends those that stay silent.

Ray notices processes that die. One that was stopped, or whose engine hangs, would be waited for without end.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from actors.errors import RunError, ray_logs
from actors.records import Pulse
from launch.cluster.ray_processes import RAYLET, RayProcess, StartingActors, ray_processes
from launch.run.tasks import first_failure, give_up
from launch.settings.run import WatchdogConfig

T = TypeVar("T")
PULSE_SECONDS = 2.0
"""Pause between two signs of life of an actor."""
LATE_SECONDS = 2 * PULSE_SECONDS
"""Pause of this process itself after which an actor's silence counts anew: its answer may wait to be read."""
DUMP_SECONDS = 5.0
"""Longest time that py-spy may take for the stacks of one process."""


class Watched(Protocol):
    """An actor with a sign of life."""

    name: str
    vital: bool  # whether the run ends with it

    async def pulse(self) -> Pulse:
        """Return at once, whatever the actor is doing. May raise anything if its process died or starts again."""

    def kill(self) -> None:
        """End its process; it is restarted while restarts are left."""

    def silent_restarts(self) -> int:
        """Return how often its process was restarted and nobody else says so."""


class Watchdog:
    """Asks every actor for a sign of life every two seconds, from its first one on.

    A thread beside the event loop looks at Ray's own processes on this host and at the loop itself: a call into Ray
    waits for a stopped raylet, and the loop with it.

    `say` gets a sentence about an actor that has been silent, or without progress on its work, for `warn_seconds`,
    about one that is back or was restarted, and about one whose start lasts longer than `start_seconds`. After
    `end_seconds` of silence the actor is ended. `record` gets the stacks of a silent actor and of the driver as text.
    """

    def __init__(
        self,
        actors: Sequence[Watched],
        config: WatchdogConfig,
        say: Callable[[str], None],
        record: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._actors, self._config, self._clock = actors, config, clock
        self._say, self._record = say, record
        self._ray = ray_processes()
        self._starts = [StartingActors(each.process) for each in self._ray if each.name == RAYLET]
        self._ticked = clock()

    async def run(self) -> None:
        """Watch until cancelled. Raises RunError if an actor without which the run cannot go on stays silent."""
        ended = threading.Event()
        if self._config.warn_seconds:
            self._ticked = self._clock()
            threading.Thread(target=self._watch_beside, args=(ended,), name="watchdog", daemon=True).start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for actor in self._actors if self._config.warn_seconds else ():
                    tasks.create_task(self._watch(actor))
                while True:
                    self._ticked = self._clock()
                    await asyncio.sleep(PULSE_SECONDS / 2)
        finally:
            ended.set()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` and watch meanwhile. Raises as `work`, and RunError as `run`, which cancels it.

        If one of Ray's own processes is gone, its death is the cause, not what `work` says of its actors.
        """
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(self.run())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and (error := watching.exception()) is not None:
                raise first_failure(error)
            return await working
        except Exception as error:
            if lost := [f"{each.name} (process {each.process})" for each in self._ray if each.gone]:
                raise RunError(
                    f"{' and '.join(lost)} died, and the run's actors with it; Ray's logs are in "
                    f"{ray_logs()}; go on from the last checkpoint with --resume"
                ) from error
            raise
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _watch(self, actor: Watched) -> None:
        last: Pulse | None = None  # None while it starts, which takes as long as its model and the cluster's room take
        told, restarts = False, 0
        while True:
            asked, since = asyncio.ensure_future(actor.pulse()), self._clock()
            looked = since
            try:
                while not (await asyncio.wait({asked}, timeout=PULSE_SECONDS))[0]:
                    late, looked = self._clock() - looked > LATE_SECONDS, self._clock()
                    if late:  # this process waited elsewhere, and the answer may be here
                        since = looked
                    elif last is not None:
                        told = await self._silent(actor, last, looked - since, told)
                    else:
                        told, restarts = self._starting(actor, looked - since, told), self._restarts(actor, restarts)
                known, last = last, asked.result()
                if known is None or known.process != last.process:
                    restarts = self._restarts(actor, restarts)
                if last.stalled_seconds < (self._config.warn_seconds or 0.0) and told:
                    self._say(f"{actor.name} goes on")
                    told = False
                told = await self._silent(actor, last, last.stalled_seconds, told, "has made no progress on its work")
            except RunError:
                raise
            except Exception:  # its process died: others notice, and it starts again or never does
                last, told = None, False
            finally:
                give_up(asked)
            await asyncio.sleep(PULSE_SECONDS)

    def _restarts(self, actor: Watched, said: int) -> int:
        """Say that `actor` died, if it was restarted more than `said` times; return how often it was."""
        if (restarts := actor.silent_restarts()) > said:
            self._say(f"{actor.name} died and is being restarted; {ray_logs()} on its host says why")
        return restarts

    def _watch_beside(self, ended: threading.Event) -> None:
        """Warn of stopped processes of Ray, of stopped actors that are starting, and of a driver that waits."""
        told: set[str] = set()
        looked = self._clock()
        while not ended.wait(PULSE_SECONDS):
            if self._clock() - looked > LATE_SECONDS + DUMP_SECONDS:  # this very process was stopped
                self._ticked = self._clock()
            looked = self._clock()
            for each in (*self._ray, *(actor for starts in self._starts for actor in starts.now())):
                self._stopped(each, each.stopped_seconds(), told)
            self._waits(self._clock() - self._ticked, told)

    def _stopped(self, process: RayProcess, seconds: float, told: set[str]) -> None:
        if self._is_news(process.name, seconds, told):
            self._say(
                f"warning: {process.name} was stopped {seconds:.0f} s ago (`kill -CONT {process.process}` lets it go "
                f"on){self._then()}"
            )
        if self._config.end_seconds is not None and seconds >= self._config.end_seconds:
            then = "the run ends with it" if process.vital else "it starts again while restarts are left"
            self._say(f"{process.name} was ended after {seconds:.0f} s; {then}")
            process.kill()

    def _waits(self, seconds: float, told: set[str]) -> None:
        if self._is_news("the driver", seconds, told):
            self._say(f"warning: the driver has waited in one call for {seconds:.0f} s; hangs.txt says in which")
            self._record(f"the driver has waited in one call for {seconds:.0f} s\n{own_stacks()}")

    def _is_news(self, name: str, seconds: float, told: set[str]) -> bool:
        """Return whether to warn now of a stop of `seconds`; say when `name` continues after a warning."""
        lasts = self._config.warn_seconds is not None and seconds >= self._config.warn_seconds
        if lasts == (name in told):
            return False
        told ^= {name}
        if not lasts:
            self._say(f"{name} goes on")
        return lasts

    def _then(self) -> str:
        end = self._config.end_seconds
        return "" if end is None else f"; after {end:g} s it is ended (watchdog.end_seconds)"

    def _starting(self, actor: Watched, seconds: float, told: bool) -> bool:
        limit = self._config.start_seconds
        if told or limit is None or seconds < limit:
            return told
        self._say(
            f"warning: {actor.name} has been starting for {seconds:.0f} s: it waits for room in the cluster, still "
            f"loads its model, or hangs; `ray status` and {ray_logs()} on its host tell which"
        )
        return True

    async def _silent(
        self, actor: Watched, last: Pulse, seconds: float, told: bool, what: str = "has not answered"
    ) -> bool:
        """Warn of a silent actor, or end it, by the limits; return whether the warning is out.

        Raises ProcessLookupError if the actor was ended.
        """
        warn, end = self._config.warn_seconds, self._config.end_seconds
        if warn is None or seconds < warn:
            return told
        where = f"process {last.process} on {last.host}"
        if not told:
            self._say(f"warning: {actor.name} {what} for {seconds:.0f} s ({where}){self._then()}")
            self._record(
                f"{actor.name} {what} for {seconds:.0f} s, {where}\n{await asyncio.to_thread(stacks_of, last)}"
            )
        if end is not None and seconds >= end:
            self._end(actor, last)
            text = f"{actor.name} {what} for {seconds:.0f} s and was ended ({where})"
            if actor.vital:
                raise RunError(f"{text}; hangs.txt has its stacks; go on from the last checkpoint with --resume")
            self._say(text)
            raise ProcessLookupError
        return True

    def _end(self, actor: Watched, last: Pulse) -> None:
        if last.host == socket.gethostname():
            # Ray asks a process to end, and one that is stopped does not hear it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(last.process, signal.SIGKILL)
        else:
            actor.kill()


def stacks_of(pulse: Pulse) -> str:
    """Return the stacks of a process of this host by py-spy, and those of this one; or why there are none."""
    return f"{_spied(pulse)}\n{own_stacks()}"


def own_stacks() -> str:
    """Return the last calls of every thread of this process."""
    own = "\n".join("".join(traceback.format_stack(frame, limit=8)) for frame in sys._current_frames().values())
    return f"the driver's threads are at\n{own}\n"


def _spied(pulse: Pulse) -> str:
    if pulse.host != socket.gethostname():
        return f"its stacks: run `py-spy dump --pid {pulse.process}` on {pulse.host}"
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pulse.process)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}"
    return done.stdout or f"no stacks: {done.stderr.strip()}"
