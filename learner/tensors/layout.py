"""Place prompts and completions in one row, and decide which of its tokens attend to which.

A row holds groups without padding: a prompt, then each of its completions, whose positions go on from the prompt's end.
Attention runs in blocks of similar shape that are gathered from the row. Must not depend on models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CALL_SCORES = 1 << 18
"""Attention scores that cost as much as one more call: blocks share a call while they waste fewer."""


@dataclass(frozen=True, slots=True)
class Block:
    """Prompts and completions of similar shape, n of them, padded to q queries and k keys: one call of attention."""

    queries: Tensor  # [n * q] int64: places in the row
    keys: Tensor  # [n * k] int64
    positions: Tensor  # [n, q] int32: of each query in its sequence
    parts: tuple[tuple[int, int], ...]
    """Queries and keys of each prompt or completion, without padding; its queries are the last of its keys."""

    @property
    def long(self) -> bool:
        """Return whether a part may have more than `CALL_SCORES` scores."""
        return len(self.queries) * len(self.keys) > CALL_SCORES * len(self.parts) ** 2

    @property
    def distance(self) -> Tensor:
        """Position of each query minus that of each key, [n, 1, q, k] int32; -1 where the key is padding."""
        key = torch.arange(len(self.keys) // len(self.parts), dtype=torch.int32, device=self.keys.device)
        counts = torch.tensor([keys for _, keys in self.parts], device=key.device)
        distance = self.positions[:, :, None] - key
        return distance.masked_fill_((key >= counts[:, None])[:, None], -1)[:, None]


@dataclass(slots=True)
class Layout:
    """Blocks of a row of t tokens."""

    blocks: tuple[Block, ...]
    outputs: Tensor
    """[t] int64: where each token's output is among those of all blocks."""
    calls: int = 0  # of `attention` with it
    masks: dict[Any, Tensor] = field(default_factory=dict)
    """Masks that `mask` has made: all layers share them, and autograd keeps one for all."""

    def mask(self, number: int, window: int | None, heads: int, dtype: torch.dtype) -> Tensor:
        """Return what is added to the scores of block `number`: [n, 1, heads * q, k], 0 or minus infinity.

        `window`: positions that a query sees, itself included. `heads` that share keys stand one after the other.
        """
        known = (number, window, heads, dtype)
        if known not in self.masks:
            distance = self.blocks[number].distance
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            added = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
            self.masks[known] = added.masked_fill_(hidden, -torch.inf).repeat(1, 1, heads, 1)
        return self.masks[known]


def layout_of(groups: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> Layout:
    """Lay out groups of (prompt length, completion lengths) that stand one after the other in a row."""
    ranges = []  # start and length of a prompt or a completion, and of the prompt before it
    end = 0
    for prompt, completions in groups:
        start = end
        ranges.append((start, prompt, start, 0))
        end += prompt
        for length in completions:
            ranges.append((end, length, start, prompt))
            end += length
    parts = np.array(ranges)
    blocks, outputs, offset = [], torch.empty(end, dtype=torch.int64), 0
    for members in _alike(parts):
        block, real = _block(parts[members])
        outputs[block.queries[real]] = offset + real.nonzero()[:, 0]
        queries, keys, positions = (each.to(device) for each in (block.queries, block.keys, block.positions))
        blocks.append(Block(queries, keys, positions, block.parts))
        offset += len(block.queries)
    return Layout(tuple(blocks), outputs.to(device))


def _alike(parts: NDArray[np.int64]) -> list[list[int]]:
    """Split parts into runs of similar shape, most keys first."""
    queries, keys = parts[:, 1], parts[:, 1] + parts[:, 3]
    runs: list[list[int]] = []
    real = widest = longest = 0
    for part in np.lexsort((-queries, -keys)).tolist():
        area = int(queries[part] * keys[part])
        padded = (len(runs[-1]) + 1) * max(widest, int(queries[part])) * longest if runs else 0
        if not runs or padded - real - area > CALL_SCORES:
            runs.append([])
            real, widest, longest = 0, 0, int(keys[part])
        runs[-1].append(part)
        real, widest = real + area, max(widest, int(queries[part]))
    return runs


def _block(parts: NDArray[np.int64]) -> tuple[Block, Tensor]:
    """Return the block of `parts`, and which of its queries [n * q] are no padding."""
    start, count, before, prompt = (column[:, None] for column in parts.T)
    query, key = np.arange(count.max()), np.arange((count + prompt).max())
    real = query < count
    # A padded query repeats the last one, so that its softmax is finite; nobody reads it.
    query = np.minimum(query, count - 1)
    keys = np.where(key < prompt, before + key, np.minimum(start + key - prompt, start + count - 1))
    flat = [torch.from_numpy(np.ascontiguousarray(each)).flatten() for each in (start + query, keys, real)]
    lengths = tuple(zip(count[:, 0].tolist(), (count + prompt)[:, 0].tolist(), strict=True))
    positions = torch.from_numpy((prompt + query).astype(np.int32))
    return Block(flat[0], flat[1], positions, lengths), flat[2]
