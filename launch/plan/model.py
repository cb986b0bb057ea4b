"""Model of a run, in seconds: the input of the simulation. Pure; knows no run, no file and no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from random import Random

from actors.replay_buffer.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that one piece of work takes, as a distribution."""

    mean: float
    spread: float = 0.0
    """Standard deviation as a share of the mean, of a lognormal distribution. 0: always the mean."""
    sample: tuple[float, ...] = ()
    """Measured values as multiples of their mean, to draw from instead of a lognormal distribution."""

    def draws(self, random: Random) -> Iterator[float]:
        """Yield seconds of one piece after the other, without end.

        Of measured values each comes once before any comes again, so that a short run has their mean.
        """
        variance = math.log1p(self.spread**2)
        while self.sample:
            yield from (self.mean * value for value in random.sample(self.sample, len(self.sample)))
        while self.spread:
            yield self.mean * math.exp(random.gauss(-0.5 * variance, math.sqrt(variance)))
        yield from repeat(self.mean)

    def times(self, factor: float) -> Times:
        """Return the same distribution with a mean `factor` times as large."""
        return replace(self, mean=self.mean * factor)

    @classmethod
    def of(cls, mean: float, values: tuple[float, ...]) -> Times:
        """Return the distribution of `values`, moved to `mean`."""
        centre = sum(values) / len(values) if values else 0.0
        return cls(mean, sample=tuple(value / centre for value in values)) if centre > 0.0 else cls(mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generators:
    """The generators, which are all alike."""

    count: int = 1
    slots: int = 1
    """Groups that one of them samples at a time at most: generators.max_running_prompts."""
    group: Times
    """Times of one group, if a generator samples nothing else."""
    batching: float = math.inf
    """Groups per second of a generator that samples very many at a time, as a multiple of those with one at a time."""
    take_seconds: float = 0.0
    """Time to load new weights. Nothing is sampled meanwhile."""
    failure_share: float = 0.0
    """Share of the leases that end in a failure."""
    cpus: float = 1.0
    """Cores that one of them keeps busy; read only if `Model.cores` is set."""

    def slowdown(self, running: int) -> float:
        """Return how many times as long a group takes among `running` groups as alone."""
        return 1.0 + max(0, running - 1) / self.batching

    def groups_per_second(self, running: int) -> float:
        """Return what one generator samples with `running` groups at a time."""
        return running / (self.group.mean * self.slowdown(running))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """The learner with all its ranks."""

    update: Times
    publish_seconds: float = 0.0
    """Time of one publication, in which the learner stands still."""
    pause_seconds: float = 0.0
    """Pause after each update: evaluation by enumeration, checkpoints, and the driver's work between two updates."""
    cpus: float = 1.0
    """Cores that it keeps busy as it trains; read only if `Model.cores` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Judges and the driver, which each group passes one after the other."""

    count: int = 1
    seconds: float = 0.0  # of one judge for one group
    driver_seconds: float = 0.0  # of the driver's core for one group


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A run."""

    replay: ReplayConfig
    updates: int
    generators: Generators
    learner: Learner
    judges: Judges = Judges()
    evaluation_every: int = 0
    """Updates between evaluations. 0: none before the end."""
    evaluation_groups: int = 0
    """Groups that the generators sample for each of them, before any lease."""
    cores: float | None = None
    """Cores that generators and learner share. None: each has its own."""

    @property
    def most_groups_per_second(self) -> float:
        """Return an upper bound: the speed of all generators with full engines, or the learner's if that is slower."""
        each, learner, replay = self.generators, self.learner, self.replay
        update = learner.update.mean + learner.pause_seconds + learner.publish_seconds / replay.updates_per_publish
        learning = replay.prompts_per_update * replay.max_reuse / update if update else math.inf
        return min(each.count * each.groups_per_second(each.slots), learning)


def rank_speed(ranks: int, efficiency: float) -> float:
    """Return how many times as fast `ranks` ranks train as one: each after the first adds `efficiency` of a rank."""
    return 1.0 + efficiency * (ranks - 1)
