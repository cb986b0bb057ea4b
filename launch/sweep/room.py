"""Count the runs of a sweep that fit on this machine at a time. Pure; facts of the machine are arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from actors.errors import UsageError
from launch.cluster.placement import address_to_join, resources_needed, run_actors
from launch.doctor import machine
from launch.doctor.footprint import PROCESS_BYTES
from launch.settings.run import RunConfig

GPUS = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Room:
    """Resources of this machine."""

    cpus: int
    memory: int  # free bytes
    cards: Sequence[str]  # GPUs, as CUDA_VISIBLE_DEVICES names them


def measure_room() -> Room:
    """Measure the cores, free memory and GPUs of this machine."""
    chosen = [each.strip() for each in os.environ.get(GPUS, "").split(",") if each.strip()]
    count = machine.visible_gpus()
    return Room(machine.cpus(), machine.memory().free, chosen[:count] or [str(number) for number in range(count)])


def slots(configs: Sequence[RunConfig], asked: int | None, room: Room) -> list[Mapping[str, str]]:
    """Return one entry for each run that may go on at a time: the environment variables that it gets.

    Runs that start their own Ray share the cores, and get GPUs of their own. On a cluster that all join, Ray shares
    out what there is, and only `asked` makes it more than one. Raises UsageError if `asked` exceeds the GPUs.
    """
    if any(address_to_join(config.cluster) is not None for config in configs):
        return [{}] * (asked or 1)
    needs = [resources_needed(run_actors(config)) for config in configs]
    cards = math.ceil(max(need["GPU"] for need in needs))
    most = len(room.cards) // cards if cards else None
    if most is not None and asked is not None and asked > max(1, most):
        raise UsageError(
            f"--parallel {asked} runs of up to {cards} GPUs each exceed the {len(room.cards)} GPUs of this machine; "
            f"lower it to {max(1, most)}, or join a larger cluster by cluster.address"
        )
    if asked is None:
        by_cores = room.cpus // max(1.0, max(need["CPU"] for need in needs))
        by_memory = room.memory // max(map(memory_of, configs))
        one_port = any(config.learner.port is not None for config in configs)
        asked = 1 if one_port else max(1, int(min(by_cores, by_memory)))
        asked = min(asked, max(1, most)) if most is not None else asked
    if asked == 1:
        return [{}]
    threads = {THREADS: str(max(1, room.cpus // asked))}
    if not most:
        return [threads] * asked
    return [threads | {GPUS: ",".join(_share(room.cards, cards, number))} for number in range(asked)]


def memory_of(config: RunConfig) -> int:
    """Estimate the host memory of a run (bytes): its processes, caches and object store, without its models."""
    processes = len(run_actors(config)) + 2  # the driver, and Ray's own
    caches = config.generators.count * (config.generators.kv_cache_mib << 20) if not config.learner.gpus_per_rank else 0
    return processes * PROCESS_BYTES + caches + (config.cluster.object_store_mib << 20)


def _share(cards: Sequence[str], size: int, number: int) -> Iterable[str]:
    return cards[number * size : (number + 1) * size]
