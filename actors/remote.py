"""The producers as Ray actors. The only module of `actors` that knows Ray; the classes themselves stay plain.

Placement, concurrency and restarts are decided here; what the actors do is in `generator.py` and `judging.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.generation.config import GeneratorSpec
from actors.generation.generator import Generator
from actors.hub import resolve
from actors.judges.config import JudgingConfig
from actors.judges.worker import JudgeWorker
from actors.records import Manifest

COLLECTING_CALLS = 8
"""Calls one actor serves at a time: collect blocks, and submit, take_weights and status must get past it."""


class RemoteGenerator(Generator):
    """A generator whose models may be hub names, and whose chunks arrive as separate arguments, which Ray resolves."""

    def __init__(self, spec: GeneratorSpec, **settings: Any) -> None:
        reference_dir = None if spec.reference_dir is None else resolve(spec.reference_dir)
        super().__init__(replace(spec, model_dir=resolve(spec.model_dir), reference_dir=reference_dir), **settings)

    def take_published(self, manifest: Manifest, *chunks: Any) -> int:
        return self.take_weights(manifest, list(chunks) or None)


class GeneratorHandle:
    """A generator actor's blocking face for the learner's process, which sends it weights over `nccl` or `ipc`."""

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
    """Reserved by the actor: the tensor parallel size, or 0 on CPU."""
    host: str | None
    """Address of the host that it must be on, at every start; None: any."""
    environment: dict[str, str]
    """Of the engine's process."""


def start_generator(spec: GeneratorSpec, place: GeneratorPlace) -> Any:
    """Start one generator actor and return its handle at once; the engine loads in the background."""
    actor = ray.remote(RemoteGenerator).options(
        num_cpus=spec.generators.cpus,
        num_gpus=place.gpus,
        # Every node of a host has this resource, one of each; an affinity to a node would not outlive it.
        resources={} if place.host is None else {f"node:{place.host}": 0.001},
        max_restarts=spec.generators.max_restarts,
        max_concurrency=COLLECTING_CALLS,
        runtime_env={"env_vars": place.environment},
    )
    return actor.remote(spec)


def start_judge(config: JudgingConfig, *, tokenizer: str | None, environment: dict[str, str]) -> Any:
    """Starts the judge actor; `tokenizer` is the policy's, whose ids a model with the same one reads as they are.

    Scalar and closed-form judges take no core of their own; a model may reserve GPUs."""
    actor = ray.remote(JudgeWorker).options(
        num_cpus=0, num_gpus=config.gpus, max_restarts=config.max_restarts, runtime_env={"env_vars": environment}
    )
    return actor.remote(config, tokenizer)
