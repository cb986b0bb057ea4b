"""Training on a fixed data set: examples in a seeded order, and evaluation on the held-out set.

`sft.py`, `dpo.py` and `preference.py` define losses; `learner/training/trainer.py` takes the step. Methods are
collective: all ranks must enter them with equal arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.errors import UsageError
from learner.backend.sharded import ShardedModel
from learner.records import StageStats
from learner.training.trainer import Objective, Trainer


@dataclass(frozen=True, slots=True)
class Stage:
    """Model, loss and data of one stage."""

    module: Any  # as `ShardedModel`'s
    objective: Objective
    train: Sequence[Any]
    validation: Sequence[Any]
    held_out_objective: Objective | None = None  # objective of the held-out set; None: `objective`
    finish: Callable[[Path, torch.device], dict[str, Any]] | None = None
    """Called on rank 0 to add files to the trained model's directory; returns values for the summary."""


class StageTrainer:
    """Takes steps over a stage's training examples, in a seeded order that depends only on the update's number."""

    def __init__(self, stage: Stage, policy: ShardedModel, batch_size: int, seed: int) -> None:
        if not stage.train:
            raise UsageError("no training example is left; provide more data, or lower data.validation_fraction")
        self._stage, self.policy, self._batch_size, self._seed = stage, policy, batch_size, seed
        self._trainer = Trainer(policy)

    def advance(self, updates: int) -> list[StageStats]:
        """Take the next `updates` optimizer steps. Raises RunError if too many were skipped."""
        return [self._update() for _ in range(updates)]

    def evaluate(self) -> dict[str, float]:
        """Return `loss` and the objective's metrics over the held-out set; empty if it is empty."""
        stage = self._stage
        if not stage.validation:
            return {}
        values = self._trainer.evaluate(stage.validation, stage.held_out_objective or stage.objective)
        del values["seconds"]
        return values

    def _update(self) -> StageStats:
        start, objective = self.policy.updates * self._batch_size, self._stage.objective
        order = example_order(len(self._stage.train), range(start, start + self._batch_size), self._seed)
        values = self._trainer.update([self._stage.train[index] for index in order], objective).values
        return StageStats(metrics={name: values.pop(name) for name in objective.sums}, **values)


def example_order(count: int, positions: range, seed: int) -> list[int]:
    """Return the examples at `positions` of an endless order whose epoch e is a permutation drawn from (seed, e)."""
    wanted = []
    epochs: dict[int, np.ndarray] = {}
    for position in positions:
        epoch, place = divmod(position, count)
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(count)
        wanted.append(int(epochs[epoch][place]))
    return wanted
