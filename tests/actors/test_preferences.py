"""Preference tables: made from scores, checked, averaged, with every expected value worked out by hand."""

from __future__ import annotations

import math

import pytest

from actors.errors import RunError
from actors.preferences import antisymmetric, bradley_terry, check_preferences, mean_win_probabilities


def test_the_mean_win_probability_leaves_out_the_diagonal() -> None:
    preferences = ((0.5, 0.9, 0.4), (0.1, 0.5, 0.7), (0.6, 0.3, 0.5))
    assert mean_win_probabilities(preferences) == pytest.approx((0.65, 0.40, 0.45))


def test_scores_far_apart_are_certain_and_do_not_overflow() -> None:
    assert bradley_terry((1e6, -1e6)) == ((0.5, 1.0), (0.0, 0.5))


def test_both_orders_are_averaged_and_the_diagonal_is_one_half() -> None:
    assert antisymmetric(((math.nan, 1.0), (1.0, 0.0))) == ((0.5, 0.5), (0.5, 0.5))
    table = antisymmetric(((0.5, 0.9), (0.7, 0.5)))
    assert table[0][1] == pytest.approx((0.9 + (1 - 0.7)) / 2)
    assert table[0][1] + table[1][0] == 1.0


def test_a_table_within_rounding_is_taken_and_its_diagonal_is_not_read() -> None:
    check_preferences(((math.nan, 1.0 + 5e-7), (-5e-7, 7.0)), 2)


@pytest.mark.parametrize(
    ("preferences", "text"),
    [
        (((0.5, 0.9),), "the judge gave preferences that are not 2 x 2"),
        (((0.5, 0.9), (0.1, 0.5, 0.5)), "the judge gave preferences that are not 2 x 2"),
        (((0.5, 1.000002), (-0.000002, 0.5)), r"the judge gave preferences -2e-06 and 1\.000002 .*from 0 to 1"),
        (((0.5, math.nan), (0.5, 0.5)), r"the judge gave preferences 0\.5 and nan .*from 0 to 1"),
        (((0.5, 0.9), (0.100002, 0.5)), r"0\.100002 for completion 1 over 0 and 0\.9 .*add up to 1"),
    ],
)
def test_preferences_that_are_no_probabilities_of_one_or_the_other_are_refused(preferences: tuple, text: str) -> None:
    with pytest.raises(RunError, match=text):
        check_preferences(preferences, 2)
