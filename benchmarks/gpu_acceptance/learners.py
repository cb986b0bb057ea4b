"""The learner's side of the parts: a rank of its own in this process, its data, and the way of a version to an engine.

Imports torch and deepspeed only when a learner is made, after its environment is set.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.generation.config import GeneratorConfig, GeneratorSpec, OpponentConfig, SamplingConfig
from actors.generation.engine import engine_environment
from actors.host import free_port
from actors.records import TRANSPORTS, Completion, Manifest, Pair
from benchmarks.gpu_acceptance.children import Child, gpu_environment
from benchmarks.gpu_acceptance.parts import Setup
from benchmarks.gpu_acceptance.served import LOAD, TOTAL, TRANSFER
from learner.config import LearnerConfig, LearnerSpec, OptimizerConfig
from learner.losses.config import LossConfig
from learner.publication.config import PublicationConfig
from learner.training.process import RankPlace

if TYPE_CHECKING:
    from learner.training.worker import LearnerWorker

TRANSFER_SECONDS = 60.0
LEAST_MODEL_LEN = 256
TINY_LR = 5e-7
"""A usual learning rate: in bfloat16 few weights change from one version to the next."""


def learner_config(setup: Setup, loss: LossConfig | None = None) -> LearnerConfig:
    """The settings of a learner of one rank; `loss` is dpo by default."""
    return LearnerConfig(
        dtype=setup.dtype,
        gpus_per_rank=1.0 if setup.cuda else 0.0,
        zero_stage=2 if setup.dtype == "bfloat16" else 1,
        offload_optimizer=setup.offload_optimizer,
        micro_batch_tokens=setup.micro_batch_tokens,
        optimizer=OptimizerConfig(lr=TINY_LR, schedule="constant"),
        **({} if loss is None else {"loss": loss}),
    )


@contextlib.contextmanager
def learner_of(setup: Setup, transport: str = "shm") -> Iterator[LearnerWorker]:
    """A learner of one rank in this process, that publishes by `transport`."""
    from learner.training.worker import LearnerWorker

    spec = LearnerSpec(config=learner_config(setup), model_dir=setup.model, total_updates=1000)
    place = RankPlace(0, 1, "127.0.0.1", free_port("127.0.0.1"))
    folder = str(Path(setup.scratch) / "published")
    worker = LearnerWorker(spec, place, PublicationConfig(transport=transport), folder)
    try:
        yield worker
    finally:
        worker.close()


@contextlib.contextmanager
def engine_of(
    setup: Setup,
    *,
    gpu: int = 0,
    eager: bool = True,
    new_tokens: int = 16,
    opponent: OpponentConfig | None = None,
    sleeps: bool = False,
    ahead: bool = False,
) -> Iterator[Child]:
    """An engine in a process that sees one GPU. On CPU it starts beside what follows; on a GPU first and alone.

    Two processes that take memory of one card at a time mislead vLLM's own measurement of it.
    """
    requests = -(-setup.requests // SamplingConfig().completions_per_prompt)
    generators = GeneratorConfig(
        dtype=setup.dtype,
        max_model_len=LEAST_MODEL_LEN + new_tokens,
        max_running_prompts=requests,
        gpu_memory_utilization=setup.engine_memory,
        enforce_eager=eager,
        async_scheduling=ahead,
    )
    spec = GeneratorSpec(
        model_dir=setup.model,
        reference_dir=setup.reference if opponent else None,
        generators=generators,
        sampling=SamplingConfig(max_new_tokens=new_tokens),
        opponent=opponent,
    )
    environment = engine_environment(generators, cuda=setup.cuda) | (gpu_environment(gpu) if setup.cuda else {})
    with Child("engine", spec, sleeps, environment=environment) as engine:
        if setup.cuda:
            engine.ready()
        yield engine


def vocabulary(setup: Setup) -> int:
    """Return the number of token ids that the model has rows for."""
    from actors.hub import read_config

    return int(read_config(setup.model).get_text_config().vocab_size)


def random_pairs(setup: Setup, count: int, seed: int, row_tokens: int | None = None) -> list[Pair]:
    """Pairs of random tokens: each of its two rows is a prompt with a completion of as many tokens."""
    rng, words, half = random.Random(seed), vocabulary(setup), (row_tokens or setup.row_tokens) // 2

    def tokens() -> tuple[int, ...]:
        return tuple(rng.randrange(2, words) for _ in range(half))

    def completion() -> Completion:
        return Completion(tokens(), (-1.0,) * half, (0,) * half, "", True)

    return [Pair(number, tokens(), completion(), completion(), 1.0) for number in range(count)]


def random_prompts(setup: Setup, count: int, tokens: int = 16) -> list[tuple[int, ...]]:
    rng, words = random.Random(1), vocabulary(setup)
    return [tuple(rng.randrange(2, words) for _ in range(tokens)) for _ in range(count)]


def bring(learner: LearnerWorker, engine: Child, manifest: Manifest) -> dict[str, float]:
    """Bring a version to the engine, as the driver does; return the seconds of each step. Raises the engine's error."""
    kind = TRANSPORTS[manifest.transport]
    began = time.perf_counter()
    sending: threading.Thread | None = None
    if kind.broadcast:
        seat = learner.open_group(2, TRANSFER_SECONDS)
        engine.ask("load", manifest, [replace(seat, rank=1)])
        sending = threading.Thread(target=learner.send, args=(manifest, seat), daemon=True)
        sending.start()
    else:
        engine.ask("load", manifest, _payload(learner, manifest))
    try:
        steps: dict[str, float] = engine.answer()
    finally:
        if sending is not None:
            sending.join(TRANSFER_SECONDS)
    total = time.perf_counter() - began
    if LOAD not in steps or TRANSFER not in steps:
        return {"total": total}
    after = steps[TOTAL] - steps[TRANSFER]  # loading, dropping caches and the canary
    return {"transfer": total - after, "load": steps[LOAD], "canary": after - steps[LOAD], "total": total}


def _payload(learner: LearnerWorker, manifest: Manifest) -> Sequence[Any]:
    if manifest.transport == "ipc":
        return [learner.share(manifest.version)]
    return [learner.chunk(number) for number in range(learner.chunk_count())]
