"""Programs of ranks that split sequences between them, and of those with whole ones to compare with.

`python -m tests.learner.backend.split_ranks RANK WORLD PORT DIRECTORY SCENARIO`, as `tests.learner.backend.ranks`,
whose `run_ranks` starts them. A scenario's name ends in the number of ranks that split a sequence.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from actors.adapters.config import PublishedLoraConfig
from actors.generation.config import OpponentConfig
from learner.losses.config import CorrectionConfig, GameLossConfig
from learner.publication.config import PublicationConfig
from learner.training.process import set_environment
from tests.learner.backend.ranks import (
    CONFIG,
    OPTIMIZER,
    full_state,
    place_of,
    random_pairs,
    random_sequences,
    spec_of,
    train_offline,
    train_supervised,
)
from tests.learner.losses.games import random_games

PROGRAM = "tests.learner.backend.split_ranks"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
"""Four ranks that split a sequence must repeat keys and values."""
# With Adam's usual epsilon rounding decides where a weight goes whose gradient is next to nothing.
LEARNER = CONFIG.model_copy(update={"optimizer": OPTIMIZER.model_copy(update={"eps": 1e-4})})
MIXTURE = GameLossConfig(
    tau=0.1,
    correction=CorrectionConfig(opponents="token", renormalise=True),
    opponent=OpponentConfig(kind="mixture", beta=0.3),
)


Case = tuple[bool, int, bool]
"""Whether items are games, whose opponents are of the mixture, or pairs; the ZeRO stage; whether layers recompute."""
CASES: list[Case] = [(False, 1, False), (False, 3, True), (True, 1, False), (True, 3, True)]
OTHER_CASES: list[Case] = [(games, stage, stage == 1) for games, stage, _ in CASES]
"""Variants: of both stages, the other with layers that recompute."""
SAVED: list[Case] = [(False, 1, False), (True, 3, True)]
"""Those that write a checkpoint, and those of four ranks."""
STAGES = (1, 3)
"""ZeRO stages of offline and supervised training, and of adapters on pairs and on games."""
Place = tuple[int, int, int]  # rank, ranks and port


def checkpoint_of(directory: Path, scenario: str, case: Case) -> Path:
    return directory / f"{scenario}-{'-'.join(map(str, case))}"


def make_worker(place: Place, directory: Path, case: Case, size: int, **more: Any) -> Any:
    """A worker whose ranks have 40 tokens each: of two that split sequences, micro-batches of 80."""
    from learner.training.worker import LearnerWorker

    (rank, world, port), (games, stage, again) = place, case
    settings = {"ranks": world, "sequence_parallel": size, "zero_stage": stage, "gradient_checkpointing": again}
    settings |= {"loss": MIXTURE, **more} if games else more
    spec = spec_of(directory / ("world" if games else "model"), LEARNER.model_copy(update=settings))
    publication = PublicationConfig(transport="object_store")
    return LearnerWorker(spec, place_of(rank, world, port), publication, str(directory / "publish"))


def update(worker: Any, case: Case, seed: int) -> Any:
    """Three games, of which four ranks in two groups leave one idle, or seven pairs."""
    if case[0]:
        return worker.update(random_games(seed, 3, 3, 2, vocabulary=18), measure_step=True)
    return worker.update(random_pairs(seed))


def cases_of(scenario: str, world: int) -> list[Case]:
    if scenario.startswith("other"):
        return OTHER_CASES
    return CASES if world < 4 else SAVED


def _train(place: Place, directory: Path, scenario: str, size: int) -> dict[Any, Any]:
    """Scores, two updates, a publication, a checkpoint, and another update."""
    results: dict[Any, Any] = {}
    for case in cases_of(scenario, place[1]):
        worker = make_worker(place, directory, case, size)
        result: dict[str, Any] = {"score": worker.score(random_sequences(0, 5)) if not case[0] else []}
        result["updates"] = [update(worker, case, seed) for seed in range(2)]
        result["state"] = full_state(worker._engine)
        result["manifest"] = worker.export(1)
        if place[0] == 0:
            chunks = [worker.chunk(index) for index in range(worker.chunk_count())]
            result["published"] = {name: torch.from_numpy(a.copy()) for chunk in chunks for name, a in chunk.items()}
        if case in SAVED:
            worker.save(str(checkpoint_of(directory, scenario, case)), {"note": scenario})
        result["updates"].append(update(worker, case, 2))
        worker._engine.policy.destroy()
        results[case] = result
    for stage in STAGES if scenario.startswith("train") and place[1] < 4 else ():
        adapted = make_worker(place, directory, (stage == 3, stage, False), size, lora=PublishedLoraConfig(rank=4))
        updates = [update(adapted, (stage == 3, stage, False), seed) for seed in range(2)]
        results["adapters", stage] = {"stats": updates, "state": full_state(adapted._engine), "held out": {}}
        adapted._engine.policy.destroy()
        results["offline", stage] = train_offline(directory, stage, ranks=place[1], sequence_parallel=size)
        results["supervised", stage] = train_supervised(
            directory, stage, packing=stage == 1, ranks=place[1], sequence_parallel=size
        )
    return results


def _resume(place: Place, directory: Path, size: int) -> dict[Any, Any]:
    """The last update once more, from checkpoints of two ranks that split sequences."""
    results: dict[Any, Any] = {}
    for case in SAVED:
        worker = make_worker(place, directory, case, size)
        client = worker.load(str(checkpoint_of(directory, "train-2-2", case)))
        results[case] = {"client": client, "state": full_state(worker._engine), "update": update(worker, case, 2)}
        worker._engine.policy.destroy()
    return results


def _main(rank: int, world: int, port: int, directory: Path, scenario: str) -> None:
    set_environment(LEARNER, place_of(rank, world, port))
    torch.set_num_threads(1)
    size = int(scenario.rpartition("-")[2])
    place = rank, world, port
    resumes = scenario.startswith("resume")
    results = _resume(place, directory, size) if resumes else _train(place, directory, scenario, size)
    if rank == 0:
        torch.save(results, directory / f"{scenario}.pt")


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5])
