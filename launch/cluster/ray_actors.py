"""Adapters from Ray actors to the loop's ports: answers, failures and deaths as the loop sees them.

Each adapter gets actor handles; `wiring.py` starts the actors and decides where.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private.state import actors  # `ray.util.state` needs the dashboard's server
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.errors import LOG_IS, EngineStartError, OffbeatError, RunError, WeightMismatchError, ray_logs
from actors.records import Failure, Game, GeneratorStatus, Group, Lease, Manifest, Pair, Pulse
from launch.cluster.carriers import PULSE, carrier_of
from launch.run.pools.reference_pool import ReferencePool
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError, Publication, Rollout
from launch.run.tasks import give_up
from learner.records import StageStats, UpdateStats

CLOSE_SECONDS = 10.0
DEATH_SECONDS = 30.0
"""Longest wait for the news of a rank's death after another rank's error."""
RESTART_POLL_SECONDS = 0.1
"""Poll interval for a restarting actor; Ray's own retry notices later."""
LOADING_POLL_SECONDS = 2.0
"""Pause between two looks for the death of a process that loads its model."""
START_PAUSE_SECONDS = 5.0
"""Pause before the next try if a restarted engine did not start; doubles each time."""


async def answer(reference: Awaitable[Any]) -> Any:
    """Await a call's result; raise an exception of the actor's own code unwrapped."""
    try:
        return await reference
    except RayTaskError as error:
        raise origin(error) from None


def restarts(actor: Any) -> int:
    """Return how often Ray has restarted the process of `actor`."""
    return int(actors(actor_id=actor._actor_id.hex()).get("NumRestarts", 0))


def origin(error: Exception) -> Exception:
    """Unwrap the exception that an actor raised; Ray wraps it once per actor on the way."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


class _StartFailedError(GeneratorUnavailableError):
    """The generator's new process lives, but its engine did not start."""

    def __init__(self, message: str, process: str) -> None:
        super().__init__(message)
        self.process = process


class RayGenerator:
    """A generator actor."""

    vital = False

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor
        self._process: str | None = None  # incarnation that answered last
        self._killed = False
        self._unreachable = False
        self._collect_seconds = 0.0
        self._failed_starts: dict[str, str] = {}
        """Failed starts since the last good one: the reason of each process."""
        self._failure = ""  # of the engine of an earlier process, if nothing was sampled since
        self._reported = -1
        """Deaths that the caller knows of, because each wait but the first follows one."""

    async def ready(self) -> None:
        self._reported += 1
        # A restarting actor answers "unavailable" until it is back.
        while True:
            try:
                process = await self._loaded()
                break
            except _StartFailedError as error:
                await self._restart(error)
            except GeneratorUnavailableError:
                self._check_deaths()
                await asyncio.sleep(RESTART_POLL_SECONDS)
        self._check_deaths()
        self._reported = restarts(self._actor)  # fewer, if only the connection broke
        self._failed_starts.clear()
        if self._unreachable and process == self._process:
            # Only the connection broke: an abandoned collect call may still run and would swallow the next results.
            await asyncio.sleep(self._collect_seconds)
        self._process = process
        self._killed = self._unreachable = False

    def silent_restarts(self) -> int:
        """Return 0: the pool reports its deaths."""
        return 0

    async def _loaded(self) -> str:
        """Wait until the engine answers; return its process. A death meanwhile raises, although Ray hides it."""
        asked = asyncio.ensure_future(self.status())
        try:
            while not (await asyncio.wait({asked}, timeout=LOADING_POLL_SECONDS))[0]:
                self._check_deaths()
            return asked.result().process
        finally:
            give_up(asked)

    def _check_deaths(self) -> None:
        """Raise GeneratorUnavailableError if a process died and no caller knows: Ray sends its calls to the next."""
        if restarts(self._actor) > self._reported:
            raise GeneratorUnavailableError(f"{self.name} (while it loaded its engine)")

    async def _restart(self, failed: _StartFailedError) -> None:
        """Use up one more restart, after a pause in which memory may become free. Raises `failed`, once per process.

        Raises GeneratorDeadError if the last start failed alike, and not for want of memory.
        """
        if failed.process in self._failed_starts:
            await asyncio.sleep(RESTART_POLL_SECONDS)  # it has not ended yet
            return
        if str(failed) in self._failed_starts.values() and "memory" not in str(failed).lower():
            raise self._given_up(str(failed))
        await asyncio.sleep(START_PAUSE_SECONDS * 2 ** len(self._failed_starts))
        self._failed_starts[failed.process] = str(failed)
        ray.kill(self._actor, no_restart=False)
        raise failed

    async def submit(self, leases: Sequence[Lease]) -> None:
        await self._call("submit", list(leases))

    async def withdraw(self, leases: Sequence[tuple[int, int]]) -> None:
        await self._call("withdraw", list(leases))

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        self._collect_seconds = timeout_seconds
        collected: list[Group | Failure] = await self._call("collect", timeout_seconds)
        if any(isinstance(each, Group) for each in collected):
            self._failure = ""
        return collected

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        take = getattr(chunks, "take", None)
        return await (self.receive(manifest, *(chunks or ())) if take is None else take(self, manifest))

    async def check(self, manifest: Manifest) -> None:
        await self._call("check_weights", manifest)

    async def receive(self, manifest: Manifest, *payload: Any) -> int:
        """Pass the payload, whose object references Ray resolves, to the actor."""
        return await self._call("take_published", manifest, *payload)

    @property
    def process(self) -> str | None:
        """Incarnation that answered last."""
        return self._process

    async def status(self) -> GeneratorStatus:
        return await self._call("status")

    async def pulse(self) -> Pulse:
        return await self._call("pulse")

    def kill(self) -> None:
        # Once: every call in progress asks for it, and a second kill would hit the new process.
        if not self._killed:
            self._killed = True
            ray.kill(self._actor, no_restart=False)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError as error:
            raise self._translated(origin(error)) from None

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, EngineStartError):
            return _StartFailedError(f"{self.name} ({error})", error.process)
        if isinstance(error, RunError) and not isinstance(error, WeightMismatchError):
            # The process lives but its engine is broken: Ray starts a new process while restarts are left.
            cause = str(error).partition(LOG_IS)[0]
            if cause == self._failure and not self._killed:
                return self._given_up(f"{self.name}: {error}")
            self._failure = cause
            self.kill()
            return GeneratorUnavailableError(f"{self.name}: {error}")
        if isinstance(error, ActorDiedError):
            why = [f"{self.name}: {reason(error)}", *self._failed_starts.values()]
            return GeneratorDeadError(why[-1])
        if isinstance(error, RayActorError):
            self._unreachable = True
            return GeneratorUnavailableError(self.name)
        return error

    def _given_up(self, failure: str) -> GeneratorDeadError:
        """End a generator that failed twice alike: with the same settings it would again."""
        self._killed = True
        ray.kill(self._actor, no_restart=True)
        return GeneratorDeadError(f"{failure} (twice in a row, so it is not started again)")


class RayRank:
    """One rank, as the watchdog sees it."""

    vital = True

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor

    async def pulse(self) -> Pulse:
        return await answer(self._actor.pulse.options(concurrency_group=PULSE).remote())

    def kill(self) -> None:
        ray.kill(self._actor)

    def silent_restarts(self) -> int:
        """Return 0: a rank is not restarted."""
        return 0


class RayRanks:
    """All ranks of a learner or a stage as one: a call enters every rank, as collectives require; rank 0 answers.

    Calls raise what a rank raised, RunError if one died.
    """

    def __init__(self, ranks: Sequence[Any]) -> None:
        self._ranks = ranks

    async def ready(self) -> None:
        await self._all("ready")

    def each(self) -> list[RayRank]:
        """Return the ranks one by one."""
        return [RayRank(f"learner rank {number}", rank) for number, rank in enumerate(self._ranks)]

    def loaded(self) -> list[Any]:
        """Return references that resolve once every rank has been built."""
        return [rank.ready.remote() for rank in self._ranks]

    async def save(self, stage: Path) -> None:
        await self._all("save", str(stage))

    async def load(self, checkpoint: Path) -> Any:
        return await self._all("load", str(checkpoint))

    async def save_pretrained(self, directory: Path) -> None:
        await self._all("save_pretrained", str(directory))

    async def close(self) -> None:
        """Ask for a tidy end; Ray ends whatever does not answer."""
        with contextlib.suppress(RunError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._all("close")

    async def _all(self, method: str, *arguments: Any) -> Any:
        return (await self._gather([getattr(rank, method).remote(*arguments) for rank in self._ranks]))[0]

    async def first(self, method: str, *arguments: Any, group: str | None = None) -> Any:
        """Call rank 0 alone; with `group`, in that concurrency group of its actor."""
        call = getattr(self._ranks[0], method)
        call = call if group is None else call.options(concurrency_group=group)
        return (await self._gather([call.remote(*arguments)]))[0]

    async def _gather(self, references: Sequence[Awaitable[Any]]) -> list[Any]:
        answers = [asyncio.ensure_future(answer(reference)) for reference in references]
        try:
            return list(await asyncio.gather(*answers))
        except RayActorError as error:
            raise _learner_died(error) from None
        except OffbeatError:
            raise
        except Exception:
            # A rank that dies breaks the others' connections to it, and their errors arrive before its own.
            if (died := await _first_death(answers)) is not None:
                raise _learner_died(died) from None
            raise


class RayStage(RayRanks):
    """The ranks of a stage; see `learner.stages.worker.StageWorker`."""

    async def advance(self, updates: int) -> list[StageStats]:
        return await self._all("advance", updates)

    async def evaluate(self) -> dict[str, float]:
        return await self._all("evaluate")

    async def finish(self, directory: Path) -> dict[str, Any]:
        return await self._all("finish", str(directory))


class RayLearner(RayRanks):
    """The ranks that train on rollouts; see `learner.training.worker.LearnerWorker`."""

    def __init__(
        self,
        ranks: Sequence[Any],
        transport: str,
        generator_workers: int = 1,
        *,
        host: str = "",
        take_seconds: float = 600.0,
        reference: ReferencePool | None = None,
    ) -> None:
        super().__init__(ranks)
        self.host = host  # address of rank 0's host
        self._reference = reference  # None if the ranks hold it
        self._carrier = carrier_of(transport, self, generator_workers, take_seconds)

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        return await self._all("update", ray.put(list(items)), measure_step)

    async def adopt_average(self) -> None:
        await self._all("adopt_average")

    async def export(self, version: int) -> Publication:
        return await self._carrier.publication(await self._all("export", version))

    async def chunks(self, count: int) -> Sequence[Any]:
        """Return references to the chunks of the newest publication, once rank 0 has made them."""
        # Return values outlive the learner; what an actor puts itself dies with it.
        references = [self._ranks[0].chunk.remote(index) for index in range(count)]
        await self._gather(references)
        return references

    async def retire(self, version: int) -> None:
        await self.first("retire", version)

    async def score(self, sequences: Sequence[Rollout]) -> list[tuple[list[float], list[float]]]:
        policy = self._all("score", ray.put([tuple(map(tuple, sequence)) for sequence in sequences]))
        if self._reference is None:
            scored: list[tuple[list[float], list[float]]] = await policy
            return scored
        both = await asyncio.gather(policy, self._reference.sampled(sequences))
        return [(own, mu) for (own, _), mu in zip(*both, strict=True)]


async def _first_death(answers: Sequence[asyncio.Future[Any]]) -> RayActorError | None:
    """Return the error of the rank that died, as soon as Ray knows; None if all answer or time is over."""
    deadline = time.monotonic() + DEATH_SECONDS
    while True:
        ended = [answer for answer in answers if answer.done()]
        for error in (answer.exception() for answer in ended):
            if isinstance(error, RayActorError):
                return error
        left = deadline - time.monotonic()
        if len(ended) == len(answers) or left <= 0.0:
            return None
        waiting = [answer for answer in answers if not answer.done()]
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)


def _learner_died(error: Exception) -> RunError:
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return RunError(f"the learner could not start: {reason(error)}")
    return RunError(f"a learner process died: {reason(error)}; continue from the last checkpoint with --resume")


_PLACE = re.compile(r"^\s*(pid|ip): (\S+)$", re.MULTILINE)
"""Lines of Ray's error of a dead actor."""
_RAISED = re.compile(r"^[\w.]*(Error|Exception): ")


def reason(error: Exception) -> str:
    """Return Ray's error on one line; for a failed constructor, the message of its own exception."""
    if isinstance(error, ActorUnavailableError):
        return "Ray no longer reaches it, because its process or its host is gone, or the network between"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayActorError) and error.actor_init_failed:
        # A traceback ends with `module.Class: message`, and the message may have several lines.
        raised = [number for number, line in enumerate(lines) if _RAISED.match(line)]
        message = " ".join(lines[raised[-1] if raised else -1 :])
        return _RAISED.sub("", message)
    place = dict(_PLACE.findall(str(error)))
    if {"pid", "ip"} <= place.keys():
        return f"{lines[0].rstrip('.')}{LOG_IS}{ray_logs()}/worker-*-{place['pid']}.err on {place['ip']}"
    return lines[0]
