"""Long rows over several ranks: each holds as many positions, and attention exchanges heads for positions.

Jacobs et al. 2023, "DeepSpeed Ulysses", section 3: between two all-to-all exchanges a rank attends over all positions
with its share of the heads. All else that a model computes, it computes for each token alone. Must not depend on
models, losses or optimizers. Methods that exchange are collective among the ranks of a group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from learner.tensors.batching import TokenBatch


@dataclass(frozen=True, slots=True)
class Split:
    """This rank's part of a batch."""

    part: TokenBatch
    own: Tensor
    """[n] bool: targets of the whole batch that are in the part."""
    process_group: dist.ProcessGroup

    def whole(self, values: Tensor) -> Tensor:
        """Gather values of all targets [n] from the ranks that computed them.

        All ranks go on to compute the same loss, so each takes the gradient of its own values alone: the sum over ranks
        of their weights' gradients is the gradient of the loss.
        """
        return _Whole.apply(values, self.own, self.process_group)


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Consecutive ranks that compute every micro-batch together."""

    size: int
    rank: int
    """This rank's number in the group."""
    process_group: dist.ProcessGroup

    def split(self, batch: TokenBatch) -> Split:
        """Take this rank's positions of a row [1, t], padded to [1, ceil(t / size)], and the targets they predict.

        The layout stays whole, because attention sees all positions.
        """
        assert batch.layout is not None
        assert batch.position_ids is not None
        length = -(-batch.input_ids.shape[1] // self.size)
        missing, start = length * self.size - batch.input_ids.shape[1], self.rank * length
        own = (batch.columns >= start) & (batch.columns < start + length)
        part = replace(
            batch,
            input_ids=pad(batch.input_ids, (0, missing))[:, start : start + length],
            position_ids=pad(batch.position_ids, (0, missing))[:, start : start + length],
            rows=batch.rows[own],
            columns=batch.columns[own] - start,
            targets=batch.targets[own],
        )
        return Split(part, own, self.process_group)

    def to_heads(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Give up positions for heads, in one exchange: from [1, h, t / size, d] each to [t, h / size, d].

        Heads of keys or values that `size` does not divide are repeated until it does.
        """
        tensors = [self._repeated(tensor) for tensor in tensors]
        parts = [tensor[0].transpose(0, 1).unflatten(1, (self.size, -1)) for tensor in tensors]
        sent = torch.cat([part.flatten(2) for part in parts], dim=-1).transpose(0, 1)
        received = _Exchange.apply(sent, self.process_group).flatten(0, 1)
        shapes = [part.shape[2:] for part in parts]
        pieces = received.split([shape.numel() for shape in shapes], dim=-1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def to_positions(self, output: Tensor) -> Tensor:
        """Give up heads for positions: from [t, h / size, d], t without padding, to [1, ceil(t / size), h, d]."""
        missing = -len(output) % self.size
        sent = pad(output, (0, 0, 0, 0, 0, missing)).unflatten(0, (self.size, -1))
        received = _Exchange.apply(sent, self.process_group)  # [size, t / size, h / size, d]
        return received.transpose(0, 1).flatten(1, 2)[None]

    def _repeated(self, tensor: Tensor) -> Tensor:
        times = self.size // math.gcd(tensor.shape[1], self.size)
        return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


class _Exchange(torch.autograd.Function):
    """Send part i of [size, ...] to rank i, and receive as many. Its gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, parts, group):
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        return _exchanged(grad, ctx.group), None


def _exchanged(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = torch.empty(parts.shape, dtype=parts.dtype, device=parts.device)
    dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received


class _Whole(torch.autograd.Function):
    """Values [n] that each have one rank, on all ranks."""

    @staticmethod
    def forward(ctx: Any, values, own, group):
        ctx.save_for_backward(own)
        whole = values.new_zeros(len(own))
        whole[own] = values
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        (own,) = ctx.saved_tensors
        return grad[own], None, None
