"""The producers as Ray actors. The only module of `actors` that knows Ray; the classes themselves stay plain.

Placement, concurrency and restarts are decided here; what the actors do is in `generator.py` and `judging.py`.
"""

from __future__ import annotations

from typing import Any

import ray

from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.generator import Generator
from actors.hub import resolve
from actors.judges.config import JudgingConfig
from actors.judges.worker import JudgeWorker
from actors.records import Manifest

COLLECTING_CALLS = 8
"""Calls one actor serves at a time: collect blocks, and submit, take_weights and status must get past it."""


class RemoteGenerator(Generator):
    """A generator whose models may be hub names, and whose chunks come as arguments of their own: for those, Ray
    delivers what a reference holds."""

    def __init__(self, name: str, *, model_dir: str, reference_dir: str, **settings: Any) -> None:
        super().__init__(name, model_dir=resolve(model_dir), reference_dir=resolve(reference_dir), **settings)

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


def start_generator(
    name: str,
    *,
    model_dir: str,
    reference_dir: str,
    tokenizer: str | None,
    generators: GeneratorConfig,
    sampling: SamplingConfig,
    opponent: OpponentConfig,
    seed: int,
    deterministic: bool,
    transport: str,
    gpus: float,
    host: str | None,
    environment: dict[str, str],
) -> Any:
    """Starts one generator actor and returns its handle at once; the engine loads in the background.

    `environment` is the engine's process environment; `gpus` is per actor (the tensor parallel size, or 0 on CPU).
    `host` is the address of the host that it must be on, at every start; None: any.
    """
    actor = ray.remote(RemoteGenerator).options(
        num_cpus=generators.cpus,
        num_gpus=gpus,
        # Every node of a host has this resource, one of each; an affinity to a node would not outlive it.
        resources={} if host is None else {f"node:{host}": 0.001},
        max_restarts=generators.max_restarts,
        max_concurrency=COLLECTING_CALLS,
        runtime_env={"env_vars": environment},
    )
    return actor.remote(
        name,
        model_dir=model_dir,
        reference_dir=reference_dir,
        tokenizer=tokenizer,
        generators=generators,
        sampling=sampling,
        opponent=opponent,
        seed=seed,
        deterministic=deterministic,
        transport=transport,
    )


def start_judge(config: JudgingConfig, *, tokenizer: str | None, environment: dict[str, str]) -> Any:
    """Starts the judge actor; `tokenizer` is the policy's, whose ids a model with the same one reads as they are.

    Scalar and closed-form judges take no core of their own; a model may reserve GPUs."""
    actor = ray.remote(JudgeWorker).options(
        num_cpus=0, num_gpus=config.gpus, max_restarts=config.max_restarts, runtime_env={"env_vars": environment}
    )
    return actor.remote(config, tokenizer)
