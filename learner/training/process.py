"""The environment of a rank's process. Set before torch and deepspeed are imported, because they read it then."""

import os
from dataclasses import dataclass

from learner.config import TrainerConfig


@dataclass(frozen=True, slots=True)
class RankPlace:
    """One rank among the learner's ranks. Made by the wiring; read by the rank's worker."""

    rank: int
    world_size: int
    master_addr: str  # host of rank 0, where the ranks meet
    master_port: int


def set_environment(config: TrainerConfig, place: RankPlace) -> None:
    """Set the variables that torch.distributed and DeepSpeed read at import."""
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": str(place.master_port),
        "LOCAL_RANK": "0",
        "OMP_NUM_THREADS": str(threads(config)),
        "DS_ACCELERATOR": "cuda" if config.gpus_per_rank > 0 else "cpu",
    }
    if config.gpus_per_rank == 0:
        # Otherwise DeepSpeed compiles a function of an optimizer that nobody uses, for a second at each start.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    else:
        import torch

        # A rank to which Ray gave one GPU sees only that one; otherwise the ranks of a host take GPUs in turn.
        os.environ["LOCAL_RANK"] = str(place.rank % max(1, torch.cuda.device_count()))


def threads(config: TrainerConfig) -> int:
    """Return the rank's thread count. More than its cores would contend; a fixed number keeps results reproducible."""
    return max(1, int(config.cpus_per_rank))
