"""Cost of the frozen reference in the learner: an update that computes its log-probs, and one that reads them.

    python -m benchmarks.reference --model MODEL_DIR --output benchmarks/results/reference.json

Takes turns on the same games in one process, K completions to a prompt: an update of a learner that holds the
reference, an update of one without, whose completions bring what a reference actor recorded, and that actor's own
scoring of the batch, which in a run happens on other cores. CPU seconds of the process count beside wall time: they say
the same on a machine that others use too. Bytes are those of each learner's tensors between updates, counted.
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actors.records import Completion, Game
from benchmarks.record import tell
from benchmarks.shared_prompts import games
from learner.config import LearnerConfig, LearnerSpec, OptimizerConfig
from learner.losses.config import RewardLossConfig
from learner.reference.config import ReferenceConfig, ReferenceSpec
from learner.reference.worker import ReferenceWorker
from learner.tensors.batching import rollout
from learner.training.engine import TrainEngine

HELD, RECORDED, ACTOR = "reference at the learner", "log-probs recorded", "reference actor"


def learner_of(config: LearnerConfig, model: Path, *, with_reference: bool) -> TrainEngine:
    """A learner of one rank."""
    spec = LearnerSpec(config=config, model_dir=str(model), with_reference=with_reference, total_updates=1000)
    return TrainEngine(spec)


def scored(worker: ReferenceWorker, batch: Sequence[Game]) -> list[Game]:
    """Let a reference actor score the players of each game, as while it is judged."""

    def with_logprobs(game: Game) -> tuple[Completion, ...]:
        rows = worker.score([rollout(game.prompt_token_ids, each) for each in game.players])
        return tuple(replace(each, reference_logprobs=row) for each, row in zip(game.players, rows, strict=True))

    return [replace(game, players=with_logprobs(game)) for game in batch]


def tensor_bytes() -> int:
    """Count the bytes of all tensors that are alive, each storage once."""
    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
    return sum(storages.values())


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return median seconds of each way, their ratio, and bytes."""
    config = LearnerConfig(
        dtype=arguments.dtype,
        zero_stage=1,
        cpus_per_rank=torch.get_num_threads(),
        micro_batch_tokens=arguments.micro_batch_tokens,
        optimizer=OptimizerConfig(lr=1e-7, schedule="constant"),
        loss=RewardLossConfig(),
    )
    own = ReferenceConfig(count=1, cpus=torch.get_num_threads(), micro_batch_tokens=arguments.micro_batch_tokens)
    worker = ReferenceWorker(ReferenceSpec(config=own, model_dir=str(arguments.model), dtype=arguments.dtype))
    vocabulary = worker._model.head.weight.shape[0]
    sizes = (arguments.completions, arguments.prompt, arguments.completion)
    batch = games(arguments.games, *sizes, varied=False, vocabulary=vocabulary)
    batches = {HELD: batch, RECORDED: scored(worker, batch)}
    learners: dict[str, TrainEngine] = {}
    losses, size = {}, {}
    for name, items in batches.items():
        before = tensor_bytes()
        learners[name] = learner_of(config, arguments.model, with_reference=name == HELD)
        losses[name] = learners[name].update(items).loss  # warms up, and makes the optimizer's state
        size[name] = tensor_bytes() - before
    seconds: dict[str, list[tuple[float, float]]] = {HELD: [], RECORDED: [], ACTOR: []}
    for turn in range(arguments.repeats):
        for name, found in seconds.items():
            way = (lambda: scored(worker, batch)) if name == ACTOR else partial(learners[name].update, batches[name])
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
            print(f"{turn} {name}: {found[-1][0]:.2f} CPU s, {found[-1][1]:.2f} s", flush=True)
    medians = {
        name: [statistics.median(values) for values in zip(*each, strict=True)] for name, each in seconds.items()
    }
    return {
        "cpu_seconds": {name: round(cpu, 3) for name, (cpu, _) in medians.items()},
        "wall_seconds": {name: round(wall, 3) for name, (_, wall) in medians.items()},
        "update_ratio": round(medians[RECORDED][0] / medians[HELD][0], 3),
        "losses": losses,
        "learner_bytes": size,
        "parameters": sum(each.numel() for each in learners[HELD].policy.model.parameters()),
        "all_cpu_and_wall_seconds": seconds,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--games", type=int, default=1)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--micro-batch-tokens", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(arguments.threads)
    tell(arguments, measure(arguments))


if __name__ == "__main__":
    main()
