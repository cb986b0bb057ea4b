"""Generators and judges as Ray actors. The only module of `actors` that imports Ray; the classes stay plain.

Sets placement, concurrency and restarts; `generator.py` and `actors/judges/worker.py` do the work.
"""

import contextlib
import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.errors import writing
from actors.files import open_lock
from actors.generation.config import GeneratorSpec
from actors.generation.generator import Generator, did_not_start_again
from actors.judges.config import JudgingConfig
from actors.judges.worker import JudgeWorker
from actors.records import GeneratorStatus, Manifest

COLLECTING_CALLS = 8
"""Calls that one actor serves at a time: `submit`, `take_weights` and `status` must get past a blocking `collect`."""


class RemoteGenerator(Generator):
    """A generator that finds models on its own host, and takes payloads as arguments, which Ray resolves.

    `after` is for Ray alone: values that must exist before the actor starts. A failed first start raises, because its
    settings are wrong. After a failed restart (a dead process may still hold GPU memory) `status` raises
    EngineStartError instead: Ray would give up an actor whose constructor raises, even with restarts left.
    """

    def __init__(self, spec: GeneratorSpec, *after: Any, **settings: Any) -> None:
        self._start_failure: Exception | None = None
        again = ray.get_runtime_context().was_current_actor_reconstructed
        if again:  # otherwise it would draw the random numbers of its first start again
            spec = replace(spec, start=secrets.randbits(32))
        try:
            with _turn_on_gpu() if spec.generators.gpus < 1.0 else contextlib.nullcontext():
                super().__init__(spec.on_this_host(), **settings)
        except Exception as error:
            if not again:
                raise
            self._start_failure = did_not_start_again(error)

    def status(self) -> GeneratorStatus:
        if self._start_failure is not None:
            raise self._start_failure
        return super().status()

    def take_published(self, manifest: Manifest, *payload: Any) -> int:
        return self.take_weights(manifest, payload)


@contextlib.contextmanager
def _turn_on_gpu() -> Iterator[None]:
    """Keep other engines from starting on this process's GPU within the context: each measures the free memory."""
    card = re.sub(r"\W", "-", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    path = os.path.join(tempfile.gettempdir(), f"offbeat-{os.getuid()}-gpu-{card}.lock")
    with writing(path, "or set TMPDIR to a directory of your own"):
        descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the process dies, too
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class GeneratorPlace:
    """The place of one generator: GPUs, host, environment."""

    gpus: float
    """GPUs to reserve, over all workers of the engine; 0 on CPU."""
    host: str | None
    """Address of the host for every start; None: any host."""
    environment: dict[str, str]  # environment variables of the engine's process
    after: Sequence[Any] = ()  # Ray references; its first start waits until all of them resolve


def start_generator(spec: GeneratorSpec, place: GeneratorPlace) -> Any:
    """Start a generator actor and return its handle at once; the engine loads in the background."""
    actor = ray.remote(RemoteGenerator).options(
        num_cpus=spec.generators.cpus,
        num_gpus=place.gpus,
        # Ray gives each node this resource by its host's address; a node affinity would not survive the node.
        resources=spec.generators.resources | ({} if place.host is None else {f"node:{place.host}": 0.001}),
        label_selector=spec.generators.labels,
        max_restarts=spec.generators.max_restarts,
        max_concurrency=COLLECTING_CALLS,
        runtime_env={"env_vars": place.environment},
    )
    return actor.remote(spec, *place.after)


def start_judge(config: JudgingConfig, *, tokenizer: str | None, environment: dict[str, str]) -> Any:
    """Start the judge actor. `tokenizer` is the policy's: a judge model with the same one reads its ids unchanged.

    Judges reserve no CPU core; a judge model may reserve GPUs.
    """
    actor = ray.remote(JudgeWorker).options(
        num_cpus=0,
        num_gpus=config.gpus,
        resources=config.resources,
        label_selector=config.labels,
        max_restarts=config.max_restarts,
        runtime_env={"env_vars": environment},
    )
    return actor.remote(config, tokenizer)
