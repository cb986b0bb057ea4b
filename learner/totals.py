"""What an update measures, summed over micro-batches and ranks. Knows nothing of models or optimizers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batching import TokenBatch


class Totals:
    """Sums over the micro-batches of one rank, on its device until they are reduced."""

    SUMS = ("loss", "margin", "accuracy", "kl_chosen", "kl_rejected", "active", "log_ratio", "k3", "responses")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums = torch.zeros(len(self.SUMS), dtype=torch.float64, device=device)
        self.largest = torch.zeros((), dtype=torch.float64, device=device)
        self.tokens = self.padded_tokens = 0

    def add(self, loss: Tensor, metrics: dict[str, Tensor], log_ratio: Tensor, behaviour_log_ratio: Tensor) -> None:
        """`loss`, `metrics` [b]; `log_ratio` to the reference [2b], chosen first; `behaviour_log_ratio` [n]. Nats."""
        chosen, rejected = log_ratio.detach().chunk(2)
        d = behaviour_log_ratio.detach().double()
        sums = [loss.detach(), metrics["margin"], metrics["accuracy"], chosen, rejected, torch.ones_like(chosen)]
        sums += [d.abs(), d.exp() - 1.0 - d, torch.ones_like(d)]
        self.sums += torch.stack([values.double().sum() for values in sums])
        self.largest = torch.maximum(self.largest, d.abs().max())

    def add_tokens(self, batch: TokenBatch) -> None:
        self.tokens += batch.tokens
        self.padded_tokens += batch.input_ids.numel()

    def reduce(self, seconds: float, pairs: int, tied_loss: float) -> dict[str, Any]:
        """Means over all ranks, as `UpdateStats` names them; `tied_loss` is the summed loss of ties. Collective."""
        counts = torch.tensor([self.tokens, self.padded_tokens], dtype=torch.float64, device=self.device)
        sums = torch.cat([self.sums, counts])
        largest = torch.stack([self.largest, torch.tensor(seconds, dtype=torch.float64, device=self.device)])
        dist.all_reduce(sums)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        total = dict(zip((*self.SUMS, "tokens", "padded_tokens"), sums.tolist(), strict=True))
        active, responses = max(1.0, total["active"]), max(1.0, total["responses"])
        return {
            "loss": (total["loss"] + tied_loss) / pairs,
            **{name: total[name] / active for name in ("margin", "accuracy", "kl_chosen", "kl_rejected")},
            "log_ratio_max": float(largest[0]),
            "log_ratio_mean": total["log_ratio"] / responses,
            "behaviour_kl": total["k3"] / responses,
            "tokens": int(total["tokens"]),
            "padded_tokens": int(total["padded_tokens"]),
            "seconds": float(largest[1]),
        }
