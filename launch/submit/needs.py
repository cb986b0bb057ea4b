"""Compute a run's needs of machines that somebody else sets up: GPUs, cores and shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from actors.errors import UsageError
from actors.foreign.text import many
from launch.cluster.placement import GENERATOR, Actor, Node, place, run_actors, sampling_actors
from launch.settings.run import RunConfig

MOST_GPUS = 64
"""Most GPUs that a node may have."""

SPARE_MIB = 1024
"""Room for what engines and collectives keep there."""


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
    least = _fewest_gpus(run_actors(config), nodes)
    if asked is None:
        return _fewest_gpus(_with_all_generators(config), nodes), []
    if asked < least:
        raise _too_few(f"{option} {asked}", least, nodes, "their shares of a GPU")
    return asked, []


def cores_per_node(config: RunConfig, nodes: int, gpus: int, asked: float | None, option: str) -> int:
    """Return the cores that the run needs on each node of `gpus` GPUs. Raises UsageError if `asked` are too few."""
    least = _fewest_cores(run_actors(config), nodes, gpus)
    if asked is not None and asked < least:
        raise _too_few(f"{option} {asked:g}", least, nodes, "their cores (generators.cpus, learner.cpus_per_rank)")
    return least


def memory_notes(config: RunConfig, pods: int, each: int, shared_mib: int, asked: str) -> list[str]:
    """Say if the run may need more memory than `pods` have, with `each` bytes; `asked` is what the user wrote.

    Raises UsageError if it needs more for sure. A model that is not here is not counted.
    """
    from launch.doctor.checkup import models_of
    from launch.doctor.footprint import size
    from launch.doctor.run_checks import estimated_memory

    amount = size(each) if each >> 20 else many(each, "byte")
    on = f"{asked} is {amount} for " + ("the pod" if pods == 1 else f"each of {pods} pods")
    if each <= shared_mib << 20:
        raise UsageError(
            f"{on}, and its /dev/shm of {shared_mib:,} MiB counts as its memory; ask for more, with a unit, such as "
            "128Gi, or lower --shared-memory"
        )
    models, _ = models_of(config)
    if models is None:
        return []
    least, likely, text = estimated_memory(config, models)
    note = f"{on}, and the run takes {text}; ask for more, or lower generators.count or learner.ranks"
    if least > pods * each:
        raise UsageError(note)
    return [note] if likely > pods * each else []


def _with_all_generators(config: RunConfig) -> list[Actor]:
    """List a run's actors with every generator, also those that may join later."""
    others = [actor for actor in run_actors(config) if actor.role != GENERATOR]
    return [*others, *(actor for actor in sampling_actors(config) if actor.role == GENERATOR)]


def _fewest_gpus(actors: Iterable[Actor], nodes: int) -> int:
    alone = [replace(actor, cpus=0.0, custom={}, labels={}) for actor in actors]
    return _first_with_room(alone, ([Node(0.0, count)] * nodes for count in range(1, MOST_GPUS + 1)))[0].gpus


def _fewest_cores(actors: Iterable[Actor], nodes: int, gpus: int) -> int:
    alone = [replace(actor, custom={}, labels={}) for actor in actors]
    total = sum(actor.cpus for actor in alone)
    counts = range(math.ceil(total / nodes), math.ceil(total) + 1)
    return int(_first_with_room(alone, ([Node(float(count), gpus)] * nodes for count in counts))[0].cpus)


def _first_with_room(actors: Sequence[Actor], choices: Iterable[list[Node]]) -> list[Node]:
    """Return the first nodes that hold all actors. Raises UsageError of the last ones if none do."""
    problem = None
    for nodes in choices:
        try:
            place(actors, nodes)
        except UsageError as error:
            problem = error
        else:
            return nodes
    assert problem is not None
    raise problem


def _too_few(asked: str, least: int, nodes: int, shares: str) -> UsageError:
    on = "the node" if nodes == 1 else f"each of the {nodes} nodes"
    return UsageError(
        f"{asked} is too few: the run needs {least} on {on}; ask for more, or lower generators.count, learner.ranks or "
        f"{shares}"
    )
