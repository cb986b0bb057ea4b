"""What a run needs of machines that somebody else sets up: their GPUs and their shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from actors.errors import UsageError
from launch.cluster.placement import GENERATOR, Actor, Node, place, run_actors, sampling_actors
from launch.settings.run import RunConfig

MOST_GPUS = 64
"""That a node may have."""

SPARE_MIB = 1024
"""For what engines and collectives keep there."""


def shared_memory_mib(config: RunConfig) -> int:
    """Return the shared memory of each machine (MiB): Ray's object store, the versions published there, and 1 GiB.

    A model whose directory cannot be read here counts nothing.
    """
    from actors.errors import OffbeatError
    from launch.doctor.model_facts import read_model
    from launch.doctor.run_checks import published_bytes

    try:
        policy = read_model(config.model.path)
    except (OffbeatError, OSError, ValueError):
        policy = None
    published = 0 if policy is None else published_bytes(config, policy)
    return config.cluster.object_store_mib + (published >> 20) + SPARE_MIB


def gpus_per_node(config: RunConfig, nodes: int, asked: int | None, option: str) -> tuple[int, list[str]]:
    """Return the GPUs to ask for on each node, and what to say of them; `asked` is what `option` says, if it was given.

    Raises UsageError if `asked` is too few for the run to start.
    """
    if config.learner.gpus_per_rank == 0:
        if not asked:
            return 0, ["the run is on CPU and asks for no GPU: `offbeat init --gpus 8x80` writes one for GPUs"]
        return asked, [f"the run is on CPU (learner.gpus_per_rank 0) and uses none of the GPUs of {option} {asked}"]
    required = run_actors(config)
    least = _fewest(required, nodes)
    if asked is None:
        others = [actor for actor in required if actor.role != GENERATOR]
        return _fewest([*others, *(actor for actor in sampling_actors(config) if actor.role == GENERATOR)], nodes), []
    if asked < least:
        on = "the node" if nodes == 1 else f"each of the {nodes} nodes"
        raise UsageError(
            f"{option} {asked} is too few: the run needs {least} on {on}; ask for more, or lower generators.count, "
            "learner.ranks or their shares of a GPU"
        )
    return asked, []


def _fewest(actors: Iterable[Actor], nodes: int) -> int:
    """Return the fewest GPUs of each node that hold all actors. Raises UsageError if no node holds them."""
    alone = [replace(actor, cpus=0.0, custom={}, labels={}) for actor in actors]
    for count in range(1, MOST_GPUS):
        try:
            place(alone, [Node(0.0, count)] * nodes)
        except UsageError:
            continue
        return count
    place(alone, [Node(0.0, MOST_GPUS)] * nodes)
    return MOST_GPUS
