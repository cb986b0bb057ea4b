"""What an update measures, summed over micro-batches and ranks. Knows nothing of models, losses or optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.tensors.batching import TokenBatch


class Totals:
    """Sums over the micro-batches of one rank, on its device until they are reduced.

    `metrics` names the values that are averaged over items (pairs or games); `opponents` says whether the ratios of
    opponents are measured.
    """

    def __init__(self, device: torch.device, metrics: Sequence[str], opponents: bool = False) -> None:
        self.device = device
        self.metrics, self.opponents = tuple(metrics), opponents
        self._names = ("loss", *self.metrics, "items", "log_ratio", "k3", "responses")
        self.sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self.largest = torch.zeros(2, dtype=torch.float64, device=device)
        self.tokens = self.padded_tokens = 0

    def add(
        self,
        loss: Tensor,
        metrics: Mapping[str, Tensor],
        behaviour_log_ratio: Tensor,
        opponent_log_ratio: Tensor | None = None,
    ) -> None:
        """`loss` [b] and `metrics` [b] of b items; the ratios [n] of tokens to what sampled them, in nats."""
        d = behaviour_log_ratio.detach().double()
        sums = [loss.detach(), *(metrics[name] for name in self.metrics), torch.ones_like(loss.detach())]
        sums += [d.abs(), d.exp() - 1.0 - d, torch.ones_like(d)]
        self.sums += torch.stack([values.double().sum() for values in sums])
        opponents = torch.zeros_like(d[:1]) if opponent_log_ratio is None else opponent_log_ratio.detach().double()
        self.largest = torch.maximum(self.largest, torch.stack([d.abs().max(), opponents.abs().max()]))

    def add_tokens(self, batch: TokenBatch) -> None:
        self.tokens += batch.tokens
        self.padded_tokens += batch.input_ids.numel()

    def reduce(self, seconds: float, items: int, constant_loss: float) -> dict[str, Any]:
        """Means over all ranks, as `UpdateStats` names them. Collective.

        `items` is the number of pairs or games of the batch; `constant_loss` the summed loss of those not added.
        """
        counts = torch.tensor([self.tokens, self.padded_tokens], dtype=torch.float64, device=self.device)
        sums = torch.cat([self.sums, counts])
        largest = torch.cat([self.largest, torch.tensor([seconds], dtype=torch.float64, device=self.device)])
        dist.all_reduce(sums)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        total = dict(zip((*self._names, "tokens", "padded_tokens"), sums.tolist(), strict=True))
        added, responses = max(1.0, total["items"]), max(1.0, total["responses"])
        return {
            "loss": (total["loss"] + constant_loss) / items,
            **{name: total[name] / added for name in self.metrics},
            "log_ratio_max": float(largest[0]),
            "opponent_log_ratio_max": float(largest[1]) if self.opponents else None,
            "log_ratio_mean": total["log_ratio"] / responses,
            "behaviour_kl": total["k3"] / responses,
            "tokens": int(total["tokens"]),
            "padded_tokens": int(total["padded_tokens"]),
            "seconds": float(largest[2]),
        }
