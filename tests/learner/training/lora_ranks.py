"""Adapters on the ranks of a process group: every ZeRO stage on the same batches, and all that comes of it.

`python -m tests.learner.training.lora_ranks RANK WORLD PORT DIRECTORY SCENARIO` is one rank.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

from actors.adapters.config import PublishedLoraConfig
from learner.config import LearnerConfig
from tests.learner.backend.ranks import CONFIG, OPTIMIZER, _join, full_state, random_pairs, spec_of

RANK, ALPHA = 3, 6
UPDATES = 3


def lora_config(zero_stage: int, **settings: Any) -> LearnerConfig:
    """`ranks.CONFIG` with adapters. With Adam's usual epsilon rounding decides where a weight goes whose gradient is
    next to nothing."""
    optimizer = OPTIMIZER.model_copy(update={"eps": 1e-4})
    lora = PublishedLoraConfig(rank=RANK, alpha=ALPHA, **settings.pop("lora", {}))
    return CONFIG.model_copy(update={"lora": lora, "optimizer": optimizer, "zero_stage": zero_stage, **settings})


def staged(directory: Path, zero_stage: int, world: int) -> Any:
    """The engine of a stage: tied weights at 3, recomputed layers at 1 and 3, sequences split over the ranks at 2."""
    from learner.training.engine import TrainEngine

    model = directory / ("tied" if zero_stage == 3 else "model")
    split = world if zero_stage == 2 else 1
    config = lora_config(zero_stage, gradient_checkpointing=zero_stage in (1, 3), sequence_parallel=split)
    return TrainEngine(spec_of(model, config))


def base_digest(engine: Any) -> str:
    """A digest of all frozen weights. Collective."""
    digest = hashlib.sha256()
    frozen = {name: each for name, each in engine.policy.model.named_parameters() if ".lora_" not in name}
    for part in engine.policy.gather([frozen]):
        for name, tensor in sorted(part.items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _stages(rank: int, world: int, port: int, directory: Path) -> None:
    _join(rank, world, port)
    batches = [random_pairs(seed) for seed in range(UPDATES)]
    results = {}
    for stage in (0, 1, 2, 3):
        engine = staged(directory, stage, world)
        result: dict[str, Any] = {"start": full_state(engine), "base": base_digest(engine)}
        result["updates"] = [engine.update(batch) for batch in batches]
        result |= {"state": full_state(engine), "base after": base_digest(engine)}
        engine.policy.save_pretrained(directory / f"adapter{stage}")
        result["score"] = engine.policies.score([((1, 2, 3), (4, 5, 6, 7))], temperature=1.0)
        engine.policy.save(directory / f"stage{stage}", {"note": stage})
        result["went on"], result["state that went on"] = engine.update(batches[0]), full_state(engine)
        engine.policy.destroy()
        resumed = staged(directory, stage, world)
        resumed.policy.load(directory / f"stage{stage}")
        result["resumed"], result["resumed state"] = resumed.update(batches[0]), full_state(resumed)
        resumed.policy.destroy()
        results[stage] = result
    if rank == 0:
        torch.save(results, directory / "lora.pt")


def _alone(rank: int, world: int, port: int, directory: Path) -> None:
    """What two ranks wrote goes on with one."""
    _join(rank, world, port)
    results = {}
    for stage in (0, 1, 2, 3):
        engine = staged(directory, stage, world)
        engine.policy.load(directory / f"stage{stage}")
        results[stage] = {"update": engine.update(random_pairs(0)), "state": full_state(engine)}
        engine.policy.destroy()
    torch.save(results, directory / "alone.pt")


def _offloaded(rank: int, world: int, port: int, directory: Path) -> None:
    """The updates of stage 3 with weights in host memory."""
    _join(rank, world, port)
    from learner.training.engine import TrainEngine

    config = lora_config(3, gradient_checkpointing=True, offload_weights=True)
    engine = TrainEngine(spec_of(directory / "tied", config))
    kept = engine.policy._engine.zero_offload_param()
    updates = [engine.update(random_pairs(seed)) for seed in range(UPDATES)]
    result = {"updates": updates, "state": full_state(engine), "device": str(kept.device)}
    engine.policy.destroy()
    if rank == 0:
        torch.save(result, directory / "offloaded.pt")


def train_on_games(directory: Path, kind: str, zero_stage: int, reference: str | None) -> dict[str, Any]:
    """Two updates on games, with the base as the reference or with a copy of its own."""
    from actors.generation.config import OpponentConfig
    from learner.losses.config import CorrectionConfig, GameLossConfig
    from learner.training.engine import TrainEngine
    from tests.learner.losses.games import random_games

    opponent = OpponentConfig(kind=kind, beta=0.3)
    loss = GameLossConfig(tau=0.1, correction=CorrectionConfig(opponents="token"), opponent=opponent)
    config = lora_config(zero_stage, loss=loss, lora={"publish": "merged"})
    reference_dir = None if reference is None else str(directory / reference)
    engine = TrainEngine(spec_of(directory / "model", config, reference_dir=reference_dir))
    stats = [engine.update(random_games(seed, 3, 3, 2, vocabulary=18), measure_step=True) for seed in range(2)]
    result = {"stats": stats, "state": full_state(engine), "base": base_digest(engine)}
    engine.policy.destroy()
    return result


def _games(rank: int, world: int, port: int, directory: Path) -> None:
    _join(rank, world, port)
    results = {
        (kind, stage, reference): train_on_games(directory, kind, stage, reference)
        for kind, stage in (("mixture", 3), ("mixture", 1), ("reference", 2))
        for reference in (None, "copy")
    }
    if rank == 0:
        torch.save(results, directory / "games.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenarios = {"stages": _stages, "alone": _alone, "games": _games, "offloaded": _offloaded}
    scenarios[sys.argv[5]](*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
    torch.distributed.barrier()  # the first rank's end takes the others' meeting point away
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way
