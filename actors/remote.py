"""Generators and judges as Ray actors. The only module of `actors` that imports Ray; the classes stay plain.

Sets placement, concurrency and restarts; `generator.py` and `actors/judges/worker.py` do the work.
"""

from dataclasses import dataclass
from typing import Any

import ray

from actors.generation.config import GeneratorSpec
from actors.generation.generator import Generator
from actors.judges.config import JudgingConfig
from actors.judges.worker import JudgeWorker
from actors.records import Manifest

COLLECTING_CALLS = 8
"""Calls one actor serves at a time. `collect` blocks, and `submit`, `take_weights` and `status` must get past it."""


class RemoteGenerator(Generator):
    """A generator that finds models on its own host, and takes weight chunks as arguments, which Ray resolves."""

    def __init__(self, spec: GeneratorSpec, **settings: Any) -> None:
        super().__init__(spec.on_this_host(), **settings)

    def take_published(self, manifest: Manifest, *chunks: Any) -> int:
        return self.take_weights(manifest, list(chunks) or None)


class GeneratorHandle:
    """Blocking calls to a generator actor, for the learner process that sends it weights over `nccl` or `ipc`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def check_weights(self, manifest: Manifest) -> None:
        ray.get(self._actor.check_weights.remote(manifest))

    def connect_weights(self, init_info: dict[str, Any]) -> None:
        ray.get(self._actor.connect_weights.remote(init_info))

    def take_weights(self, manifest: Manifest, chunks: Any = None) -> int:
        return ray.get(self._actor.take_weights.remote(manifest, chunks))


@dataclass(frozen=True, slots=True)
class GeneratorPlace:
    """Where one generator runs."""

    gpus: float
    """GPUs to reserve: the tensor parallel size, or 0 on CPU."""
    host: str | None
    """Address of the host for every start; None: any host."""
    environment: dict[str, str]  # environment variables of the engine's process


def start_generator(spec: GeneratorSpec, place: GeneratorPlace) -> Any:
    """Start a generator actor and return its handle at once; the engine loads in the background."""
    actor = ray.remote(RemoteGenerator).options(
        num_cpus=spec.generators.cpus,
        num_gpus=place.gpus,
        # Ray gives each node this resource by its host's address; a node affinity would not survive the node.
        resources={} if place.host is None else {f"node:{place.host}": 0.001},
        max_restarts=spec.generators.max_restarts,
        max_concurrency=COLLECTING_CALLS,
        runtime_env={"env_vars": place.environment},
    )
    return actor.remote(spec)


def start_judge(config: JudgingConfig, *, tokenizer: str | None, environment: dict[str, str]) -> Any:
    """Start the judge actor. `tokenizer` is the policy's: a judge model with the same one reads its ids unchanged.

    Judges reserve no CPU core; a judge model may reserve GPUs.
    """
    actor = ray.remote(JudgeWorker).options(
        num_cpus=0, num_gpus=config.gpus, max_restarts=config.max_restarts, runtime_env={"env_vars": environment}
    )
    return actor.remote(config, tokenizer)
