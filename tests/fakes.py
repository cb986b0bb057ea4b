"""In-process stand-ins for generators, judge and learner: the whole loop runs in a unit test, without Ray or engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.records import (
    Canary,
    Completion,
    Failure,
    GeneratorStatus,
    Group,
    Judgement,
    Lease,
    Manifest,
    Pair,
    Prompt,
)
from launch.ports import GeneratorDead, GeneratorUnavailable, Publication


class FakePrompts:
    """Prompt `i` at position `i`."""

    def prompt(self, position: int) -> Prompt:
        return Prompt(f"fake:{position}", (1, 2, 3), f"prompt {position}")


class FakeGenerator:
    """A generator in this process: answers each lease after one turn of the event loop, at its current version."""

    def __init__(self, name: str, *, die_after: int | None = None, dead_for_good: bool = False) -> None:
        self.name = name
        self.version = 0
        self.loads: list[int] = []
        self.deaths = 0
        self._held: list[Lease] = []
        self._die_after = die_after
        self._dead_for_good = dead_for_good
        self._answered = 0

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def submit(self, leases: Sequence[Lease]) -> None:
        self._held.extend(leases)

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        await asyncio.sleep(0.001)
        if self._die_after is not None and self._answered >= self._die_after:
            self._die_after, self._held, self.version = None, [], 0
            self.deaths += 1
            raise (GeneratorDead if self._dead_for_good else GeneratorUnavailable)(self.name)
        startable = [lease for lease in self._held if lease.min_version <= self.version]
        self._held = [lease for lease in self._held if lease.min_version > self.version]
        self._answered += len(startable)
        return [Group(lease, tuple(self._completion(k) for k in range(2))) for lease in startable]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        await asyncio.sleep(0.001)
        self.version = manifest.version
        self.loads.append(manifest.version)
        return manifest.version

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(self.name, self.version, 0, len(self._held), 0, 0.0, 0.0, 0.0)

    def _completion(self, k: int) -> Completion:
        return Completion((5 + k, 2), (-1.0, -0.5), (self.version, self.version), "x" * k, finished=True)


class FakeJudge:
    """Scores a completion by the length of its text."""

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        await asyncio.sleep(0)
        return [
            replace(group, judgement=Judgement(tuple(float(len(c.text)) for c in group.completions)))
            for group in groups
        ]

    async def seconds(self) -> float:
        return 0.0


@dataclass
class FakeStats:
    loss: float = 0.5
    skipped: bool = False
    log_ratio_max: float = 0.0


class FakeLearner:
    """Counts what it is asked to do."""

    def __init__(self, update_seconds: float = 0.002) -> None:
        self.batches: list[list[Pair]] = []
        self.exported: list[int] = []
        self.retired: list[int] = []
        self._update_seconds = update_seconds

    async def update(self, pairs: Sequence[Pair]) -> FakeStats:
        await asyncio.sleep(self._update_seconds)
        self.batches.append(list(pairs))
        return FakeStats()

    async def export(self, version: int) -> Publication:
        self.exported.append(version)
        return Publication(Manifest(version, (), Canary((), ()), "shm"))

    async def retire(self, version: int) -> None:
        self.retired.append(version)

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
        return [([-1.0] * len(response), [-1.5] * len(response)) for _, response in sequences]


def group_of(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """An unjudged group with one completion for each tuple of token versions."""
    completions = tuple(
        Completion(tuple(range(len(each))), tuple(-0.1 * (i + 1) for i in range(len(each))), each, "", finished=True)
        for each in versions
    )
    return Group(lease, completions)


def judged_group(lease: Lease, *versions: tuple[int, ...]) -> Group:
    """`group_of`, with the scores 0, 1, 2, ..."""
    return replace(group_of(lease, *versions), judgement=Judgement(tuple(float(i) for i in range(len(versions)))))
