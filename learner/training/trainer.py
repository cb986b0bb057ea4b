"""Training on a fixed data set: steps, held-out evaluation and the order of examples, for any objective.

The stages before the loop (`supervised.py` and its neighbours) say what a loss is; this module must not know it, nor
Ray. Methods that say so are collective: all ranks enter them, with the same arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.errors import UsageError
from learner.backend.sharded import ShardedModel
from learner.records import StageStats


@dataclass(frozen=True, slots=True)
class Measured:
    """One micro-batch."""

    loss: Tensor
    """Scalar sum over the micro-batch; carries the gradient."""
    sums: Mapping[str, Tensor | float]
    """Scalar sums of the objective's `metrics`."""
    tokens: int
    padded_tokens: int


class StageObjective(Protocol):
    """How a stage's loss consumes a batch of examples."""

    metrics: tuple[str, ...]
    """Names of the values reported as means beside the loss."""

    def weight(self, examples: Sequence[Any]) -> float:
        """What the summed loss and metrics of `examples` are divided by: their tokens, or their number."""

    def micro_batches(self, examples: Sequence[Any], rank: int, ranks: int) -> list[Any]:
        """This rank's micro-batches, as many on every rank and at least one; empty ones where it has nothing."""

    def filler(self, examples: Sequence[Any]) -> Any:
        """The cheapest micro-batch, for a rank that has nothing."""

    def measure(self, module: Any, micro_batch: Any, device: torch.device) -> Measured:
        """Loss and metrics of a micro-batch; `module` is the trained one's forward pass."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage trains, on what."""

    module: nn.Module
    model: Any
    """The Hugging Face model inside `module`."""
    objective: StageObjective
    train: Sequence[Any]
    validation: Sequence[Any]
    held_out_objective: StageObjective | None = None
    """How held-out examples are measured; None: as the others."""
    finish: Callable[[Path, torch.device], dict[str, Any]] | None = None
    """Called on rank 0 with the directory of the trained model, which it may add to; returns what the summary tells."""


class StageTrainer:
    """Steps over the training examples of a stage, in a seeded order that is a pure function of the update's number."""

    def __init__(self, stage: Stage, policy: ShardedModel, batch_size: int, seed: int) -> None:
        if not stage.train:
            raise UsageError("no training example is left; give more data, or hold out less of it")
        self._stage, self.policy, self._batch_size, self._seed = stage, policy, batch_size, seed
        self._held_out_objective = stage.held_out_objective or stage.objective

    def advance(self, updates: int) -> list[StageStats]:
        """Takes the next `updates` optimizer steps. Collective. Raises RunError once too many were skipped."""
        return [self._update(self._batch(self.policy.updates)) for _ in range(updates)]

    def evaluate(self) -> dict[str, float]:
        """`loss` and the objective's metrics over the held-out examples; empty where there are none. Collective."""
        if not self._stage.validation:
            return {}
        with torch.no_grad():
            objective = self._held_out_objective
            return self._reduce(*self._pass(self._stage.validation, objective, train=False), objective)

    def finish(self, directory: Path) -> dict[str, Any]:
        """What the stage adds to its model, trained and written to `directory`. Ranks but the first do nothing."""
        if self._stage.finish is None or self.policy.rank:
            return {}
        return self._stage.finish(directory, self.policy.device)

    def _batch(self, update: int) -> list[Any]:
        start = update * self._batch_size
        positions = example_order(len(self._stage.train), range(start, start + self._batch_size), self._seed)
        return [self._stage.train[index] for index in positions]

    def _update(self, examples: Sequence[Any]) -> StageStats:
        started = time.perf_counter()
        lr = self.policy.begin_update()
        objective = self._stage.objective
        sums, weight = self._pass(examples, objective, train=True)
        applied, norm = self.policy.step()
        values = self._reduce(sums, weight, objective)
        stats = StageStats(
            update=self.policy.updates,
            loss=values.pop("loss"),
            metrics={name: values[name] for name in objective.metrics},
            grad_norm=norm,
            lr=lr,
            tokens=int(values["tokens"]),
            padded_tokens=int(values["padded_tokens"]),
            seconds=time.perf_counter() - started,
            skipped=not applied,
            skipped_updates=self.policy.skipped_updates,
        )
        if not applied:
            self.policy.report_skipped(examples)
        return stats

    def _pass(self, examples: Sequence[Any], objective: StageObjective, *, train: bool) -> tuple[Tensor, float]:
        """This rank's sums over `examples` (loss, metrics, tokens, padded tokens), and the whole batch's weight."""
        policy = self.policy
        weight = objective.weight(examples)
        batches = objective.micro_batches(examples, policy.rank, policy.ranks)
        sums = torch.zeros(3 + len(objective.metrics), dtype=torch.float64, device=policy.device)
        for number, batch in enumerate(batches, start=1):
            measured = objective.measure(policy, batch or objective.filler(examples), policy.device)
            if train:
                # DeepSpeed averages gradients over ranks; the mean wanted is over the examples of all ranks. A loss
                # that is not finite makes every gradient so, and the step's own check is then the only one needed.
                finite = torch.where(measured.loss.detach().isfinite(), 1.0, math.nan)
                scale = policy.ranks / weight if batch else 0.0
                policy.backward(measured.loss * finite * scale, last=number == len(batches))
            if batch:
                values = [measured.loss.detach(), *(measured.sums[name] for name in objective.metrics)]
                values += [float(measured.tokens), float(measured.padded_tokens)]
                sums += torch.stack([torch.as_tensor(value, device=policy.device).double() for value in values])
        return sums, weight

    def _reduce(self, sums: Tensor, weight: float, objective: StageObjective) -> dict[str, float]:
        dist.all_reduce(sums)
        *means, tokens, padded_tokens = sums.tolist()
        names = ("loss", *objective.metrics)
        values = {name: value / weight for name, value in zip(names, means, strict=True)}
        return values | {"tokens": tokens, "padded_tokens": padded_tokens}


def example_order(count: int, positions: range, seed: int) -> list[int]:
    """Indices of the examples at `positions` of the endless order: epoch e is a permutation drawn from (seed, e)."""
    wanted = []
    epochs: dict[int, np.ndarray] = {}
    for position in positions:
        epoch, place = divmod(position, count)
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(count)
        wanted.append(int(epochs[epoch][place]))
    return wanted
