"""Several sequences in one row: the rows, the tensors, and that no architecture lets a sequence see its neighbours."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

from actors.errors import UsageError
from learner.tensors.batching import collate, collate_rows, pack
from learner.tensors.logprobs import PolicyWithLogProbs
from tests.timing import assert_quick

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
# Weights so large that a token's neighbours matter by nats.
COMMON = {"vocab_size": 40, "initializer_range": 0.3, "max_position_embeddings": 64}
ARCHITECTURES = {
    "llama": LlamaConfig(**COMMON, **SIZES),
    "qwen2": Qwen2Config(**COMMON, **SIZES, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=40, initializer_range=0.3, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    "gemma2": Gemma2Config(**COMMON, **SIZES, num_key_value_heads=1, head_dim=16, sliding_window=4),
}


def fewest_rows(lengths, capacity):
    """By trying every place for every sequence."""

    def search(index, room):
        if index == len(lengths):
            return len(room)
        best = search(index + 1, (*room, capacity - lengths[index]))
        for row in range(len(room)):
            if room[row] >= lengths[index]:
                best = min(best, search(index + 1, (*room[:row], room[row] - lengths[index], *room[row + 1 :])))
        return best

    return search(0, ())


def first_fit_longest_first(lengths, capacity):
    """The definition, in lengths: each in turn goes to the first row that has room."""
    rows = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= capacity), None)
        if row is None:
            rows.append([length])
        else:
            row.append(length)
    return rows


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60))
def test_every_sequence_is_in_one_row_and_no_row_of_several_is_too_long(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows if len(row) > 1)
    assert [[lengths[index] for index in row] for row in rows] == first_fit_longest_first(lengths, capacity)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=7), st.integers(10, 15))
def test_rows_are_as_few_as_first_fit_promises(lengths, capacity):
    assert len(pack(lengths, capacity)) <= 11 / 9 * fewest_rows(lengths, capacity) + 1


def test_rows_by_hand():
    # 6 and 4 fill a row, 5 and 3 and 2 the next; of equal lengths the first comes first.
    assert pack([3, 6, 2, 5, 4], 10) == [[1, 4], [3, 0, 2]]
    assert pack([5, 5, 5], 10) == [[0, 1], [2]]
    assert pack([20, 3], 10) == [[0], [1]]
    assert pack([], 10) == []


def test_a_large_held_out_set_is_packed_in_seconds():
    lengths = [1 + (7919 * i) % 1000 for i in range(20_000)]
    assert_quick(lambda: pack(lengths, 1000), 4.0)
    rows = pack(lengths, 1000)
    assert len(rows) >= math.ceil(sum(lengths) / 1000)


def test_a_packed_batch_by_hand():
    batch = collate_rows([[((1, 2), (3,)), ((4,), (5, 6))], [((7,), (8,))]], positions=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    # Token 3 is predicted at 2, tokens 5 and 6 at 4 and 5, token 8 at 7.
    assert (batch.rows.tolist(), batch.columns.tolist()) == ([0, 0, 0, 1], [1, 3, 4, 0])
    assert batch.targets.tolist() == [3, 5, 6, 8]
    assert batch.tokens == 8


@pytest.mark.parametrize("sequence", [((), (1,)), ((1,), ())])
def test_an_empty_prompt_or_response_is_refused(sequence):
    with pytest.raises(UsageError, match="both must be at least 1"):
        collate_rows([[((1,), (2,)), sequence]], positions=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_of_sequences_that_share_a_row_are_those_of_each_alone(name):
    torch.manual_seed(0)
    policy = PolicyWithLogProbs(AutoModelForCausalLM.from_config(ARCHITECTURES[name]).float().eval())
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return tuple(torch.randint(40, (count,), generator=generator).tolist())

    rows = [[(tokens(p), tokens(r)) for p, r in row] for row in ([(3, 4), (1, 2), (6, 5)], [(2, 8), (5, 1)], [(1, 1)])]
    packed = collate_rows(rows, positions=True)
    with torch.no_grad():
        together = policy(packed)
        alone = [policy(collate([sequence])) for row in rows for sequence in row]
        without_positions = policy(collate_rows(rows))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    first = len(rows[0][0][1])
    torch.testing.assert_close(without_positions[:first], together[:first], atol=1e-5, rtol=0)
    assert float((without_positions - together).abs().max()) > 0.1, "positions are what keeps sequences apart"
