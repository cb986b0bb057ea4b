"""Rows that ranks split between them: log-probs and gradients of one sequence at a time, in one process."""

import pytest
import torch

from learner.tensors.batching import collate
from learner.tensors.layout import layout_of
from learner.tensors.sequence_parallel import SequenceGroup
from learner.tensors.shared_prompts import _attend, _attend_causally, collate_shared
from tests.learner.backend.ranks import run_ranks
from tests.learner.tensors.split_rows import PROGRAM, WAYS
from tests.learner.tensors.test_shared_prompts import SUPPORTED, gradients, policy_of, sequences

RANKS = 2


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """What each rank found. Sequences of 70 tokens: each has 35 positions."""
    directory = tmp_path_factory.mktemp("rows")
    codes = run_ranks(directory, "rows", RANKS, PROGRAM)
    assert codes == [0] * RANKS, (directory / "rows-rank0.log").read_text()[-3000:]
    return [torch.load(directory / f"rows-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SUPPORTED)
def test_log_probs_and_gradients_are_those_of_one_sequence_at_a_time(split, name, way):
    policy = policy_of(SUPPORTED[name])
    alone = torch.cat([policy(collate([sequence])) for sequence in sequences()])
    expected = gradients(policy, alone)
    for found in (results[name, way] for results in split):
        torch.testing.assert_close(found["logprobs"], alone, atol=2e-5, rtol=0)
        for parameter, gradient in found["gradients"].items():
            tolerance = 2e-5 * float(expected[parameter].abs().max())
            torch.testing.assert_close(gradient, expected[parameter], atol=tolerance, rtol=1e-4)
        windows = name == "a window of four tokens"
        assert (found["masks"] == 0) == (way == "causal" and not windows)


@pytest.mark.slow
def test_exchanges_are_those_of_deepspeed(split):
    for results in split:
        for ours, theirs in results["exchanges"]:
            assert torch.equal(ours, theirs)


def test_a_row_is_cut_into_equal_parts_by_hand():
    """Seven tokens on two ranks: four each, of which the last is padding; every rank has the targets it predicts."""
    batch = collate_shared([((1, 2, 3), (4, 5)), ((1, 2, 3), (6, 7))])
    assert batch.columns.tolist() == [2, 3, 2, 5]
    first, second = (SequenceGroup(2, rank, None).split(batch) for rank in range(2))
    assert (first.part.input_ids.tolist(), second.part.input_ids.tolist()) == ([[1, 2, 3, 4]], [[5, 6, 7, 0]])
    assert (first.part.position_ids.tolist(), second.part.position_ids.tolist()) == ([[0, 1, 2, 3]], [[4, 3, 4, 0]])
    assert (first.own.tolist(), second.own.tolist()) == ([True, True, True, False], [False, False, False, True])
    assert (first.part.columns.tolist(), first.part.targets.tolist()) == ([2, 3, 2], [4, 5, 6])
    assert (second.part.columns.tolist(), second.part.targets.tolist()) == ([1], [7])
    assert first.part.layout is second.part.layout is batch.layout


def test_long_sequences_attend_without_a_mask_as_with_one():
    """One block of parts of uneven lengths, which masks pad."""
    found = layout_of([(5, (3, 7)), (2, (6,))])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(23, heads, 8, generator=generator) for heads in (4, 2, 2))
    (block,) = found.blocks
    masked = _attend(block, query, key, value, found.mask(0, None, 2, torch.float32), None)
    causal = _attend_causally(block, query, key, value, None)
    torch.testing.assert_close(causal[found.outputs], masked[found.outputs], atol=1e-6, rtol=1e-5)


def test_a_part_is_long_if_it_has_more_scores_than_a_call_costs():
    """By hand: 512 x 512 = 2^18 scores are none too many, 513 x 513 are."""
    assert [block.long for block in layout_of([(512, ())]).blocks] == [False]
    assert [block.long for block in layout_of([(513, ())]).blocks] == [True]
    assert sorted(block.long for block in layout_of([(16, (600, 600))]).blocks) == [False, True]
