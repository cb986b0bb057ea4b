"""The shares that say how far to trust a language model's verdicts."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from actors.judges.http.figures import Counts, with_shares


def figures(groups: Any, **counts: int) -> dict[str, float]:
    counted = Counts(**counts)
    for pairs in groups:
        counted.count_orders(pairs)
    return {name: float(value) for name, value in vars(counted).items()}


def test_the_first_place_s_share_has_an_interval_over_groups() -> None:
    # Preferences for what was shown first, of both orders; the groups' means are 1, .5, .75 and .5.
    groups = [[(1.0, 1.0)], [(1.0, 0.0)], [(1.0, 0.0), (1.0, 1.0)], [(0.5, 0.5)], []]
    told = with_shares(figures(groups, verdicts=20, abstentions=5))
    assert told["abstention_rate"] == 0.25
    assert told["first_place_share"] == pytest.approx(0.6875)
    half = 3.182446 * statistics.stdev([1.0, 0.5, 0.75, 0.5]) / 2  # Student's t of 3 degrees of freedom
    assert told["first_place_low"] == pytest.approx(0.6875 - half, abs=1e-4)
    assert told["first_place_high"] == pytest.approx(min(1.0, 0.6875 + half), abs=1e-4)


def test_a_pair_changes_with_the_order_if_its_outcome_does() -> None:
    pairs = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.5), (0.5, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.9, 0.2)]
    told = with_shares(figures([pairs]))
    assert (told["pairs"], told["order_disagreements"], told["order_changes"]) == (8, 2, 4)
    assert told["order_change_rate"] == 0.5


def test_shares_without_a_denominator_are_left_out_and_one_group_has_no_interval() -> None:
    assert with_shares({"groups": 3.0}) == {"groups": 3.0}
    assert set(with_shares(figures([]))) == set(figures([]))
    assert "first_place_low" not in with_shares(figures([[(1.0, 0.0)]]))


def test_the_shares_of_an_ensemble_s_members_are_their_own() -> None:
    told = with_shares(
        {f"1_endpoint.{name}": value for name, value in figures([[(1.0, 1.0)]], verdicts=2).items()}
        | {f"2_endpoint.{name}": value for name, value in figures([], verdicts=4, abstentions=3).items()}
    )
    assert told["1_endpoint.first_place_share"] == 1.0
    assert told["2_endpoint.abstention_rate"] == 0.75
    assert "2_endpoint.first_place_share" not in told


def test_the_interval_covers_a_judge_without_bias_as_often_as_it_says() -> None:
    """Three pairs a group, decided by the order alone in a share of groups that differs: they are no coin flips."""
    random.seed(0)
    covered = 0
    for _ in range(1500):
        groups = []
        for _ in range(24):
            place = random.choice([0.0, 0.5, 1.0])  # the whole group's judge looks at the first, at neither, the second
            groups.append([(place, place) if random.random() < 0.7 else (1.0, 0.0) for _ in range(3)])
        told = with_shares(figures(groups))
        covered += told["first_place_low"] <= 0.5 <= told["first_place_high"]
    assert 0.93 <= covered / 1500 <= 0.97
