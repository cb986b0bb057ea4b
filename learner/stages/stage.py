"""What a stage trains, on what: examples in a seeded order, held-out evaluation, and what it adds to its model.

The stages (`sft.py`, `dpo.py`, `preference.py`) define the loss; the step itself is `learner/training/trainer.py`.
Methods are collective: all ranks enter them with equal arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from actors.errors import UsageError
from learner.backend.sharded import ShardedModel
from learner.records import StageStats
from learner.training.trainer import Objective, Trainer


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's model, loss and data."""

    module: nn.Module
    model: Any
    """The Hugging Face model inside `module`."""
    objective: Objective
    train: Sequence[Any]
    validation: Sequence[Any]
    held_out_objective: Objective | None = None
    """Measures held-out examples; None: `objective`."""
    finish: Callable[[Path, torch.device], dict[str, Any]] | None = None
    """Called on rank 0 with the directory of the trained model, which it may add to; returns values for the summary."""


class StageTrainer:
    """Steps over the training examples of a stage, in a seeded order that depends on the update's number alone."""

    def __init__(self, stage: Stage, policy: ShardedModel, batch_size: int, seed: int) -> None:
        if not stage.train:
            raise UsageError("no training example is left; give more data, or hold out less of it")
        self._stage, self.policy, self._batch_size, self._seed = stage, policy, batch_size, seed
        self._trainer = Trainer(policy)

    def advance(self, updates: int) -> list[StageStats]:
        """Take the next `updates` optimizer steps. Raises RunError once too many were skipped."""
        return [self._update() for _ in range(updates)]

    def evaluate(self) -> dict[str, float]:
        """Return `loss` and the objective's metrics over the held-out examples; empty if there are none."""
        stage = self._stage
        if not stage.validation:
            return {}
        values = self._trainer.evaluate(stage.validation, stage.held_out_objective or stage.objective)
        del values["seconds"]
        return values

    def finish(self, directory: Path) -> dict[str, Any]:
        """Add to the trained model in `directory` what the stage adds. Does nothing except on rank 0."""
        if self._stage.finish is None or self.policy.rank:
            return {}
        return self._stage.finish(directory, self.policy.device)

    def _update(self) -> StageStats:
        start, objective = self.policy.updates * self._batch_size, self._stage.objective
        order = example_order(len(self._stage.train), range(start, start + self._batch_size), self._seed)
        step = self._trainer.update([self._stage.train[index] for index in order], objective)
        values = dict(step.values)
        return StageStats(
            update=step.update,
            metrics={name: values.pop(name) for name in objective.sums},
            grad_norm=step.grad_norm,
            lr=step.lr,
            skipped=not step.applied,
            skipped_updates=self.policy.skipped_updates,
            **values,
        )


def example_order(count: int, positions: range, seed: int) -> list[int]:
    """Return the examples at `positions` of the endless order: epoch e is a permutation drawn from (seed, e)."""
    wanted = []
    epochs: dict[int, np.ndarray] = {}
    for position in positions:
        epoch, place = divmod(position, count)
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(count)
        wanted.append(int(epochs[epoch][place]))
    return wanted
