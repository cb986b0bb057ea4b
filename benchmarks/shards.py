"""Ten thousand generators and D coordinators: what one coordinator carries, and what the whole then reaches.

    python -m benchmarks.shards [--shards 1 2 4 8 16] [--generators 10000] [--updates 8]

- `coordinators`: measured. The real loop, pool, buffer and journal of `benchmarks.driver` with 1/D of the generators.
- `admission`: measured. Processor time of the buffer alone: lease, add and batch.
- `journal`: measured. Bytes of a group on disk, with tokens, log-probs and text that are drawn at random.
- `clusters`: simulated, in virtual time. Every lease is granted, answered and consumed by the real buffers of
  `actors/replay_buffer/shards.py`; generators, weights, the learner and the time that a coordinator takes for a group,
  as measured above, are events. The judge takes no time.
- `slow`: the same with one shard that is slow in one respect.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import pickle
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Completion, Group, Judgement, Lease
from actors.replay_buffer.buffer import Batch
from actors.replay_buffer.config import ReplayConfig
from actors.replay_buffer.ledger import imbalance
from actors.replay_buffer.shards import Assembly, Shards
from benchmarks import record
from benchmarks.driver import Prompts, Size, Trial, configuration
from launch.output.journal import Journal

SCORED = Judgement((0.0,))
VOCABULARY = 128_000


@dataclass(frozen=True, slots=True)
class Cluster:
    """Simulated cluster. Times in seconds."""

    shards: int
    group_seconds: float
    """Time of a coordinator's core for each group."""
    generators: int = 10_000
    slots: int = 8
    """Groups that a generator samples at a time."""
    sampling_seconds: float = 4.0
    """Mean time of a group; uniform from half to one and a half of it, since completions have a token limit."""
    prompts: int = 80_000
    """B. A version is one update."""
    max_staleness: int = 4
    train_seconds: float = 3.6
    hop_seconds: float = 0.33
    """Time of a whole version from one host to another. In each step every host that has it sends it to one more."""
    message_seconds: float = 0.01
    deaths_every: float = 10.0
    """Time between two deaths of a generator drawn at random."""
    back_seconds: float = 30.0
    """Time until a dead generator runs again."""
    slow_shard: int | None = None
    slow_sampling: float = 1.0
    """Factors for that shard: time to sample, time of its coordinator for a group."""
    slow_coordinator: float = 1.0
    slow_news: float = 0.0
    """Seconds by which it hears of a version later than the others."""


@dataclass(slots=True)
class Generator:
    """One generator's state; `life` counts its deaths."""

    shard: int
    version: int = 0
    life: int = 0
    alive: bool = True
    running: dict[int, tuple[Lease, int, float]] = field(default_factory=dict)
    """Each lease with the version that it started with, and when."""
    waiting: list[Lease] = field(default_factory=list)
    """Leases that need newer weights."""


class Simulation:
    """Discrete events around real buffers, until update `updates` begins. What counts begins with update `warm`."""

    def __init__(self, cluster: Cluster, updates: int, warm: int, seed: int = 0) -> None:
        self.cluster, self.warm, self.updates = cluster, warm, updates
        config = ReplayConfig(
            prompts_per_update=cluster.prompts, max_staleness=cluster.max_staleness, lease_seconds=1e9, max_attempts=99
        )
        self.shards = Shards(config, cluster.shards)
        self.buffers = [self.shards.buffer(shard, Prompts()) for shard in range(cluster.shards)]
        self.assembly = Assembly(self.shards)
        self.generators = [Generator(number % cluster.shards) for number in range(cluster.generators)]
        self.free: list[list[int]] = [[] for _ in range(cluster.shards)]
        """Generators with a free slot, once for each."""
        self.starved = [False] * cluster.shards
        """The bound admits no lease at present."""
        self.missing = [Counter[int]() for _ in range(cluster.shards)]
        """Judged leases of each shard, by update."""
        self.core_free = [0.0] * cluster.shards
        self.now, self.published, self.training = 0.0, 0, False
        self.measured_from = math.inf
        self.busy = [0.0] * cluster.shards
        self.queued = 0.0
        self.staleness = Counter[int]()
        self.arrivals: dict[int, list[float]] = {}
        self._events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._order, self._random = count(), random.Random(seed)

    def run(self) -> dict[str, Any]:
        for number, generator in enumerate(self.generators):
            self.free[generator.shard] += [number] * self.cluster.slots
        for shard in range(self.cluster.shards):
            self._random.shuffle(self.free[shard])
            self._deal(shard)
        self._at(self.cluster.deaths_every, self._death)
        while self.assembly.updates <= self.updates:
            self.now, _, happen, arguments = heapq.heappop(self._events)
            happen(*arguments)
        return self._result()

    def _at(self, seconds: float, happen: Any, *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen, arguments))

    def _factor(self, shard: int, factor: float) -> float:
        return factor if shard == self.cluster.slow_shard else 1.0

    def _deal(self, shard: int) -> None:
        free = self.free[shard]
        if not free or self.starved[shard]:
            return
        leases = self.buffers[shard].lease(len(free), self.now)
        self.starved[shard] = len(leases) < len(free)
        for lease in leases:
            number = free.pop()
            generator = self.generators[number]
            if generator.version < lease.min_version:
                generator.waiting.append(lease)
            else:
                self._start(number, lease)

    def _start(self, number: int, lease: Lease) -> None:
        generator, cluster = self.generators[number], self.cluster
        mean = cluster.sampling_seconds * self._factor(generator.shard, cluster.slow_sampling)
        seconds = mean * self._random.uniform(0.5, 1.5)
        generator.running[lease.index] = lease, generator.version, self.now
        self._at(seconds, self._sampled, number, generator.life, lease.index)

    def _sampled(self, number: int, life: int, index: int) -> None:
        """The group goes to its coordinator, which takes one after the other."""
        generator = self.generators[number]
        if generator.life != life:
            return
        lease, version, started = generator.running.pop(index)
        shard = generator.shard
        self.busy[shard] += max(0.0, self.now - max(started, self.measured_from))
        one = Completion((0, 0), (0.0, 0.0), (version, generator.version), "", True)
        taken = self.cluster.group_seconds * self._factor(shard, self.cluster.slow_coordinator)
        self.core_free[shard] = max(self.core_free[shard], self.now) + taken
        if self.now >= self.measured_from:
            self.queued += self.core_free[shard] - self.now
        self._at(self.core_free[shard] - self.now, self._arrived, number, life, Group(lease, (one,), SCORED))

    def _arrived(self, number: int, life: int, group: Group) -> None:
        shard = self.generators[number].shard
        buffer, each = self.buffers[shard], self.shards.each.prompts_per_update
        if buffer.add(group):
            self.missing[shard][group.lease.index // each] += 1
            while self.missing[shard][buffer.updates] == each:
                part = buffer.batch()
                assert part is not None
                self._at(self.cluster.message_seconds, self._part, shard, part)
        if self.generators[number].life == life:
            self.free[shard].append(number)
            self._deal(shard)

    def _part(self, shard: int, part: Batch) -> None:
        self.assembly.add(shard, part)
        self.arrivals.setdefault(part.update, []).append(self.now)
        self._train()

    def _train(self) -> None:
        batch = None if self.training else self.assembly.batch()
        if batch is None:
            return
        self.training = True
        first = batch.update * self.cluster.prompts
        assert [group.lease.index for group in batch.groups] == list(range(first, first + self.cluster.prompts))
        if batch.update >= self.warm:
            self.measured_from = min(self.measured_from, self.now)
        if self.warm <= batch.update < self.updates:
            self.staleness.update(batch.staleness)
        self._at(self.cluster.train_seconds, self._trained)

    def _trained(self) -> None:
        """After step t of the tree 2^t - 1 generators have the version.

        A shard hears of it from the first of its own that does.
        """
        self.training = False
        self.published = self.assembly.training_version
        for number in range(len(self.generators)):
            depth = (number + 1).bit_length()
            self._at(self.cluster.hop_seconds * depth, self._weights, number, self.published)
        for shard in range(self.cluster.shards):
            late = self.cluster.slow_news if shard == self.cluster.slow_shard else 0.0
            depth = (shard + 1).bit_length()
            self._at(self.cluster.hop_seconds * depth + self.cluster.message_seconds + late, self._told, shard)
        self._train()

    def _weights(self, number: int, version: int) -> None:
        generator = self.generators[number]
        if generator.alive and version > generator.version:
            generator.version = version
            waiting, generator.waiting = generator.waiting, []
            for lease in waiting:
                self._start(number, lease)

    def _told(self, shard: int) -> None:
        # Late news may be overtaken: what counts is the newest that a generator of the shard has.
        version = max(self.generators[shard].version, self.buffers[shard].version)
        self.buffers[shard].published(version)
        self.starved[shard] = False
        self._deal(shard)

    def _death(self) -> None:
        self._at(self.cluster.deaths_every, self._death)
        number = self._random.randrange(self.cluster.shards, len(self.generators))  # the first ones bring the news
        generator = self.generators[number]
        if not generator.alive:
            return
        shard = generator.shard
        for _, _, started in generator.running.values():
            self.busy[shard] += max(0.0, self.now - max(started, self.measured_from))
        lost = [*generator.running, *(lease.index for lease in generator.waiting)]
        self.buffers[shard].lost(lost, "generator died")
        self.free[shard] = [each for each in self.free[shard] if each != number]
        generator.life, generator.alive, generator.running, generator.waiting = generator.life + 1, False, {}, []
        self.starved[shard] = False
        self._deal(shard)
        self._at(self.cluster.back_seconds, self._back, number)

    def _back(self, number: int) -> None:
        generator = self.generators[number]
        generator.alive, generator.version = True, self.published
        self.free[generator.shard] += [number] * self.cluster.slots
        self._deal(generator.shard)

    def _result(self) -> dict[str, Any]:
        cluster, seconds = self.cluster, self.now - self.measured_from
        for generator in self.generators:
            for _, _, started in generator.running.values():
                self.busy[generator.shard] += max(0.0, self.now - max(started, self.measured_from))
        ledger = self.assembly.ledger(self.buffers)
        assert imbalance(ledger) == ""
        assert not ledger["dropped"]
        assert max(self.staleness) <= cluster.max_staleness
        slots = Counter(generator.shard for generator in self.generators)
        idle = [1 - self.busy[shard] / (slots[shard] * cluster.slots * seconds) for shard in range(cluster.shards)]
        spreads = [
            max(times) - min(times) for update, times in self.arrivals.items() if self.warm <= update < self.updates
        ]
        groups = sum(self.staleness.values())
        return {
            "cluster": asdict(cluster),
            "groups_per_second": groups / seconds,
            "offered_per_second": cluster.generators * cluster.slots / cluster.sampling_seconds,
            "idle_share": sum(idle) / len(idle),
            "idle_share_by_shard": [min(idle), max(idle)],
            "coordinator_seconds_per_group": self.queued / groups,
            "part_spread_seconds": sum(spreads) / len(spreads),
            "staleness": {str(age): self.staleness[age] / groups for age in sorted(self.staleness)},
            "leases_lost": sum(ledger["returned"].values()),
        }


def admission(prompts: int, updates: int = 5) -> dict[str, float]:
    """Processor time of one buffer for a group, if groups are leased and answered one at a time."""
    buffer = Shards(ReplayConfig(prompts_per_update=prompts, max_staleness=2), 1).buffer(0, Prompts(), updates)
    one = Completion((0,), (0.0,), (0,), "", True)
    began = time.process_time()
    for update in range(updates):
        buffer.published(update)
        version = replace(one, versions=(update,))
        for _ in range(prompts):
            (lease,) = buffer.lease(1, 0.0)
            buffer.add(Group(lease, (version,), SCORED))
        assert buffer.batch() is not None
    return {"prompts": float(prompts), "cpu_ms_per_group": 1e3 * (time.process_time() - began) / (updates * prompts)}


def journal(size: Size, groups: int = 512) -> dict[str, float]:
    """Bytes of a group in the journal and as Ray sends it, and the journal's processor time.

    Tokens are as frequent as words are, so they compress; log-probs have 32 random bits.
    """
    choice = np.random.default_rng(0)

    def completion() -> Completion:
        tokens = tuple(int(VOCABULARY**share) - 1 for share in choice.random(size.tokens))
        logprobs = tuple(map(float, -choice.exponential(0.7, size.tokens).astype(np.float32)))
        return Completion(tokens, logprobs, (0,) * size.tokens, "".join(f" {token:x}" for token in tokens), True)

    def batch(update: int) -> Batch:
        leases = (Lease(update * groups + n, 0, Prompts().prompt(n), 0, 0.0) for n in range(groups))
        scored = Judgement(tuple(map(float, range(size.completions))))
        made = (Group(lease, tuple(completion() for _ in range(size.completions)), scored) for lease in leases)
        return Batch(update, 0, tuple(made), (0,) * groups)

    with tempfile.TemporaryDirectory() as directory:
        config = configuration(Path(directory) / "run", 1, {"replay": {"prompts_per_update": groups}})
        written = Journal(Path(directory) / "journal", config, print)
        written.add(batch(0))  # the first one loads libraries
        timed = batch(1)
        began = time.process_time()
        written.add(timed)
        seconds = time.process_time() - began
        written.flush()
        nbytes = sum(path.stat().st_size for path in (Path(directory) / "journal").iterdir())
    return {
        **asdict(size),
        "bytes_per_group": nbytes / (2 * groups),
        "pickled_bytes_per_group": len(pickle.dumps(timed.groups, protocol=5)) / groups,
        "cpu_ms_per_group": 1e3 * seconds / groups,
    }


def coordinator(generators: int, size: Size, seconds: float) -> dict[str, float]:
    """The real driver with that many simulated generators, flat out."""
    with tempfile.TemporaryDirectory() as directory:
        measured = Trial(Path(directory), generators, size, None).run(seconds)
    return {"generators": generators, "tokens": size.tokens, **measured}


SLOW: dict[str, dict[str, Any]] = {
    "told 5 s late": {"slow_news": 5.0},
    "told 20 s late": {"slow_news": 20.0},
    "coordinator 4 times as slow": {"slow_coordinator": 4.0},
    "generators 1.25 times as slow": {"slow_sampling": 1.25},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--generators", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=80_000, help="of a version, of all shards together")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of a coordinator")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/shards.json"))
    given = parser.parse_args(arguments)
    result: dict[str, Any] = {
        "admission": [admission(given.prompts // each) for each in given.shards],
        "journal": [journal(Size(4, tokens)) for tokens in (128, 512)],
        "coordinators": [],
        "clusters": [],
        "slow": {},
    }
    print(json.dumps(result))
    last: Cluster | None = None
    for each in given.shards:
        short, measured = (
            coordinator(given.generators // each, Size(4, tokens), given.seconds) for tokens in (128, 512)
        )
        result["coordinators"] += [{"shards": each, **short}, {"shards": each, **measured}]
        last = Cluster(each, 1.0 / measured["groups_per_second"], given.generators, prompts=given.prompts)
        result["clusters"].append(Simulation(last, given.updates, warm=3).run())
        print(json.dumps(result["coordinators"][-2:]), json.dumps(result["clusters"][-1]), flush=True)
    assert last is not None
    for name, slow in SLOW.items():
        result["slow"][name] = Simulation(replace(last, slow_shard=1, **slow), given.updates, warm=3).run()
        print(name, json.dumps(result["slow"][name]), flush=True)
    record.write(given.output, {**result, "machine": record.machine()})


if __name__ == "__main__":
    main()
