"""Choose the Ray that a run joins, and check that its nodes have room. Imports nothing heavy, and not Ray."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.errors import UsageError
from actors.foreign.passed_on import meets
from actors.records import TRANSPORTS
from launch.settings.run import ClusterConfig, RunConfig
from launch.settings.runtime_env import address_problem
from learner.config import TrainerConfig

RANK, GENERATOR, JUDGE, REFERENCE = "learner rank", "generator", "judge", "reference actor"
_SETTINGS = {
    RANK: "learner.ranks, learner.cpus_per_rank, learner.gpus_per_rank, learner.resources or learner.labels",
    GENERATOR: "generators.count, generators.cpus, generators.gpus, generators.tensor_parallel_size, "
    "generators.resources or generators.labels",
    JUDGE: "judging.count, judging.judge.gpus, judging.resources or judging.labels",
    REFERENCE: "reference.count, reference.cpus, reference.gpus, reference.resources or reference.labels",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A host's cores, GPUs and custom resources, as Ray counts them, and its labels."""

    cpus: float
    gpus: int
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Actor:
    """Reservation of one process of a run, and the labels of the nodes that it may run on."""

    role: str
    cpus: float
    gpus: float
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Place of an actor: the number of its node, and of its GPUs there."""

    actor: Actor
    node: int
    cards: tuple[int, ...]


def address_to_join(cluster: ClusterConfig) -> str | None:
    """Return the address of the Ray to join; None to start one. Raises UsageError if RAY_ADDRESS is no address."""
    address = cluster.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
        if problem := address_problem(address):
            raise UsageError(f"the variable RAY_ADDRESS: {problem}; or unset it, and the run starts a Ray of its own")
    return None if address == "local" else address


def run_actors(config: RunConfig) -> list[Actor]:
    """List the actors that must be placed before a run trains, in the order in which they are started."""
    before = [*_judges(config), *_references(config)]
    return [*before, *rank_actors(config.learner), *_generators(config, config.generators.required)]


def sampling_actors(config: RunConfig) -> list[Actor]:
    """List all judges and generators, in the order in which they are started."""
    return [*_judges(config), *_generators(config, config.generators.count)]


def rank_actors(trainer: TrainerConfig) -> list[Actor]:
    """List the ranks of a learner or a stage."""
    own = Actor(RANK, trainer.cpus_per_rank, trainer.gpus_per_rank, trainer.resources, trainer.labels)
    return [own] * trainer.ranks


def _judges(config: RunConfig) -> list[Actor]:
    own = config.judging
    return [Actor(JUDGE, 0.0, own.gpus, own.resources, own.labels)] * own.count


def _references(config: RunConfig) -> list[Actor]:
    own = config.reference
    return [Actor(REFERENCE, own.cpus, own.gpus, own.resources, own.labels)] * own.count


def _generators(config: RunConfig, count: int) -> list[Actor]:
    own = config.generators
    return [Actor(GENERATOR, own.cpus, generator_gpus(config), own.resources, own.labels)] * count


def resources_needed(actors: Iterable[Actor]) -> dict[str, float]:
    """Sum the CPU cores, GPUs and custom resources that `actors` reserve."""
    listed = list(actors)
    needed = {"CPU": sum(actor.cpus for actor in listed), "GPU": round(sum(actor.gpus for actor in listed), 4)}
    for actor in listed:
        for name, amount in actor.custom.items():
            needed[name] = round(needed.get(name, 0.0) + amount, 4)
    return needed


def too_little(resource: str, needed: float, have: float) -> str:
    """Say that Ray has too little of a custom resource, and what to do."""
    return (
        f"the run needs {needed:g} of the resource {resource} and Ray has {have:g}; start a node with `ray start "
        f"--resources='{{\"{resource}\": {needed:g}}}'` and join it by cluster.address, or lower generators.resources, "
        "learner.resources, judging.resources or reference.resources"
    )


def generator_gpus(config: RunConfig) -> float:
    """Return the GPUs that each generator reserves, over all its workers; 0 if the run uses no GPUs."""
    if config.learner.gpus_per_rank == 0:
        return 0.0
    return config.generators.tensor_parallel_size * config.generators.gpus


def on_learner_host(config: RunConfig) -> bool:
    """Return whether generators must stay on the host of learner rank 0."""
    return TRANSPORTS[config.publication.transport].one_host


def plan(config: RunConfig, nodes: Sequence[Node]) -> list[Place]:
    """Place the actors of a run on `nodes` as Ray does. Raises UsageError, with the first that finds no room."""
    places = place(run_actors(config), nodes, together=on_learner_host(config))
    if config.publication.transport == "ipc":
        _check_one_card(places)
    return places


def place(actors: Sequence[Actor], nodes: Sequence[Node], *, together: bool = False) -> list[Place]:
    """Place `actors` in order, each on the first node with room. Raises UsageError, with the first that finds none.

    Learner ranks go to one node if one holds them all. With `together`, generators stay on the node of rank 0. A share
    below one GPU goes to the GPU with the least room for it, whole GPUs only to free ones: Ray's own rule
    (`NodeResourceInstanceSet::TryAllocate`).
    """
    rooms = [_Room(node.cpus, [1.0] * node.gpus, dict(node.custom), node.labels) for node in nodes]
    ranks = [actor for actor in actors if actor.role == RANK]
    places: list[Place] = []
    home: int | None = None  # node of rank 0
    for actor in actors:
        if actor.role == RANK and home is None:
            holding = [number for group in (ranks, ranks[:1]) for number, room in enumerate(rooms) if room.holds(group)]
            home = holding[0] if holding else None
        order = list(range(len(rooms)))
        if home is not None and actor.role == RANK:
            order = [home, *order]
        elif home is not None and together and actor.role == GENERATOR:
            order = [home]
        found = next(((number, cards) for number in order if (cards := rooms[number].take(actor)) is not None), None)
        if found is None:
            raise UsageError(
                _no_room(actor, actors, places, [(number, rooms[number]) for number in dict.fromkeys(order)])
            )
        places.append(Place(actor, *found))
    return places


@dataclass(slots=True)
class _Room:
    """Free resources of one node."""

    cpus: float
    cards: list[float] = field(default_factory=list)  # share of each GPU that is free
    custom: dict[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def take(self, actor: Actor) -> tuple[int, ...] | None:
        """Reserve what `actor` needs and return the numbers of its GPUs. If it does not fit, return None."""
        cards = self._cards(actor.gpus)
        if cards is None or round(self.cpus - actor.cpus, 4) < 0.0 or not meets(self.labels, actor.labels):
            return None
        left = {name: round(self.custom.get(name, 0.0) - amount, 4) for name, amount in actor.custom.items()}
        if any(amount < 0.0 for amount in left.values()):
            return None
        self.custom |= left
        self.cpus = round(self.cpus - actor.cpus, 4)
        for card in cards:
            self.cards[card] = round(self.cards[card] - min(1.0, actor.gpus), 4)
        return cards

    def holds(self, actors: Sequence[Actor]) -> bool:
        """Return whether all `actors` fit together."""
        copy = _Room(self.cpus, list(self.cards), dict(self.custom), self.labels)
        return all(copy.take(actor) is not None for actor in actors)

    def _cards(self, gpus: float) -> tuple[int, ...] | None:
        if gpus < 1.0:
            fitting = [card for card, free in enumerate(self.cards) if free >= gpus]
            if gpus == 0.0:
                return ()
            return (min(fitting, key=lambda card: self.cards[card]),) if fitting else None
        free = [card for card, share in enumerate(self.cards) if share == 1.0][: int(gpus)]
        return tuple(free) if len(free) == int(gpus) else None


def in_groups(nodes: Sequence[str], size: int) -> list[int]:
    """Order the bundles on `nodes` so that each `size` in a row are on one node, if it has as many.

    The rest of each node comes last. Within a node the order stays.
    """
    if size == 1:
        return list(range(len(nodes)))
    on = {node: [number for number, other in enumerate(nodes) if other == node] for node in nodes}
    whole = {node: len(numbers) // size * size for node, numbers in on.items()}
    first = [number for node, numbers in on.items() for number in numbers[: whole[node]]]
    return first + [number for node, numbers in on.items() for number in numbers[whole[node] :]]


def describe(places: Sequence[Place]) -> str:
    """List who shares a GPU, for example `1 learner rank and 1 generator share GPU 0`; empty if nobody does."""
    by_card: dict[tuple[int, int], list[str]] = {}
    for each in places:
        for card in each.cards:
            by_card.setdefault((each.node, card), []).append(each.actor.role)
    several_nodes = len({each.node for each in places}) > 1
    return "; ".join(
        f"{counted(roles)} share GPU {card}" + (f" of node {node}" if several_nodes else "")
        for (node, card), roles in sorted(by_card.items())
        if len(roles) > 1
    )


def counted(roles: Sequence[str]) -> str:
    """Count actors by role: `2 generators and 1 judge`."""
    counts = [f"{roles.count(role)} {role}{'s' * (roles.count(role) > 1)}" for role in dict.fromkeys(roles)]
    return " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)


def _no_room(actor: Actor, actors: Sequence[Actor], places: Sequence[Place], rooms: Sequence[tuple[int, _Room]]) -> str:
    """Name an actor without room in `rooms`, the room that is left, and the setting to change."""
    number = sum(each.actor.role == actor.role for each in places) + 1
    count = sum(each.role == actor.role for each in actors)
    gpus = f"{actor.gpus:g} of one GPU" if actor.gpus < 1 else f"{actor.gpus:g} free GPUs of one node"
    custom = [f"{amount:g} {name}" for name, amount in actor.custom.items()]
    custom += [f"a node with {name}={value}" for name, value in actor.labels.items()]
    needs = " and ".join([f"{actor.cpus:g} CPUs"] * (actor.cpus > 0) + [gpus] * (actor.gpus > 0) + custom)
    left = "; ".join(
        f"node {number}: {room.cpus:g} CPUs"
        + "".join(f", {share:g} of GPU {n}" for n, share in enumerate(room.cards))
        + "".join(f", {room.custom.get(name, 0.0):g} {name}" for name in actor.custom)
        + "".join(f", {name}={room.labels.get(name, 'unset')}" for name in actor.labels)
        for number, room in rooms
    )
    beside = counted([each.actor.role for each in places]) if places else "nothing"
    return (
        f"{actor.role} {number} of {count} needs {needs}, and beside {beside} no node has that left ({left}); lower "
        f"{_SETTINGS[actor.role]}, or use larger nodes"
    )


def _check_one_card(places: Sequence[Place]) -> None:
    """Raise UsageError if a generator is not on the learner's GPU."""
    (home,) = {(each.node, each.cards) for each in places if each.actor.role == RANK}
    elsewhere = [each for each in places if each.actor.role == GENERATOR and (each.node, each.cards) != home]
    if elsewhere:
        raise UsageError(
            "publication.transport ipc needs the learner rank and all generators on one GPU, and Ray would place "
            f"{counted([each.actor.role for each in elsewhere])} on another one; give judges and reference "
            "actors a whole GPU of their own, or none (judging.judge.gpus 1 or 0, reference.gpus too), or set the "
            "transport to shm"
        )
