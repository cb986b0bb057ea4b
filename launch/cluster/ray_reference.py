"""Starts the reference actors, and adapts each to the loop's port: answers, deaths and restarts."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from actors.errors import RunError, UsageError
from actors.records import Pulse
from launch.cluster.carriers import PULSE
from launch.cluster.ray_actors import ANSWER_SECONDS, RESTART_POLL_SECONDS, answer, reason
from launch.run.protocols import Rollout
from launch.settings.run import RunConfig
from learner.reference.config import ReferenceSpec

REFERENCE_ATTEMPTS = 3
"""Deaths of a reference actor over one prompt's rollouts before these fail."""


def start(config: RunConfig, reference_dir: str, environment: Mapping[str, str]) -> list["RayReference"]:
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


class RayReference:
    """A reference actor; see `learner.reference.worker.ReferenceWorker`."""

    vital = False

    def __init__(self, actor: Any, name: str = "reference") -> None:
        self._actor = actor
        self.name = name
        self._seconds = 0.0

    async def score(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]] | None:
        try:
            for _ in range(REFERENCE_ATTEMPTS):
                try:
                    scored: list[tuple[float, ...]] = await answer(self._actor.score.remote(list(rollouts)))
                    return scored
                except ActorUnavailableError:
                    await self._back()
        except ActorDiedError as error:
            raise RunError(f"the reference actor died for good: {reason(error)}; use --resume") from None
        return None

    async def ready(self) -> None:
        """Wait until it answers. Raises UsageError if it could not be built, RunError if it died."""
        try:
            await self._back()
        except ActorDiedError as error:
            kind = UsageError if error.actor_init_failed else RunError
            raise kind(f"a reference actor could not start: {reason(error)}") from None

    def loaded(self) -> list[Any]:
        """Return references that resolve once the actor has been built."""
        return [self._actor.ready.options(max_task_retries=-1).remote()]

    async def pulse(self) -> Pulse:
        return await answer(self._actor.pulse.options(concurrency_group=PULSE).remote())

    def kill(self) -> None:
        """Kill its process; it is restarted while restarts are left."""
        ray.kill(self._actor, no_restart=False)

    async def seconds(self) -> float:
        """Ask for its seconds; return the last answer if it does not reply."""
        with contextlib.suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                self._seconds = await answer(self._actor.seconds.options(concurrency_group=PULSE).remote())
        return self._seconds

    async def _back(self) -> None:
        """Wait until the actor is reachable; loading time does not count as a failed attempt."""
        while True:
            try:
                await answer(self._actor.ready.options(concurrency_group=PULSE).remote())
                return
            except ActorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)
