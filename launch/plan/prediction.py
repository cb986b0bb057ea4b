"""Figures of a run, predicted or measured, in one form. Pure, except that it starts the simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.plan.model import Model
from launch.plan.simulation import Account, Simulation

MOST_GROUPS = 200_000
"""Groups to simulate at most; a longer run goes on at the pace of the second half of them."""
FEWEST_UPDATES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of a run from its first wait for a batch to the end of its last update."""

    updates: int
    seconds: float
    groups_per_second: float
    generator: Mapping[str, float]
    """Shares of the generators' time: generating, updating, idle."""
    learner: Mapping[str, float]
    """Shares of the learner's time: training, waiting, publishing, other."""
    staleness: Mapping[int, float]
    """Shares of the consumed groups, by staleness in versions."""
    discarded: float
    """Share of the leases that no update trained on: failed, expired or too old."""
    sampling_rate: float = 0.0
    """Groups per second of a generator that samples."""
    simulated: int | None = None
    """Updates that were simulated; None: measured."""

    @property
    def staleness_mean(self) -> float:
        return sum(age * share for age, share in self.staleness.items())

    @property
    def staleness_max(self) -> int:
        return max(self.staleness, default=0)

    def figures(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "updates": self.updates,
            "seconds": self.seconds,
            "groups_per_second": self.groups_per_second,
            "generator": dict(self.generator),
            "learner": dict(self.learner),
            "staleness": {
                "mean": self.staleness_mean,
                "max": self.staleness_max,
                "histogram": {str(age): share for age, share in self.staleness.items()},
            },
            "discarded": self.discarded,
            "simulated_updates": self.simulated,
        }


def predict(model: Model, seed: int = 0, most_groups: int = MOST_GROUPS) -> Outcome:
    """Simulate `model`; extrapolate what is beyond `most_groups` groups from the second half of what is simulated."""
    most = max(FEWEST_UPDATES, most_groups // model.replay.prompts_per_update)
    simulation = Simulation(model, seed)
    if model.updates <= most:
        return outcome(simulation.run(), model.updates)
    half, end = simulation.run(most // 2), simulation.run(most)
    return outcome(extrapolated(half, end, model.updates), most)


def extrapolated(half: Account, end: Account, updates: int) -> Account:
    """Return the account of `updates` updates, those after `end` like those between `half` and `end`."""
    factor = (updates - end.updates) / (end.updates - half.updates)

    def more(first: float, last: float) -> float:
        return last + factor * (last - first)

    account = end.copy()
    account.seconds, account.updates = more(half.seconds, end.seconds), updates
    account.generator = {name: more(half.generator[name], value) for name, value in end.generator.items()}
    account.learner = {name: more(half.learner[name], value) for name, value in end.learner.items()}
    for age, number in end.staleness.items():
        account.staleness[age] = round(more(half.staleness[age], number))
    account.sampled = round(more(half.sampled, end.sampled))
    return account


def outcome(account: Account, simulated: int | None) -> Outcome:
    """Sum up an account."""
    consumed, ledger = sum(account.staleness.values()), account.ledger
    at_work = ledger["in_flight"] + ledger["buffered"]
    finished = ledger["leased"] - at_work
    generating = account.generator["generating"]
    return Outcome(
        updates=account.updates,
        seconds=account.seconds,
        groups_per_second=consumed / account.seconds if account.seconds else 0.0,
        generator=shares(account.generator),
        learner=shares(account.learner),
        staleness={age: account.staleness[age] / consumed for age in sorted(account.staleness)} if consumed else {},
        discarded=1.0 - ledger["trained"] / finished if finished else 0.0,
        sampling_rate=account.sampled / generating if generating else 0.0,
        simulated=simulated,
    )


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each activity's share of the sum."""
    total = sum(seconds.values())
    return {name: value / total if total else 0.0 for name, value in seconds.items()}


@dataclass(frozen=True, slots=True)
class Cost:
    """GPUs that a run holds, what they cost, and for how long."""

    gpus: float
    seconds: float
    price: float | None = None  # of one GPU for an hour

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600.0

    @property
    def money(self) -> float | None:
        return None if self.price is None else self.price * self.gpu_hours
