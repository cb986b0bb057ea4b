"""Splits of N GPUs between generators and learner, and which of them is the fastest. Pure but for the simulations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.errors import UsageError
from launch.plan.derive import Derived
from launch.plan.model import Model, rank_speed
from launch.plan.prediction import Cost, Outcome, predict

SHOWN = 12
"""Splits to simulate at most: those that could be fastest."""
SPLIT_GROUPS = 20_000
"""Groups to simulate of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """GPUs that one generator, one learner rank and everything else reserve."""

    generator: float = 1.0
    rank: float = 1.0
    other: float = 0.0

    def total(self, generators: int, ranks: int) -> float:
        """Return what a run reserves."""
        return generators * self.generator + ranks * self.rank + self.other


@dataclass(frozen=True, slots=True)
class Split:
    """One way to share out the GPUs, and its predicted figures."""

    generators: int
    ranks: int
    outcome: Outcome
    cost: Cost


def candidates(gpus: int, cards: Cards) -> list[tuple[int, int]]:
    """Return all splits (generators, ranks) that leave no room for another generator.

    Raises UsageError if `gpus` are too few for one generator and one rank.
    """
    found, ranks = [], 1
    while (generators := int((gpus - cards.other - ranks * cards.rank) / cards.generator + 1e-6)) >= 1:
        found.append((generators, ranks))
        ranks += 1
    if not found:
        least = cards.total(1, 1)
        raise UsageError(
            f"--gpus {gpus}: one generator and one learner rank reserve {least:g} GPUs; give --gpus {least:.0f} or "
            "more, or lower generators.tensor_parallel_size"
        )
    return found


def of_split(derived: Derived, measured_ranks: int, generators: int, ranks: int) -> Model:
    """Return the model with so many generators and ranks, made from one with `measured_ranks`."""
    model = derived.model
    faster = rank_speed(ranks, derived.efficiency) / rank_speed(measured_ranks, derived.efficiency)
    learner = model.learner
    return replace(
        model,
        generators=replace(model.generators, count=generators),
        learner=replace(learner, update=learner.update.times(1.0 / faster), cpus=learner.cpus * ranks / measured_ranks),
    )


def best_splits(derived: Derived, measured_ranks: int, gpus: int, cards: Cards, price: float | None) -> list[Split]:
    """Return the splits of `gpus` GPUs that could be fastest, the fastest first."""
    models = {each: of_split(derived, measured_ranks, *each) for each in candidates(gpus, cards)}
    likely = sorted(models, key=lambda each: -models[each].most_groups_per_second)[:SHOWN]
    splits = []
    for generators, ranks in likely:
        outcome = predict(models[generators, ranks], most_groups=SPLIT_GROUPS)
        cost = Cost(cards.total(generators, ranks), outcome.seconds, price)
        splits.append(Split(generators, ranks, outcome, cost))
    return sorted(splits, key=lambda split: (-split.outcome.groups_per_second, split.ranks))
