"""The optimizer step and the evaluation pass, for every objective: the online losses and those of the stages.

An objective says what a loss consumes and computes. The trainer adds what all of them need: micro-batches, a filler for
idle ranks, scaling over ranks, the guard against non-finite losses, sums over ranks, and the report of a skipped step.
It must not depend on losses, data or Ray. Methods marked collective must be entered by all ranks with equal arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.backend.sharded import ShardedModel
from learner.tensors.batching import schedule


@dataclass(frozen=True, slots=True)
class Measured:
    """One micro-batch."""

    loss: Tensor
    """Scalar sum over the micro-batch; carries the gradient."""
    sums: Mapping[str, Tensor]
    """Scalar sums of the objective's `sums`, detached."""
    tokens: int
    """Tokens in all its forward passes of the policy, without padding."""
    padded_tokens: int
    """The same with padding."""
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar maxima of the objective's `maxima`, detached."""
    detail: Any = None
    """Whatever the caller of `Trainer.update` wants back."""


class Objective:
    """How a loss consumes a batch of items. Subclasses define what raises NotImplementedError, and override the rest.

    A micro-batch holds at most `micro_batch_tokens` padded tokens, unless one item alone exceeds them.
    """

    sums: tuple[str, ...] = ()
    """Names of the values summed beside the loss."""
    maxima: tuple[str, ...] = ()
    """Names of the values of which the largest is kept."""

    def __init__(self, micro_batch_tokens: int) -> None:
        self._micro_batch_tokens = micro_batch_tokens

    def weight(self, items: Sequence[Any]) -> float:
        """Return the divisor of the summed loss of `items`: their number, unless overridden."""
        return float(len(items))

    def active(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the items that are computed: all, unless overridden."""
        return items

    def length(self, item: Any) -> int:
        """Return the tokens of the longest sequence of `item`."""
        raise NotImplementedError

    def rows(self, items: Sequence[Any]) -> int:
        """Return the sequences per item that share a forward pass: two, unless overridden."""
        return 2

    def micro_batches(self, items: Sequence[Any], rank: int, ranks: int) -> list[Any]:
        """Split `items` into this rank's micro-batches: equally many on every rank, at least one, some may be empty."""
        active = self.active(items)
        lengths = [self.length(item) for item in active]
        rounds = schedule(lengths, self.rows(items), ranks, self._micro_batch_tokens)
        return [[active[index] for index in shares[rank]] for shares in rounds] or [[]]

    def filler(self, items: Sequence[Any]) -> Any:
        """Return the cheapest micro-batch, for a rank that has none left."""
        return [min(items, key=self.length)]

    def prepare(self, forward: Any, micro_batch: Any) -> Any:
        """Run the forward passes without gradient. All come before the first pass with gradient."""
        return None

    def measure(self, forward: Any, micro_batch: Any, prepared: Any) -> Measured:
        """Compute loss and metrics of a micro-batch, from `prepare`'s result and the forward pass with gradient."""
        raise NotImplementedError

    def means(self, items: Sequence[Any], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        """Turn sums and maxima over all ranks into reported values: sums over `weight`, unless overridden."""
        weight = self.weight(items)
        return {name: sums[name] / weight for name in ("loss", *self.sums)}


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, alike on all ranks except `details`."""

    update: int
    """Number of this update, from 1; skipped ones count."""
    applied: bool
    """False if loss or gradients were not finite on any rank: then no rank took the step."""
    grad_norm: float
    lr: float
    values: dict[str, Any]
    """The objective's `means`, with `tokens`, `padded_tokens` and `seconds` (slowest rank)."""
    details: list[Any]
    """`Measured.detail` of this rank's micro-batches."""


class Trainer:
    """Takes optimizer steps on `policy`. Objectives call `forward`, the policy itself unless given."""

    def __init__(self, policy: ShardedModel, forward: Any = None) -> None:
        self.policy = policy
        self._forward = policy if forward is None else forward

    def update(self, items: Sequence[Any], objective: Objective) -> Step:
        """Take one optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        Raises RunError once more updates were skipped than `max_skipped_updates`.
        """
        started, policy = time.perf_counter(), self.policy
        lr = policy.begin_update()
        totals, details = self._run(items, objective, train=True)
        applied, grad_norm = policy.step()
        values = totals.reduce(items, objective, time.perf_counter() - started)
        if not applied:
            policy.report_skipped(items)
        return Step(policy.updates, applied, grad_norm, lr, values, details)

    @torch.no_grad()
    def evaluate(self, items: Sequence[Any], objective: Objective) -> dict[str, Any]:
        """Measure `items` without training: the objective's `means`, `tokens` and `padded_tokens`. Collective."""
        started = time.perf_counter()
        totals, _ = self._run(items, objective, train=False)
        return totals.reduce(items, objective, time.perf_counter() - started)

    def _run(self, items: Sequence[Any], objective: Objective, *, train: bool) -> tuple[_Totals, list[Any]]:
        policy, weight = self.policy, objective.weight(items)
        batches = objective.micro_batches(items, policy.rank, policy.ranks)
        # Before any pass with gradient: ZeRO-3 prefetches weights along the order of modules that it recorded, and
        # never records that of a backward pass if a pass without gradient comes in between.
        with torch.no_grad():
            prepared = [objective.prepare(self._forward, own or objective.filler(items)) for own in batches]
        totals, details = _Totals(objective, policy.device), []
        for number, (batch, known) in enumerate(zip(batches, prepared, strict=True), start=1):
            measured = objective.measure(self._forward, batch or objective.filler(items), known)
            totals.add(measured, counts=bool(batch))
            if batch:
                details.append(measured.detail)
            if train:
                # DeepSpeed averages gradients over ranks; the mean wanted is over the items of all ranks. A non-finite
                # loss makes every gradient non-finite, so the check of the gradient norm is the only one needed.
                finite = torch.where(measured.loss.detach().isfinite(), 1.0, math.nan)
                scale = policy.ranks / weight if batch else 0.0
                policy.backward(measured.loss * finite * scale, last=number == len(batches))
        return totals, details


class _Totals:
    """Sums and maxima over the micro-batches of one rank, on its device until they are reduced."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._names = ("loss", *objective.sums)
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._maxima = torch.zeros(len(objective.maxima), dtype=torch.float64, device=device)
        self._tokens = [0, 0]

    def add(self, measured: Measured, *, counts: bool) -> None:
        """Add a micro-batch. A filler does not count, except for its tokens."""
        self._tokens = [self._tokens[0] + measured.tokens, self._tokens[1] + measured.padded_tokens]
        if not counts:
            return
        values = {"loss": measured.loss.detach(), **measured.sums}
        self._sums += torch.stack([values[name].to(self._sums) for name in self._names])
        if measured.maxima:
            self._maxima = torch.maximum(self._maxima, torch.stack(list(measured.maxima.values())).to(self._maxima))

    def reduce(self, items: Sequence[Any], objective: Objective, seconds: float) -> dict[str, Any]:
        """Add up over all ranks. Collective."""
        sums = torch.cat([self._sums, self._sums.new_tensor(self._tokens)])
        maxima = torch.cat([self._maxima, self._maxima.new_tensor([seconds])])
        dist.all_reduce(sums)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        *totals, tokens, padded_tokens = sums.tolist()
        *largest, slowest = maxima.tolist()
        means = objective.means(
            items, dict(zip(self._names, totals, strict=True)), dict(zip(objective.maxima, largest, strict=True))
        )
        return means | {"tokens": int(tokens), "padded_tokens": int(padded_tokens), "seconds": slowest}
