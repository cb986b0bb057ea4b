"""Preferences of the embedded world against its tables."""

import numpy as np
import pytest

from actors import world
from learner.world.pairs import world_pairs

PROMPTS = {world.prompt_token_ids(index): index for index in range(world.PROMPTS)}


def key(pair):
    x = PROMPTS[pair.prompt]
    return x, world.outcome(pair.chosen), world.outcome(pair.rejected)


@pytest.mark.parametrize("task", ["transitive", "intransitive"])
def test_soft_labels_are_the_gold_probabilities(task):
    gold = [world.World(task).preference_matrix(x) for x in range(world.PROMPTS)]
    train, held_out = world_pairs(task, 400, "soft", 0, 0.25)
    for pair in train + held_out:
        x, i, j = key(pair)
        assert pair.probability == gold[x][i, j]
        assert i != j
    assert len(train) + len(held_out) == 400
    assert 60 < len(held_out) < 140


def test_no_pair_of_outcomes_is_on_both_sides_whichever_comes_first():
    train, held_out = world_pairs("intransitive", 3000, "soft", 1, 0.3)

    def unordered(pairs):
        return {(x, frozenset((i, j))) for x, i, j in map(key, pairs)}

    assert len(unordered(train)) < len(train), "some pairs come several times"
    assert not unordered(train) & unordered(held_out)
    assert {x for x, _ in unordered(held_out)} == set(range(world.PROMPTS))


def test_sampled_labels_put_the_winner_first_as_often_as_the_gold_says():
    """The gold probability that the chosen one wins, summed over 4000 comparisons, is sum of p^2 + (1 - p)^2 within
    four standard errors."""
    gold = [world.World("intransitive").preference_matrix(x) for x in range(world.PROMPTS)]
    train, held_out = world_pairs("intransitive", 4000, "sampled", 2, 0.1)
    assert {pair.probability for pair in train + held_out} == {1.0}
    p = np.array([gold[x][i, j] for x, i, j in map(key, train + held_out)])
    expected = p**2 + (1.0 - p) ** 2
    assert abs(p.sum() - expected.sum()) < 4.0 * np.sqrt((p * (1.0 - p) * (2.0 * p - 1.0) ** 2).sum())


def test_another_seed_gives_other_pairs_and_the_same_seed_the_same():
    assert world_pairs("intransitive", 50, "soft", 3, 0.1) == world_pairs("intransitive", 50, "soft", 3, 0.1)
    assert world_pairs("intransitive", 50, "soft", 3, 0.1) != world_pairs("intransitive", 50, "soft", 4, 0.1)


def test_a_response_that_ran_out_of_room_has_no_end_and_the_others_one():
    train, _ = world_pairs("intransitive", 2000, "soft", 0, 0.0)
    responses = {response for pair in train for response in (pair.chosen, pair.rejected)}
    assert {world.EOS in response for response in responses if len(response) == world.MAX_NEW_TOKENS} == {True, False}
    assert all(response.count(world.EOS) == 1 for response in responses if world.outcome(response) != world.NOEOS)


def test_saved_runs_find_their_pairs_on_the_same_sides():
    """A resumed run compares its examples with the saved ones, so these sides must never change."""
    _, held_out = world_pairs("intransitive", 16, "soft", 5, 0.3)
    assert [key(pair) for pair in held_out] == [(11, 5, 37), (6, 35, 46), (7, 22, 41)]
