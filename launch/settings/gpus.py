"""Decide which roles of a run may share a GPU. Pure; knows no machine."""

from actors.generation.config import GeneratorConfig
from actors.records import TRANSPORTS
from learner.config import LearnerConfig


def gpu_problem(learner: LearnerConfig, generators: GeneratorConfig, transport: str) -> str | None:
    """Return why GPUs cannot be shared out as the settings say, with the next step; None if they can."""
    rank, engine = learner.gpus_per_rank, generators.gpus
    if rank == 0.0:
        if TRANSPORTS[transport].needs_gpus:
            return (
                f"publication.transport {transport} needs GPUs, and learner.gpus_per_rank is 0; set the transport to "
                "shm, gloo or object_store, or gpus_per_rank above 0"
            )
        if engine < 1.0:
            return (
                f"generators.gpus {engine:g} has no effect: with learner.gpus_per_rank 0 generators run on CPU too; "
                "leave it out, or set learner.gpus_per_rank above 0"
            )
        if generators.async_scheduling:
            return (
                "generators.async_scheduling is for engines on GPUs, and with learner.gpus_per_rank 0 generators run "
                "on CPU; leave it out, or set learner.gpus_per_rank above 0"
            )
        return _without_gpus(learner, generators)
    if transport == "nccl":
        return _nccl_problem(rank, generators)
    return _ipc_problem(learner, generators) if transport == "ipc" else None


def _without_gpus(learner: LearnerConfig, generators: GeneratorConfig) -> str | None:
    """Return which setting does nothing on CPU, with the next step; None if none is set."""
    only = {
        f"learner.{name}": getattr(learner, name)
        for name in ("offload_optimizer", "offload_weights", "offload_reference")
    }
    only["generators.gpu_memory_utilization"] = generators.gpu_memory_utilization
    for name, value in only.items():
        if value:
            return (
                f"{name} {str(value).lower()} is for GPUs, and learner.gpus_per_rank is 0, so the run is on CPU; leave "
                "it out, or set learner.gpus_per_rank above 0"
            )
    return None


def share_a_card(*shares: float) -> bool:
    """Return whether Ray could reserve these shares on one GPU."""
    return round(sum(shares), 4) <= 1.0


def _nccl_problem(rank: float, generators: GeneratorConfig) -> str | None:
    engine = generators.gpus
    members = ""
    if share_a_card(rank, engine):
        members = f"a generator (generators.gpus {engine:g}) and a learner rank (learner.gpus_per_rank {rank:g})"
    elif generators.count > 1 and share_a_card(engine, engine):
        members = f"two generators (generators.gpus {engine:g})"
    if not members:
        return None
    return (
        f"publication.transport nccl: {members} could get the same GPU, which NCCL refuses; set the transport to shm "
        "or object_store, or both shares to 1"
    )


def _ipc_problem(learner: LearnerConfig, generators: GeneratorConfig) -> str | None:
    wanted = {"learner.ranks": learner.ranks, "generators.tensor_parallel_size": generators.tensor_parallel_size}
    wrong = [f"{name} is {value}" for name, value in wanted.items() if value != 1]
    if wrong:
        return (
            f"publication.transport ipc connects one learner rank with generators on its own GPU, and "
            f"{' and '.join(wrong)}; set {' and '.join(wanted)} to 1, or the transport to nccl"
        )
    total = learner.gpus_per_rank + generators.count * generators.gpus
    if not share_a_card(total):
        return (
            f"publication.transport ipc needs the learner rank and all generators on one GPU, and their shares add up "
            f"to {total:g}: learner.gpus_per_rank {learner.gpus_per_rank:g} and {generators.count} times "
            f"generators.gpus {generators.gpus:g}; lower them to at most 1 together, or set the transport to shm"
        )
    return None
