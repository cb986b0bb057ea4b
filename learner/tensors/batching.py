"""Token sequences, alone or packed, into padded batches of similar length, equally many on every rank.

Everything depends on arguments only. Must not depend on models or ranks' communication.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Completion, Game, Pair, without
from learner.tensors.layout import Layout

Spans = Sequence[tuple[int, int]]
TokenSequence = tuple[Sequence[int], Sequence[int]]  # prompt and response token ids
RolloutSequence = tuple[Sequence[int], Sequence[int], Spans]  # also the ranges that an environment wrote
AnySequence = TokenSequence | RolloutSequence


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded rows, and the positions that predict sampled tokens. Made by `collate`; read by the policy."""

    input_ids: Tensor  # [b, t] int64
    rows: Tensor
    """[n] int64: row of each sampled response token, in order."""
    columns: Tensor
    """[n] int64: position whose logits predict the token, one before its own."""
    targets: Tensor  # [n] int64: the response token itself
    tokens: int  # tokens without padding
    position_ids: Tensor | None = None
    """[b, t] int64, restarting at 0 for each packed sequence; None: one sequence per row."""
    layout: Layout | None = None
    """Attention between tokens if prompts are shared; None: each token attends to all before it."""

    @property
    def padded_tokens(self) -> int:
        """Tokens with padding."""
        return self.input_ids.numel()


def schedule(
    lengths: Sequence[int], rows_per_item: int, ranks: int, micro_batch_tokens: int
) -> list[list[tuple[int, ...]]]:
    """Plan rounds of micro-batches: `result[round][rank]` holds indices into `lengths`.

    Longest items come first (equal lengths in order), so that micro-batches waste little padding and memory peaks at
    once. A micro-batch of n items holds `n * rows_per_item * longest` padded tokens, at most `micro_batch_tokens`
    unless one item alone exceeds them. Every rank takes part in every round, because gathering and reducing are
    collective; in the last round some ranks may get an empty tuple.
    """
    order = _longest_first(lengths)
    rounds = []
    start = 0
    while start < len(order):
        per_rank = max(1, micro_batch_tokens // (rows_per_item * lengths[order[start]]))
        block = order[start : start + per_rank * ranks]
        rounds.append([tuple(block[rank::ranks]) for rank in range(ranks)])
        start += len(block)
    return rounds


def balance(tokens: Sequence[int], ranks: int, micro_batch_tokens: int) -> list[list[tuple[int, ...]]]:
    """Plan rounds of micro-batches without padding: `result[round][rank]` holds indices into `tokens`.

    As few rounds as it finds that hold at most `micro_batch_tokens` in every micro-batch, unless one item alone exceeds
    them. Each item, largest first, goes to the micro-batch with the fewest tokens (Graham 1969: the fullest has at most
    4/3 of the least possible), so that all ranks compute equally long. Some may get an empty tuple.
    """
    order = _longest_first(tokens)
    rounds = -(-sum(min(each, micro_batch_tokens) for each in tokens) // (ranks * micro_batch_tokens))
    while True:
        shares: list[list[int]] = [[] for _ in range(rounds * ranks)]
        loads = [(0, share) for share in range(len(shares))]
        for index in order:
            load, share = loads[0]
            if shares[share] and load + tokens[index] > micro_batch_tokens:
                break
            shares[share].append(index)
            heapq.heapreplace(loads, (load + tokens[index], share))
        else:
            return [[tuple(share) for share in shares[start : start + ranks]] for start in range(0, len(shares), ranks)]
        rounds += 1


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items into rows of at most `capacity` tokens, unless one item alone exceeds it; return indices per row.

    First fit, longest first (Johnson 1973): at most 11/9 of the optimal number of rows, plus one (Yue 1991).
    """
    rows: list[list[int]] = []
    room = np.full(len(lengths), capacity)
    for index in _longest_first(lengths):
        fits = room[: len(rows)] >= lengths[index]
        place = int(fits.argmax()) if fits.any() else len(rows)
        if place == len(rows):
            rows.append([])
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def collate(sequences: Sequence[AnySequence], device: torch.device | str = "cpu") -> TokenBatch:
    """Pad `sequences`, one per row, as `collate_rows` without positions."""
    return collate_rows([[sequence] for sequence in sequences], device)


def collate_rows(
    rows: Sequence[Sequence[AnySequence]], device: torch.device | str = "cpu", *, positions: bool = False
) -> TokenBatch:
    """Pad rows of sequences on the right to the longest row.

    Padding is token 0, an arbitrary valid id: no real token attends to it and no loss reads it. With `positions`, which
    packed rows need, each sequence and each row's padding count from 0; given positions and no attention mask,
    transformers masks attention where they restart.

    Raises UsageError for an empty prompt or response: there would be nothing to predict from, or nothing to predict.
    """
    longest = max(sum(map(length_of, row)) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    position_ids = torch.arange(longest).repeat(len(rows), 1)
    of_rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    tokens = 0
    for row, sequences in enumerate(rows):
        start = 0
        for sequence in sequences:
            prompt, response, given = checked(sequence)
            end = start + len(prompt) + len(response)
            input_ids[row, start:end] = torch.tensor([*prompt, *response])
            position_ids[row, end:] = torch.arange(longest - end)
            sampled = without(response, given)
            of_rows += [row] * len(sampled)
            columns += without(range(start + len(prompt) - 1, end - 1), given)
            targets += sampled
            tokens += end - start
            start = end
    return TokenBatch(
        input_ids=input_ids.to(device),
        rows=torch.tensor(of_rows, device=device),
        columns=torch.tensor(columns, device=device),
        targets=torch.tensor(targets, device=device),
        tokens=tokens,
        position_ids=position_ids.to(device) if positions else None,
    )


def rollout(prompt: Sequence[int], completion: Completion) -> RolloutSequence:
    """Return the sequence of a completion."""
    return (prompt, completion.token_ids, completion.given)


def checked(sequence: AnySequence) -> RolloutSequence:
    """Return `parts_of` a sequence. Raises UsageError if prompt or response is empty."""
    prompt, response, given = parts_of(sequence)
    if not prompt or not response:
        raise UsageError(
            f"a sequence has {len(prompt)} prompt and {len(response)} response tokens; both must be at least 1. Check "
            "the prompt data and the sampling settings"
        )
    return prompt, response, given


def parts_of(sequence: AnySequence) -> tuple[Sequence[int], Sequence[int], Spans]:
    """Return prompt, response and the given ranges of the response."""
    return sequence if len(sequence) == 3 else (*sequence, ())


def length_of(sequence: AnySequence) -> int:
    """Count the tokens of a sequence."""
    return len(sequence[0]) + len(sequence[1])


def sampled_length(sequence: AnySequence) -> int:
    """Count the response tokens that have log-probs: all but given ones."""
    _, response, given = parts_of(sequence)
    return len(response) - sum(end - start for start, end in given)


def spread(values: Sequence[float], sequence: RolloutSequence) -> tuple[float, ...]:
    """Give each response token of `sequence` its value: `values` in order to sampled tokens, 0 to given ones."""
    _, response, given = sequence
    result = [0.0] * len(response)
    for place, value in zip(without(range(len(response)), given), values, strict=True):
        result[place] = value
    return tuple(result)


def reference_logprobs(completions: Iterable[Completion]) -> list[float]:
    """List recorded reference log-probs (nats) of all sampled tokens, completion by completion."""
    return [value for each in completions for value in each.sampled(each.reference_logprobs)]


def pair_sequences(pairs: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> list[TokenSequence]:
    """List all chosen sequences, then all rejected ones, of (prompt, chosen, rejected)."""
    pairs = list(pairs)
    return [(prompt, chosen) for prompt, chosen, _ in pairs] + [(prompt, rejected) for prompt, _, rejected in pairs]


def sequences_of(pairs: Sequence[Pair]) -> list[RolloutSequence]:
    """Return prompts and responses of rollout pairs, in the order of `pair_sequences`."""
    completions = pair_completions(pairs)
    return [rollout(pair.prompt_token_ids, each) for pair, each in zip([*pairs, *pairs], completions, strict=True)]


def pair_completions(pairs: Sequence[Pair]) -> list[Completion]:
    """List all chosen completions, then all rejected ones."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def behaviour_logprobs(pairs: Sequence[Pair]) -> list[float]:
    """List recorded behaviour log-probs (nats) of all sampled tokens, in the order of `sequences_of`."""
    return [logprob for completion in pair_completions(pairs) for logprob in completion.sampled(completion.logprobs)]


def game_sequences(games: Sequence[Game], part: slice) -> list[RolloutSequence]:
    """List the sequences of completions in `part`, game by game, players before opponents."""
    return [rollout(game.prompt_token_ids, completion) for game in games for completion in game.completions[part]]


def token_rows(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return the sequence index [n] of each token of sequences of these `lengths`, in order."""
    counts = torch.tensor(lengths, device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(counts)


def pad_by_sequence(values: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pad token values [n] of `count` sequences with zeros to [count, t], and return them with their mask.

    `rows` [n] holds each token's sequence, in order; t is the longest length; the mask is True at tokens. The gradient
    passes through.
    """
    lengths = torch.bincount(rows, minlength=count)
    mask = torch.arange(int(lengths.max()), device=values.device) < lengths[:, None]
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask


def sum_by_sequence(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum token values [n] into their sequences: [count]."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, rows, values)
