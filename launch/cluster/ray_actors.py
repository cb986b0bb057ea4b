"""Adapters from Ray actors to the loop's ports: answers, failures and deaths as the loop sees them.

Each adapter gets actor handles; `wiring.py` starts the actors and decides where.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.records import SENT_BY_LEARNER, Failure, Game, GeneratorStatus, Group, Lease, Manifest, Pair
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError, Publication
from learner.records import StageStats, UpdateStats

JUDGE_ATTEMPTS = 3
"""Deaths of the judge over one batch before its groups fail."""
ANSWER_SECONDS = 2.0
"""Longest wait for a value that is only reported."""
CLOSE_SECONDS = 10.0
RESTART_POLL_SECONDS = 0.1
"""Poll interval for a restarting actor; Ray's own retry notices later."""
PUBLISHING = "publishing"
"""Concurrency group of the learner's actors, for weight transfers."""


async def _answer(reference: Awaitable[Any]) -> Any:
    """Await a call's result; raise an exception of the actor's own code unwrapped."""
    try:
        return await reference
    except RayTaskError as error:
        raise origin(error) from None


def origin(error: Exception) -> Exception:
    """Unwrap the exception that an actor raised; Ray wraps it once per actor on the way."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


@dataclass(frozen=True)
class Delivery:
    """A publication that learner rank 0 sends to each generator (`nccl`, `ipc`). Never run on a GPU so far."""

    sender: Any  # rank 0's actor
    workers: int  # tensor parallel size of a generator


class RayGenerator:
    """A generator actor."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor
        self._process: str | None = None  # incarnation that answered last
        self._killed = False
        self._unreachable = False
        self._collect_seconds = 0.0

    async def ready(self) -> None:
        # A restarting actor answers "unavailable" until it is back.
        while True:
            try:
                process = (await self.status()).process
                break
            except GeneratorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)
        if self._unreachable and process == self._process:
            # Only the connection broke: an abandoned collect call may still run and would swallow the next results.
            await asyncio.sleep(self._collect_seconds)
        self._process = process
        self._killed = self._unreachable = False

    async def submit(self, leases: Sequence[Lease]) -> None:
        await self._call("submit", list(leases))

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        self._collect_seconds = timeout_seconds
        return await self._call("collect", timeout_seconds)

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        if isinstance(chunks, Delivery):
            from actors.remote import GeneratorHandle

            deliver = chunks.sender.deliver.options(concurrency_group=PUBLISHING)
            arguments = (self.name, self._process, GeneratorHandle(self._actor), manifest.version, chunks.workers)
            return await self._delivered(deliver.remote(*arguments))
        # Chunks are object references: passed as separate arguments, Ray resolves them.
        return await self._call("take_published", manifest, *(chunks or ()))

    async def status(self) -> GeneratorStatus:
        return await self._call("status")

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

    async def _delivered(self, reference: Awaitable[Any]) -> int:
        try:
            return await reference
        except RayTaskError as error:
            raise self._translated(origin(error)) from None
        except RayActorError as error:
            raise _learner_died(error) from None

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, RunError) and not isinstance(error, WeightMismatchError):
            # The process lives but its engine is broken: Ray starts a new process while restarts are left.
            self.kill()
            return GeneratorUnavailableError(f"{self.name}: {error}")
        if isinstance(error, ActorDiedError):
            return GeneratorDeadError(f"{self.name}: {reason(error)}")
        if isinstance(error, RayActorError):
            self._unreachable = True
            return GeneratorUnavailableError(self.name)
        return error


class RayJudge:
    """The judge actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._seconds = 0.0
        self._figures: dict[str, float] = {}

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        try:
            for _ in range(JUDGE_ATTEMPTS):
                try:
                    return await _answer(self._actor.judge.remote(list(groups)))
                except ActorUnavailableError:
                    await self._back()
        except ActorDiedError as error:
            raise RunError(f"the judge died for good: {reason(error)}; use --resume") from None
        return [Failure(group.lease.index, group.lease.attempt, "judge unavailable") for group in groups]

    async def ready(self) -> None:
        """Wait until the judge answers. Raises UsageError if it could not be built, RunError if it died."""
        try:
            await self._back()
        except ActorDiedError as error:
            kind = UsageError if error.actor_init_failed else RunError
            raise kind(f"the judge could not start: {reason(error)}") from None

    async def seconds(self) -> float:
        """Ask for its seconds; return the last answer if it does not reply."""
        with contextlib.suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                self._seconds = await _answer(self._actor.seconds.remote())
        return self._seconds

    async def figures(self) -> dict[str, float]:
        """Ask for its counters since its last start; return the last answer if it does not reply."""
        with contextlib.suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                self._figures = await _answer(self._actor.figures.remote())
        return self._figures

    async def _back(self) -> None:
        """Wait until the judge is reachable; loading time does not count as a failed attempt."""
        while True:
            try:
                await _answer(self._actor.seconds.remote())
                return
            except ActorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)


class RayRanks:
    """All ranks of a learner or a stage as one: a call enters every rank, as collectives require; rank 0 answers.

    Calls raise what a rank raised, RunError if one died.
    """

    def __init__(self, ranks: Sequence[Any]) -> None:
        self._ranks = ranks

    async def ready(self) -> None:
        await self._all("ready")

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

    async def _first(self, method: str, *arguments: Any) -> Any:
        return (await self._gather([getattr(self._ranks[0], method).remote(*arguments)]))[0]

    async def _gather(self, references: Sequence[Awaitable[Any]]) -> list[Any]:
        try:
            return list(await asyncio.gather(*[_answer(reference) for reference in references]))
        except RayActorError as error:
            raise _learner_died(error) from None


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

    def __init__(self, ranks: Sequence[Any], transport: str, generator_workers: int = 1, host: str = "") -> None:
        super().__init__(ranks)
        self.host = host  # address of rank 0's host
        self._transport = transport
        self._generator_workers = generator_workers

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        return await self._all("update", ray.put(list(items)), measure_step)

    async def export(self, version: int) -> Publication:
        manifest = await self._all("export", version)
        chunks: Any = None
        if self._transport in SENT_BY_LEARNER:
            chunks = Delivery(self._ranks[0], self._generator_workers)
        if self._transport == "object_store":
            count = await self._first("chunk_count")
            # Return values outlive the learner; what an actor puts itself dies with it.
            chunks = [self._ranks[0].chunk.remote(index) for index in range(count)]
            await self._gather(chunks)
        return Publication(manifest, chunks)

    async def retire(self, version: int) -> None:
        await self._first("retire", version)

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
        return await self._all("score", ray.put([(tuple(p), tuple(r)) for p, r in sequences]))


def _learner_died(error: Exception) -> RunError:
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return RunError(f"the learner could not start: {reason(error)}")
    return RunError(f"a learner process died: {reason(error)}; continue from the last checkpoint with --resume")


_RAISED = re.compile(r"^[\w.]*(Error|Exception): ")


def reason(error: Exception) -> str:
    """Return Ray's error on one line; for a failed constructor, the message of its own exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayActorError) and error.actor_init_failed:
        # A traceback ends with `module.Class: message`, and the message may have several lines.
        raised = [number for number, line in enumerate(lines) if _RAISED.match(line)]
        message = " ".join(lines[raised[-1] if raised else -1 :])
        return _RAISED.sub("", message)
    return lines[0]
