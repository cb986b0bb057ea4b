"""Several sequences in one row, none of which sees another. Knows token lists only.

Each sequence's positions begin at 0. transformers finds the borders where positions start again, and masks attention
across them, when it is given positions and no attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from actors.errors import UsageError
from learner.tensors.batching import TokenBatch, TokenSequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices into `lengths`, row by row: each row's lengths add up to at most `capacity`, unless one alone exceeds it.

    First fit, longest first (Johnson 1973), which makes at most 11/9 of the fewest rows and one more (Yue 1991).
    Depends on its arguments only.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rows: list[list[int]] = []
    room = np.full(len(lengths), capacity)
    for index in order:
        fits = room[: len(rows)] >= lengths[index]
        place = int(fits.argmax()) if fits.any() else len(rows)
        if place == len(rows):
            rows.append([])
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def collate_packed(rows: Sequence[Sequence[TokenSequence]], device: torch.device | str = "cpu") -> TokenBatch:
    """Rows of sequences as one batch with positions, padded on the right to the longest row.

    Padding is token 0, its positions count on from 0 like a sequence of its own, which nothing reads.
    Raises UsageError for an empty prompt or response.
    """
    totals = [sum(len(prompt) + len(response) for prompt, response in row) for row in rows]
    input_ids = torch.zeros(len(rows), max(totals), dtype=torch.int64)
    position_ids = torch.zeros_like(input_ids)
    of_rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, sequences in enumerate(rows):
        start = 0
        for prompt, response in sequences:
            if not prompt or not response:
                raise UsageError(
                    f"a sequence has {len(prompt)} prompt and {len(response)} response tokens; both must be at least 1"
                )
            length = len(prompt) + len(response)
            input_ids[row, start : start + length] = torch.tensor([*prompt, *response])
            position_ids[row, start : start + length] = torch.arange(length)
            of_rows += [row] * len(response)
            columns += range(start + len(prompt) - 1, start + length - 1)
            targets += response
            start += length
        position_ids[row, start:] = torch.arange(input_ids.shape[1] - start)
    return TokenBatch(
        input_ids=input_ids.to(device),
        rows=torch.tensor(of_rows, device=device),
        columns=torch.tensor(columns, device=device),
        targets=torch.tensor(targets, device=device),
        tokens=sum(totals),
        position_ids=position_ids.to(device),
    )
