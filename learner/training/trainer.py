"""The optimizer step and the evaluation pass, for every objective: the online losses and those of the stages.

An objective defines what a loss consumes and computes. The trainer adds the rest: micro-batches, a filler for idle
ranks, scaling over ranks, the guard against non-finite losses, sums over ranks, and the report of a skipped step.
Must not depend on losses, data or Ray. Methods marked collective must be entered by all ranks with equal arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.backend.sharded import ShardedModel
from learner.tensors.batching import balance, schedule
from learner.tensors.sequence_groups import share_of


@dataclass(frozen=True, slots=True)
class Measured:
    """Loss and metrics of one micro-batch."""

    loss: Tensor  # scalar sum over the micro-batch, with gradient
    sums: Mapping[str, Tensor]  # scalar sums of the objective's `sums`, detached
    tokens: int
    """Tokens in all forward passes of the policy, without padding."""
    padded_tokens: int  # tokens with padding
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar maxima of the objective's `maxima`, detached."""
    detail: Any = None  # passed through to `Step.details`


class Objective:
    """A loss and its way through a batch. Subclasses must define the methods that raise NotImplementedError.

    A micro-batch holds at most `micro_batch_tokens` padded tokens, unless one item alone exceeds them. With
    `shares_prompts` nothing is padded, and the sequences of an item have their prompt in common.
    """

    sums: tuple[str, ...] = ()  # names of values to sum, beside the loss
    maxima: tuple[str, ...] = ()  # names of values whose maximum is kept

    def __init__(self, micro_batch_tokens: int, *, shares_prompts: bool = False) -> None:
        self._micro_batch_tokens, self._shares_prompts = micro_batch_tokens, shares_prompts

    def weight(self, items: Sequence[Any]) -> float:
        """Return the divisor of the summed loss of `items`: by default their number."""
        return float(len(items))

    def active(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the items that need computing: by default all."""
        return items

    def length(self, item: Any) -> int:
        """Count the tokens of the longest sequence of `item`."""
        raise NotImplementedError

    def rows(self, items: Sequence[Any]) -> int:
        """Count the sequences per item that share a forward pass: by default two."""
        return 2

    def tokens(self, item: Any) -> int:
        """Count the tokens of `item`, its prompt once. Only objectives that share prompts need it."""
        raise NotImplementedError

    def micro_batches(self, items: Sequence[Any], rank: int, ranks: int) -> list[Any]:
        """Return this rank's micro-batches of `items`: equally many on every rank, at least one; some may be empty."""
        active = self.active(items)
        if self._shares_prompts:
            rounds = balance([self.tokens(item) for item in active], ranks, self._micro_batch_tokens)
        else:
            lengths = [self.length(item) for item in active]
            rounds = schedule(lengths, self.rows(items), ranks, self._micro_batch_tokens)
        return [[active[index] for index in shares[rank]] for shares in rounds] or [[]]

    def filler(self, items: Sequence[Any]) -> Any:
        """Return the cheapest micro-batch, for a rank without work in the last round."""
        return [min(items, key=self.length)]

    def prepare(self, forward: Any, micro_batch: Any) -> Any:
        """Run the forward passes without gradient. Called for all micro-batches before the first pass with gradient."""
        return None

    def settle(
        self, batches: Sequence[Any], prepared: Sequence[Any], add: Callable[[Sequence[float]], list[float]]
    ) -> None:
        """Take from this rank's prepared micro-batches what depends on the whole batch, before the first `measure`.

        `add` sums numbers over all ranks; collective. By default nothing depends on it.
        """

    def measure(self, forward: Any, micro_batch: Any, prepared: Any) -> Measured:
        """Compute loss and metrics of a micro-batch, from `prepare`'s result and the forward pass with gradient."""
        raise NotImplementedError

    def means(self, items: Sequence[Any], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        """Turn sums and maxima over all ranks into reported values: by default the sums divided by `weight`."""
        weight = self.weight(items)
        return {name: sums[name] / weight for name in ("loss", *self.sums)}


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, equal on all ranks except `details`."""

    applied: bool
    """False if loss or gradients were not finite on any rank; then no rank took the step."""
    values: dict[str, Any]
    """The objective's `means` and every other field that `UpdateStats` and `StageStats` share."""
    details: list[Any]  # `Measured.detail` of the micro-batches that this rank reports


class Trainer:
    """Takes optimizer steps on `policy`. Objectives call `forward`, by default the policy itself."""

    def __init__(self, policy: ShardedModel, forward: Any = None) -> None:
        self.policy = policy
        self._forward = policy if forward is None else forward
        self._share = share_of(policy.rank, policy.ranks, policy.config.sequence_parallel)

    def update(self, items: Sequence[Any], objective: Objective) -> Step:
        """Take one optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        Raises RunError if more than `max_skipped_updates` updates were skipped.
        """
        started, policy = time.perf_counter(), self.policy
        lr = policy.begin_update()
        totals, details = self._run(items, objective, train=True)
        applied, grad_norm = policy.step()
        values = totals.reduce(items, objective, time.perf_counter() - started)
        if not applied:
            policy.report_skipped(items)
        values |= {"update": policy.updates, "grad_norm": grad_norm, "lr": lr}
        values |= {"skipped": not applied, "skipped_updates": policy.skipped_updates}
        return Step(applied, values, details)

    @torch.no_grad()
    def evaluate(self, items: Sequence[Any], objective: Objective) -> dict[str, Any]:
        """Measure `items` without training: the objective's `means`, token counts and time. Collective."""
        started = time.perf_counter()
        totals, _ = self._run(items, objective, train=False)
        return totals.reduce(items, objective, time.perf_counter() - started)

    def _run(self, items: Sequence[Any], objective: Objective, *, train: bool) -> tuple[_Totals, list[Any]]:
        policy, weight = self.policy, objective.weight(items)
        batches = objective.micro_batches(items, self._share.group, self._share.groups)
        # Before any pass with gradient: ZeRO-3 prefetches weights in the module order that it recorded, and never
        # records the order of a backward pass if a pass without gradient comes in between.
        with torch.no_grad():
            prepared = [objective.prepare(self._forward, own or objective.filler(items)) for own in batches]
            objective.settle(batches, prepared, self._add)
        totals, details = _Totals(objective, policy.device), []
        for number, (batch, known) in enumerate(zip(batches, prepared, strict=True), start=1):
            measured = objective.measure(self._forward, batch or objective.filler(items), known)
            if self._share.leads:
                totals.add(measured, counts=bool(batch))
            if batch and self._share.leads:
                details.append(measured.detail)
            if train:
                # DeepSpeed averages gradients over ranks, but the loss is a mean over the items of all ranks, and the
                # gradients of ranks that split a sequence add up. A non-finite loss makes every gradient non-finite, so
                # checking the gradient norm is enough.
                finite = torch.where(measured.loss.detach().isfinite(), 1.0, math.nan)
                scale = policy.ranks / weight if batch else 0.0
                policy.backward(measured.loss * finite * scale, last=number == len(batches))
        return totals, details

    def _add(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.policy.device)
        dist.all_reduce(total if self._share.leads else total.zero_())
        return list(total.tolist())


class _Totals:
    """Sums and maxima over one rank's micro-batches, kept on its device until they are reduced."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._names = ("loss", *objective.sums)
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._maxima = torch.zeros(len(objective.maxima), dtype=torch.float64, device=device)
        self._tokens = [0, 0]

    def add(self, measured: Measured, *, counts: bool) -> None:
        """Add a micro-batch. Of a filler only the tokens count."""
        self._tokens = [self._tokens[0] + measured.tokens, self._tokens[1] + measured.padded_tokens]
        if not counts:
            return
        values = {"loss": measured.loss.detach(), **measured.sums}
        self._sums += torch.stack([values[name].to(self._sums) for name in self._names])
        if measured.maxima:
            self._maxima = torch.maximum(self._maxima, torch.stack(list(measured.maxima.values())).to(self._maxima))

    def reduce(self, items: Sequence[Any], objective: Objective, seconds: float) -> dict[str, Any]:
        """Reduce over all ranks and return the objective's `means` with token counts and time. Collective."""
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
