"""The simulated generators: groups that share an engine, on a clock that all generators have in common.

That clock stands still while weights are taken and runs slow while cores are short, so neither costs an event for each
generator. Must not know leases, admission or the learner.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.plan.model import Generators
from launch.run.pools.loads import Loads

ROUNDING = 1e-9
"""Relative difference below which two times are one."""


class Running(NamedTuple):
    """A group that an engine samples; ordered by what the engine will have done when it ends."""

    work: float
    lease: int
    attempt: int
    version: int


@dataclass(slots=True)
class Engine:
    """One generator. `work` is its progress on each of its groups until `at`, in seconds of a group alone."""

    work: float = 0.0
    at: float = 0.0
    running: list[Running] = field(default_factory=list)
    """A heap."""
    turn: int = 0
    """Counts changes: what is in the fleet's heap with another number is out of date."""


class Fleet:
    """All generators. Times are those of `clock`, in seconds during which generators sample."""

    def __init__(self, generators: Generators) -> None:
        self.clock = 0.0
        self.active = 0
        """Generators that sample something."""
        self._speeds = [1.0 / generators.slowdown(running) for running in range(generators.slots + 1)]
        self._engines = [Engine() for _ in range(generators.count)]
        self._loads = Loads[int](generators.slots)
        for number in range(generators.count):
            self._loads.join(number)
        self._due: list[tuple[float, int, int]] = []
        self._changed: set[int] = set()

    @property
    def room(self) -> int:
        """Groups that could be started."""
        return self._loads.room

    @property
    def next_end(self) -> float:
        """Return the time at which the next group ends; infinity without a running group."""
        due, engines = self._due, self._engines
        while due and engines[due[0][2]].turn != due[0][1]:
            heapq.heappop(due)
        return due[0][0] if due else math.inf

    def start(self, seconds: float, lease: int, attempt: int, version: int) -> None:
        """Start a group of `seconds` (alone) at the generator with the fewest; call `started` after the last one."""
        number = self._loads.take()
        engine = self._engines[number]
        self._advance(engine)
        self.active += not engine.running
        heapq.heappush(engine.running, Running(engine.work + seconds, lease, attempt, version))
        self._changed.add(number)

    def started(self) -> None:
        """Foresee the ends of what was started."""
        for number in self._changed:
            self._foresee(number)
        self._changed.clear()

    def ended(self) -> list[Running]:
        """Return the groups that end by now."""
        found: list[Running] = []
        while self.next_end <= self.clock + ROUNDING * max(1.0, self.clock):
            _, _, number = heapq.heappop(self._due)
            engine = self._engines[number]
            self._advance(engine)
            # The first one was foreseen for now, whatever rounding has made of its work since.
            engine.work = max(engine.work, engine.running[0].work)
            limit = engine.work + ROUNDING * max(1.0, engine.work)
            while engine.running and engine.running[0].work <= limit:
                found.append(heapq.heappop(engine.running))
            self.active -= not engine.running
            self._loads.set(number, len(engine.running))
            self._foresee(number)
        return found

    def _advance(self, engine: Engine) -> None:
        engine.work += (self.clock - engine.at) * self._speeds[len(engine.running)]
        engine.at = self.clock

    def _foresee(self, number: int) -> None:
        engine = self._engines[number]
        engine.turn += 1
        if engine.running:
            left = max(0.0, engine.running[0].work - engine.work)
            heapq.heappush(self._due, (self.clock + left / self._speeds[len(engine.running)], engine.turn, number))
