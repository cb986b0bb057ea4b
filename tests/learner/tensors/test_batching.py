"""Micro-batches: what a rank computes, and that every rank computes the same number of times."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import UsageError
from actors.records import Completion, Game, Pair
from learner.tensors.batching import (
    balance,
    behaviour_logprobs,
    collate,
    game_sequences,
    pad_by_sequence,
    schedule,
    sequences_of,
    sum_by_sequence,
    token_rows,
)


def completion(tokens):
    tokens = tuple(tokens)
    return Completion(tokens, tuple(-0.1 * token for token in tokens), (0,) * len(tokens), "", True)


def pair(index, prompt, chosen, rejected, margin=1.0):
    """A pair of the given lengths whose tokens are all `index`."""
    return Pair(index, (index,) * prompt, completion([index] * chosen), completion([index] * rejected), margin)


def game(index, prompt, *responses):
    """A game of two players and the opponents that remain, of the given lengths, whose tokens are all `index`."""
    completions = tuple(completion([index] * length) for length in responses)
    n = len(completions)
    return Game(index, (index,) * prompt, completions[:2], completions[2:], ((0.5,) * n,) * n, (0.0,) * n)


def test_longest_come_first_and_each_micro_batch_pads_only_to_its_own_longest():
    """Budget 40 tokens, 2 rows per item: 2 items of length 10, then 4 of length 5, then the rest."""
    lengths = [5, 10, 4, 9, 5, 5, 3]
    assert schedule(lengths, 2, 1, 40) == [[(1, 3)], [(0, 4, 5, 2)], [(6,)]]


def test_an_item_over_the_budget_is_a_micro_batch_by_itself():
    assert schedule([100, 1], 2, 1, 10) == [[(0,)], [(1,)]]


def test_ranks_are_dealt_neighbours_in_length_and_the_last_round_may_leave_one_idle():
    assert schedule([9, 8, 7, 6, 5], 1, 2, 18) == [[(0, 2), (1, 3)], [(4,), ()]]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), rows=st.integers(1, 2), ranks=st.integers(1, 5),
    budget=st.integers(1, 200),
)  # fmt: skip
def test_every_item_is_dealt_once_within_the_budget_and_every_rank_has_every_round(lengths, rows, ranks, budget):
    rounds = schedule(lengths, rows, ranks, budget)
    assert all(len(shares) == ranks for shares in rounds)
    assert sorted(index for shares in rounds for share in shares for index in share) == list(range(len(lengths)))
    for number, shares in enumerate(rounds):
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0 or number == len(rounds) - 1
        for share in shares:
            padded = rows * len(share) * max((lengths[index] for index in share), default=0)
            assert padded <= budget or len(share) == 1


@given(
    tokens=st.lists(st.integers(1, 60), max_size=40), ranks=st.integers(1, 5), budget=st.integers(1, 200)
)  # fmt: skip
def test_without_padding_every_item_is_dealt_once_within_the_budget_and_ranks_are_even(tokens, ranks, budget):
    rounds = balance(tokens, ranks, budget)
    assert all(len(shares) == ranks for shares in rounds)
    shares = [share for own in rounds for share in own]
    assert sorted(index for share in shares for index in share) == list(range(len(tokens)))
    loads = [sum(tokens[index] for index in share) for share in shares]
    assert all(load <= budget or len(share) == 1 for load, share in zip(loads, shares, strict=True))
    # Graham's bound against what no plan beats: the mean, and the largest item.
    if tokens:
        assert max(loads) <= 4 / 3 * max(sum(tokens) / len(shares), *tokens) + max(tokens) / 3


def test_items_without_padding_by_hand():
    """9 and 8 tokens to a rank each; then 5 to the emptier one, 4 to the other; 3 no longer fit: a second round."""
    assert balance([9, 8, 5, 4], 2, 13) == [[(0, 3), (1, 2)]]
    assert balance([9, 8, 5, 4, 3], 2, 13) == [[(0,), (1,)], [(2,), (3, 4)]]
    assert balance([30, 1], 2, 13) == [[(0,), (1,)]]
    assert balance([], 2, 13) == []


def test_collation_marks_the_position_before_each_response_token():
    batch = collate([([5, 6], [7, 8]), ([9], [4])])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), batch.targets.tolist(), strict=True)) == [
        (0, 1, 7), (0, 2, 8), (1, 0, 4),
    ]  # fmt: skip
    assert batch.tokens == 6


def test_behaviour_log_probs_come_in_the_order_of_the_collated_targets():
    pairs = [pair(1, 2, 3, 1), pair(2, 1, 2, 2)]
    targets = collate(sequences_of(pairs)).targets
    assert targets.tolist() == [1, 1, 1, 2, 2, 1, 2, 2]
    assert behaviour_logprobs(pairs) == pytest.approx([-0.1 * token for token in targets.tolist()])


def test_token_values_are_summed_into_their_sequences():
    sums = sum_by_sequence(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 3)
    assert sums.tolist() == [5.0, 0.0, 2.0]


def test_an_empty_prompt_or_response_is_refused():
    with pytest.raises(UsageError, match="0 prompt and 2 response tokens"):
        collate([([], [1, 2])])
    with pytest.raises(UsageError, match="1 prompt and 0 response tokens"):
        collate([([1], [])])


def test_tokens_name_their_sequences_in_order():
    assert token_rows([2, 1, 3]).tolist() == [0, 0, 1, 2, 2, 2]


def test_a_game_s_opponents_follow_its_players():
    games = [game(1, 1, 2, 1, 3), game(2, 2, 1, 1, 2)]
    lengths = [(prompt[0], len(prompt), len(response)) for prompt, response, _ in game_sequences(games, slice(None))]
    assert lengths == [(1, 1, 2), (1, 1, 1), (1, 1, 3), (2, 2, 1), (2, 2, 1), (2, 2, 2)]


def test_padded_token_values_keep_their_order_and_pass_their_gradient_on():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    padded, mask = pad_by_sequence(values, torch.tensor([0, 0, 1, 2]), 3)
    assert padded.tolist() == [[1.0, 2.0], [3.0, 0.0], [4.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False], [True, False]]
    (padded * torch.tensor([[1.0, 2.0], [3.0, 9.0], [4.0, 9.0]])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0, 4.0]
