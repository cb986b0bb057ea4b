"""Pairs and games into micro-batches of similar length, as many on every rank. Pure; knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Game, Pair

TokenSequence = tuple[Sequence[int], Sequence[int]]
"""Prompt and response token ids."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded sequences and where their response tokens are predicted. Made by `collate`; read by the policy."""

    input_ids: Tensor
    """[b, t] int64."""
    rows: Tensor
    """[n] int64: sequence of each response token, in order."""
    columns: Tensor
    """[n] int64: position whose logits predict it, one before its own."""
    targets: Tensor
    """[n] int64: the response token itself."""
    tokens: int
    """Tokens without padding."""
    position_ids: Tensor | None = None
    """[b, t] int64 where a row holds several sequences: they start again at each; None: one sequence per row."""


def schedule(
    lengths: Sequence[int], rows_per_item: int, ranks: int, micro_batch_tokens: int
) -> list[list[tuple[int, ...]]]:
    """Rounds of micro-batches: `result[round][rank]` holds indices into `lengths`.

    Items are taken longest first (equal lengths in order), so that each micro-batch wastes little padding and memory
    peaks at once. A micro-batch of n items holds `n * rows_per_item * longest` padded tokens, at most
    `micro_batch_tokens` unless one item alone exceeds them. Every rank takes part in every round, because gathering and
    reducing are collective; in the last round some may get an empty tuple. Depends on its arguments only.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    rounds = []
    start = 0
    while start < len(order):
        per_rank = max(1, micro_batch_tokens // (rows_per_item * lengths[order[start]]))
        block = order[start : start + per_rank * ranks]
        rounds.append([tuple(block[rank::ranks]) for rank in range(ranks)])
        start += len(block)
    return rounds


def sequences_of(pairs: Sequence[Pair]) -> Sequence[TokenSequence]:
    """All chosen sequences, then all rejected ones."""
    chosen = [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in pairs]
    return chosen + [(pair.prompt_token_ids, pair.rejected.token_ids) for pair in pairs]


def behaviour_logprobs(pairs: Sequence[Pair]) -> list[float]:
    """Recorded behaviour log-probs (nats) of all response tokens, in the order of `sequences_of`."""
    completions = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return [logprob for completion in completions for logprob in completion.logprobs]


def game_sequences(games: Sequence[Game], part: slice) -> list[TokenSequence]:
    """Game by game, the sequences of completions in `part`: of the players and then of the opponents."""
    return [(game.prompt_token_ids, completion.token_ids) for game in games for completion in game.completions[part]]


def token_rows(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Sequence of each token [n] of sequences of these `lengths`, in order."""
    counts = torch.tensor(lengths, device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(counts)


def pad_by_sequence(values: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Token values [n] of `count` sequences, `rows` [n] in order, as [count, t] with zeros as padding; and the mask.

    t is the length of the longest sequence; the mask is 1 (True) at tokens. The gradient passes through.
    """
    lengths = torch.bincount(rows, minlength=count)
    mask = torch.arange(int(lengths.max()), device=values.device) < lengths[:, None]
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


def collate(sequences: Sequence[TokenSequence], device: torch.device | str = "cpu") -> TokenBatch:
    """Pads on the right to the longest of `sequences`.

    The padding token is 0, an arbitrary valid id: no real token attends to it and no loss reads it.
    Raises UsageError for an empty prompt or response, which has nothing to predict from or nothing to predict.
    """
    for prompt, response in sequences:
        if not prompt or not response:
            raise UsageError(
                f"a sequence has {len(prompt)} prompt and {len(response)} response tokens; both must be at least 1. "
                "Check the prompt data and the sampling settings"
            )
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response])
        rows += [row] * len(response)
        columns += range(len(prompt) - 1, end - 1)
        targets += response
    return TokenBatch(
        input_ids=input_ids.to(device),
        rows=torch.tensor(rows, device=device),
        columns=torch.tensor(columns, device=device),
        targets=torch.tensor(targets, device=device),
        tokens=sum(len(prompt) + len(response) for prompt, response in sequences),
    )


def sum_by_sequence(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sums token values [n] into their sequences: [count]."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
