"""Pairs, games, ties and missing ends, with every expected value worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from actors.errors import RunError
from actors.preferences import mean_win_probabilities
from actors.records import Group, Judgement
from actors.replay_buffer.pairing import MissingEos, best_and_worst, effective_scores, game_of, unfinished_won
from tests.fakes.generators import make_group


def judged(*scores: float, finished: tuple[bool, ...] | None = None) -> Group:
    texts = [f"completion {i}" for i in range(len(scores))]
    return make_group(texts, index=7, finished=finished, judgement=Judgement(scores))


def chosen_and_rejected(group: Group, missing_eos_score: MissingEos = None) -> tuple[int, int]:
    pair = best_and_worst(group, missing_eos_score)
    return group.completions.index(pair.chosen), group.completions.index(pair.rejected)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    pair = best_and_worst(judged(0.5, 2.0, -1.5, 1.0), None)
    assert (pair.chosen.text, pair.rejected.text) == ("completion 1", "completion 2")
    assert pair.margin == 3.5
    assert not pair.tie
    assert (pair.lease_index, pair.prompt_token_ids) == (7, (1, 3))


def test_equal_bests_and_equal_worsts_go_to_the_first_index() -> None:
    assert chosen_and_rejected(judged(1.0, 3.0, 3.0, 1.0)) == (1, 0)


def test_a_tie_of_all_is_one_completion_twice_and_carries_no_gradient() -> None:
    pair = best_and_worst(judged(0.25, 0.25, 0.25), None)
    assert pair.chosen is pair.rejected
    assert pair.margin == 0.0
    assert pair.tie


def test_a_pair_agrees_with_enumeration_for_every_small_score_table() -> None:
    for scores in product((0.0, 1.0, 2.0), repeat=3):
        best = min(range(3), key=lambda i: (-scores[i], i))
        worst = min(range(3), key=lambda i: (scores[i], i))
        assert chosen_and_rejected(judged(*scores)) == (best, worst), scores
        assert best_and_worst(judged(*scores), None).margin == scores[best] - scores[worst]


def test_a_missing_end_of_sequence_replaces_the_score() -> None:
    group = judged(5.0, 1.0, 2.0, finished=(False, True, True))
    assert effective_scores(group, -1.0) == (-1.0, 1.0, 2.0)
    assert chosen_and_rejected(group, -1.0) == (2, 0)


def test_a_missing_end_of_sequence_may_raise_a_score_because_it_replaces_it() -> None:
    assert effective_scores(judged(-4.0, 0.0, finished=(False, True)), -1.0) == (-1.0, 0.0)


def test_without_a_replacement_the_judge_has_the_last_word() -> None:
    group = judged(5.0, 1.0, 2.0, finished=(False, True, True))
    assert effective_scores(group, None) == (5.0, 1.0, 2.0)
    assert chosen_and_rejected(group, None) == (0, 1)


def test_completions_that_all_miss_their_end_are_a_tie_whatever_the_judge_said() -> None:
    pair = best_and_worst(judged(3.0, 1.0, finished=(False, False)), -1.0)
    assert pair.tie
    assert pair.chosen is pair.rejected


def test_a_group_without_judgement_is_refused() -> None:
    with pytest.raises(RunError, match="lease 4 has no judgement"):
        best_and_worst(make_group(["a", "b"], index=4), None)


def test_a_perfect_cycle_of_preferences_gives_equal_scores_and_so_a_tie() -> None:
    scores = mean_win_probabilities(((0.5, 1.0, 0.0), (0.0, 0.5, 1.0), (1.0, 0.0, 0.5)))
    assert scores == (0.5, 0.5, 0.5)
    assert best_and_worst(judged(*scores), None).tie


SIGMOID_1, SIGMOID_3 = 0.7310585786300049, 0.9525741268224334
"""1 / (1 + e^-1) and 1 / (1 + e^-3)."""


def a_game(
    *scores: float,
    opponents: int = 0,
    preferences: tuple[tuple[float, ...], ...] | None = None,
    finished: tuple[bool, ...] | None = None,
) -> Group:
    """A judged group whose last `opponents` completions are opponents."""
    group = judged(*scores, finished=finished)
    players = len(scores) - opponents
    completions = tuple(replace(each, opponent=i >= players) for i, each in enumerate(group.completions))
    return replace(group, completions=completions, judgement=Judgement(scores, preferences))


def test_a_game_has_the_players_then_the_opponents() -> None:
    game = game_of(a_game(0.0, 1.0, 2.0, opponents=1), None)
    assert [completion.text for completion in game.players] == ["completion 0", "completion 1"]
    assert [completion.text for completion in game.opponents] == ["completion 2"]
    assert (game.lease_index, game.prompt_token_ids, game.scores) == (7, (1, 3), (0.0, 1.0, 2.0))


def test_without_opponents_all_are_players() -> None:
    game = game_of(a_game(0.0, 1.0), None)
    assert len(game.players) == 2
    assert game.opponents == ()


def test_scores_become_bradley_terry_preferences() -> None:
    game = game_of(a_game(2.0, 1.0, 4.0), None)
    expected = [
        [0.5, SIGMOID_1, 1 - 0.8807970779778823],  # sigmoid(2) = 0.8807970779778823
        [1 - SIGMOID_1, 0.5, 1 - SIGMOID_3],
        [0.8807970779778823, SIGMOID_3, 0.5],
    ]
    for row, wanted in zip(game.preferences, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-15)


def test_a_missing_end_replaces_the_score_before_it_is_compared() -> None:
    game = game_of(a_game(5.0, 0.0, 9.0, finished=(False, True, False)), -1.0)
    assert game.scores == (-1.0, 0.0, -1.0)
    assert game.preferences[1] == pytest.approx([SIGMOID_1, 0.5, SIGMOID_1])
    assert game.preferences[0][2] == 0.5


CYCLE = ((0.5, 0.9, 0.2), (0.1, 0.5, 0.7), (0.8, 0.3, 0.5))


def test_a_judge_of_pairs_has_its_own_word() -> None:
    for missing_eos_score in (None, -1.0):
        game = game_of(a_game(0.4, 0.5, 0.6, preferences=CYCLE), missing_eos_score)
        np.testing.assert_allclose(game.preferences, CYCLE, atol=1e-15)


def test_an_unfinished_completion_loses_to_every_finished_one_and_ties_with_its_like() -> None:
    group = a_game(0.4, 0.5, 0.6, preferences=CYCLE, finished=(False, True, False))
    assert game_of(group, -1.0).preferences == ((0.5, 0.0, 0.5), (1.0, 0.5, 1.0), (0.5, 0.0, 0.5))
    as_judged = game_of(group, None).preferences
    np.testing.assert_allclose(
        as_judged, CYCLE, atol=1e-15, err_msg="without a replacement the judge has the last word"
    )


def test_the_diagonal_is_one_half_whatever_the_judge_wrote_there() -> None:
    group = a_game(0.4, 0.5, preferences=((math.nan, 0.75), (0.25, 1.0)))
    assert game_of(group, None).preferences == ((0.5, 0.75), (0.25, 0.5))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((0.9, 0.1000005), (0.89999975, 0.10000025)),
        ((1.0 + 5e-7, -5e-7), (1.0, 0.0)),
        ((-5e-7, 1.0), (0.0, 1.0)),
        ((1.0, 5e-7), (1.0 - 2.5e-7, 2.5e-7)),
    ],
)
def test_rounding_of_a_judge_is_no_error_and_none_of_it_is_kept(given: tuple, kept: tuple) -> None:
    for p, q in (given, given[::-1]):
        game = game_of(a_game(0.0, 1.0, preferences=((0.5, p), (q, 0.5))), None)
        wanted = kept if (p, q) == given else kept[::-1]
        assert (game.preferences[0][1], game.preferences[1][0]) == pytest.approx(wanted, abs=1e-15)
        assert game.preferences[0][1] + game.preferences[1][0] == 1.0
        assert min(map(min, game.preferences)) >= 0.0


def test_the_preferences_of_a_judge_in_float32_add_up_to_exactly_one() -> None:
    rewards = np.random.default_rng(0).normal(size=8).astype(np.float32)
    table = (1 / (1 + np.exp(rewards[None, :] - rewards[:, None]))).astype(np.float64)
    assert np.abs(table + table.T - 1.0)[~np.eye(8, dtype=bool)].max() > 1e-9
    kept = np.array(game_of(a_game(*[0.0] * 8, preferences=tuple(map(tuple, table.tolist()))), None).preferences)
    assert (kept + kept.T == 1.0).all()
    assert np.abs(kept - table)[~np.eye(8, dtype=bool)].max() < 1e-7


def test_a_group_without_judgement_is_no_game() -> None:
    with pytest.raises(RunError, match="lease 4 has no judgement"):
        game_of(make_group(["a", "b"], index=4), None)


# ---------------------------------------------------------------- below_finished


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_below_finished_ranks_unfinished_completions_last_in_any_unit(unit: float) -> None:
    """A judge that prefers short answers, with 16 new tokens: minus the length. The cut ones are 16 long."""
    group = judged(*(-unit * length for length in (16, 5, 9, 16)), finished=(False, True, True, False))
    assert effective_scores(group, "below_finished") == pytest.approx((-20 * unit, -5 * unit, -9 * unit, -20 * unit))
    assert chosen_and_rejected(group, "below_finished") == (1, 0)
    assert chosen_and_rejected(judged(-16.0, -5.0, -9.0, finished=(False, True, True)), -1.0) == (0, 2), "the old rule"


def test_below_finished_is_below_if_all_finished_scores_are_equal_and_if_a_spread_vanishes_in_rounding() -> None:
    assert effective_scores(judged(1.0, 1.0, 1.0, finished=(True, False, True)), "below_finished") == (1.0, 0.0, 1.0)
    scores = effective_scores(judged(1e300, 1e300, finished=(True, False)), "below_finished")
    assert scores[1] < scores[0]


def test_if_none_finished_all_are_a_tie_and_if_all_did_the_judge_has_the_last_word() -> None:
    assert effective_scores(judged(3.0, 1.0, finished=(False, False)), "below_finished") == (1.0, 1.0)
    assert effective_scores(judged(3.0, 1.0), "below_finished") == (3.0, 1.0)


def test_in_a_game_an_unfinished_completion_loses_against_every_finished_one() -> None:
    third = 1 / (1 + math.exp(-1.0))
    game = game_of(judged(9.0, 1.0, 0.0, finished=(False, True, True)), "below_finished")
    assert game.preferences[0] == (0.5, 0.0, 0.0)
    assert game.preferences[1] == pytest.approx((1.0, 0.5, third))
    both = game_of(judged(9.0, 1.0, finished=(False, False)), "below_finished")
    assert both.preferences == ((0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize(
    ("finished", "setting", "won"),
    [
        ((False, True), None, True),
        ((False, True), 6.0, True),
        ((False, True), -1.0, False),
        ((False, True), "below_finished", False),
        ((True, False), None, False),
        ((True, True), None, None),
        ((False, False), None, None),
    ],
)
def test_whether_an_unfinished_completion_won_is_known_of_groups_with_both_kinds(
    finished: tuple[bool, ...], setting: MissingEos, won: bool | None
) -> None:
    assert unfinished_won(judged(5.0, 1.0, finished=finished), setting) is won
