"""Which tokens of a row attend to which, against the definition: a completion to its prompt and to itself."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.tensors import layout
from learner.tensors.layout import layout_of

GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=5).map(tuple)), min_size=1, max_size=6
)


def seen_by_definition(groups):
    """What each place of the row attends to, and how far back each of that is in its own sequence."""
    seen, end = {}, 0
    for prompt, completions in groups:
        before = list(range(end, end + prompt))
        for place in before:
            seen[place] = {other: place - other for other in before if other <= place}
        end += prompt
        for length in completions:
            sequence = before + list(range(end, end + length))
            for index in range(prompt, prompt + length):
                seen[sequence[index]] = {sequence[other]: index - other for other in range(index + 1)}
            end += length
    return seen


def seen_in(found):
    """The same, read from a layout: each token's output must be that of a query which stands for it."""
    queries = torch.cat([block.queries for block in found.blocks]).tolist()
    rows = [
        {int(k): int(d) for k, d in zip(keys, distances, strict=True) if d >= 0}
        for block in found.blocks
        for keys, table in zip(block.keys.view(len(block.distance), -1), block.distance[:, 0], strict=True)
        for distances in table
    ]
    assert [queries[output] for output in found.outputs.tolist()] == list(range(len(found.outputs)))
    return {place: rows[output] for place, output in enumerate(found.outputs.tolist())}


@settings(deadline=None, max_examples=60)
@given(GROUPS)
def test_every_token_attends_to_its_prompt_and_to_its_own_completion(groups):
    assert seen_in(layout_of(groups)) == seen_by_definition(groups)


def test_blocks_are_cut_where_padding_would_cost_more_than_a_call(monkeypatch):
    """By hand: prompts of 8 and 2 tokens; padded into one block they waste 8 * 8 - 2 * 2 = 60 scores."""
    groups = [(8, ()), (2, ())]
    monkeypatch.setattr(layout, "CALL_SCORES", 60)
    assert [len(block.distance) for block in layout_of(groups).blocks] == [2]
    monkeypatch.setattr(layout, "CALL_SCORES", 59)
    cut = layout_of(groups)
    assert [tuple(block.distance.shape) for block in cut.blocks] == [(1, 1, 8, 8), (1, 1, 2, 2)]
    assert seen_in(cut) == seen_by_definition(groups)


@settings(deadline=None, max_examples=30)
@given(GROUPS, st.integers(0, 300))
def test_the_cuts_change_nothing(groups, scores):
    kept, layout.CALL_SCORES = layout.CALL_SCORES, scores
    try:
        assert seen_in(layout_of(groups)) == seen_by_definition(groups)
    finally:
        layout.CALL_SCORES = kept


def test_every_query_sees_something_or_its_softmax_would_be_no_number():
    found = layout_of([(5, (1, 3)), (1, (7,))])
    for block in found.blocks:
        assert bool((block.distance == 0).any(-1).all()), "each query, padded ones too, attends at least to itself"
