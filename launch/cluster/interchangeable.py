"""Judges and reference actors as the loop's ports: calls wait for restarts, and others take over from the dead."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from actors.errors import RunError, UsageError
from actors.records import Failure, Group, Pulse
from launch.cluster.carriers import PULSE
from launch.cluster.ray_actors import RESTART_POLL_SECONDS, answer, reason, restarts
from launch.run.protocols import Rollout
from launch.settings.run import RunConfig
from learner.reference.config import ReferenceSpec

T = TypeVar("T")
ATTEMPTS = 3
"""Deaths of an actor over one call before that is given up."""
ANSWER_SECONDS = 2.0
"""Longest wait for a value that is only reported."""


class Interchangeable:
    """An actor whose calls wait for its restarts, and are sent again; another may take over once it died for good."""

    vital = False
    who, one = "the actor", "the actor"  # in messages of its death, and of a start that failed

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self.name = name
        self._seconds = 0.0

    async def _call(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer, or None after `ATTEMPTS` deaths over it. Raises RunError if the actor died for good."""
        try:
            for _ in range(ATTEMPTS):
                try:
                    return await answer(call())
                except ActorUnavailableError:
                    await self._back()
        except ActorDiedError as error:
            raise RunError(f"{self.who} died for good: {reason(error)}; use --resume") from None
        return None

    async def ready(self) -> None:
        """Wait until it answers. Raises UsageError if it could not be built, RunError if it died."""
        try:
            await self._back()
        except ActorDiedError as error:
            kind = UsageError if error.actor_init_failed else RunError
            raise kind(f"{self.one} could not start: {reason(error)}") from None

    def kill(self) -> None:
        """Kill its process; it is restarted while restarts are left."""
        ray.kill(self._actor, no_restart=False)

    def silent_restarts(self) -> int:
        return restarts(self._actor)

    async def _last(self, known: T, call: Callable[[], Awaitable[T]]) -> T:
        """Return the answer, or `known` if the actor does not reply."""
        with contextlib.suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                known = await answer(call())
        return known

    async def _back(self) -> None:
        """Wait until it is reachable; loading time does not count as a failed attempt."""
        while True:
            try:
                await answer(self._reply())
                return
            except ActorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)

    def _reply(self) -> Awaitable[Any]:
        """Call what answers as soon as the actor is reachable."""
        return self._actor.seconds.remote()


class RayJudge(Interchangeable):
    """A judge actor."""

    who = one = "the judge"

    def __init__(self, actor: Any, name: str = "judge") -> None:
        super().__init__(actor, name)
        self._figures: dict[str, float] = {}

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        judged: list[Group | Failure] | None = await self._call(lambda: self._actor.judge.remote(list(groups)))
        unavailable = (Failure(group.lease.index, group.lease.attempt, "judge unavailable") for group in groups)
        return list(unavailable) if judged is None else judged

    def loaded(self) -> list[Any]:
        """Return references that resolve once the judge has been built."""
        return [self._actor.seconds.options(max_task_retries=-1).remote()]

    async def pulse(self) -> Pulse:
        return await answer(self._actor.pulse.remote())

    async def seconds(self) -> float:
        """Ask for its seconds; return the last answer if it does not reply."""
        self._seconds = await self._last(self._seconds, self._actor.seconds.remote)
        return self._seconds

    async def figures(self) -> dict[str, float]:
        """Ask for its counters since its last start; return the last answer if it does not reply."""
        self._figures = await self._last(self._figures, self._actor.figures.remote)
        return self._figures


class RayReference(Interchangeable):
    """A reference actor; see `learner.reference.worker.ReferenceWorker`."""

    who, one = "the reference actor", "a reference actor"

    def __init__(self, actor: Any, name: str = "reference") -> None:
        super().__init__(actor, name)

    async def score(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]] | None:
        scored: list[tuple[float, ...]] | None = await self._call(lambda: self._actor.score.remote(list(rollouts)))
        return scored

    def loaded(self) -> list[Any]:
        """Return references that resolve once the actor has been built."""
        return [self._actor.ready.options(max_task_retries=-1).remote()]

    async def pulse(self) -> Pulse:
        return await answer(self._actor.pulse.options(concurrency_group=PULSE).remote())

    async def seconds(self) -> float:
        """Ask for its seconds; return the last answer if it does not reply."""
        ask = self._actor.seconds.options(concurrency_group=PULSE).remote
        self._seconds = await self._last(self._seconds, ask)
        return self._seconds

    def _reply(self) -> Awaitable[Any]:
        return self._actor.ready.options(concurrency_group=PULSE).remote()


def start_references(config: RunConfig, reference_dir: str, environment: Mapping[str, str]) -> list["RayReference"]:
    """Start `reference.count` actors, whose processes have `environment`; models load in the background."""
    from learner.reference.worker import ReferenceWorker, threads

    own = config.reference
    spec = ReferenceSpec(
        config=own,
        model_dir=reference_dir,
        dtype=own.dtype or config.learner.dtype,
        logprob_chunk=config.learner.logprob_chunk,
        temperature=config.sampling.temperature,
        head_dtype=config.model.head_dtype,
        share_prompts=config.learner.share_prompts,
    )
    actor = ray.remote(concurrency_groups={PULSE: 1})(ReferenceWorker).options(
        num_cpus=own.cpus,
        num_gpus=own.gpus,
        resources=own.resources,
        label_selector=own.labels,
        max_restarts=own.max_restarts,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads(own.cpus)), **environment}},
    )
    return [RayReference(actor.remote(spec), f"reference-{number}") for number in range(own.count)]
