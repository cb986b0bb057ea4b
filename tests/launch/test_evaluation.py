"""Win rates by hand, and the interval's coverage by simulation."""

from __future__ import annotations

import math
import random

import pytest

from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.evaluation import against, sequence_kl, win_rate, win_share

LEASE = Lease(-1, 0, Prompt("p:0", (1,), "p"), 0, math.inf)


def _completion(finished: bool = True) -> Completion:
    return Completion((1,), (-1.0,), (0,), "x", finished)


def _judged(scores, preferences=None, finished=(True, True, True, True)) -> Group:
    completions = tuple(_completion(f) for f in finished)
    both = against(Group(LEASE, completions[:2]), Group(LEASE, completions[2:]))
    return Group(LEASE, both.completions, Judgement(scores, preferences))


def test_scalar_judges_count_every_comparison_and_half_of_each_tie() -> None:
    # policy 3, 1 against baseline 1, 2: wins 1 + 1 + 1/2 + 0 of 4
    assert win_share(_judged((3.0, 1.0, 1.0, 2.0)), None) == pytest.approx(2.5 / 4)


def test_pairwise_judges_give_their_probabilities() -> None:
    preferences = ((0.5, 0.5, 0.9, 0.7), (0.5, 0.5, 0.2, 0.4), (0.1, 0.8, 0.5, 0.5), (0.3, 0.6, 0.5, 0.5))
    assert win_share(_judged((0.0,) * 4, preferences), None) == pytest.approx((0.9 + 0.7 + 0.2 + 0.4) / 4)


def test_a_completion_without_end_of_sequence_competes_with_the_penalty_score() -> None:
    judged = _judged((9.0, 9.0, 0.0, 0.0), finished=(False, True, True, True))
    assert win_share(judged, missing_eos_score=-1.0) == pytest.approx(0.5)
    assert win_share(judged, missing_eos_score=None) == pytest.approx(1.0)


def test_the_interval_is_the_normal_one_by_hand() -> None:
    rate = win_rate([1.0, 0.0, 1.0, 1.0])
    # mean 3/4, sample variance 1/4, standard error sqrt(1/16) = 1/4
    assert rate.value == 0.75
    assert rate.low == pytest.approx(0.75 - 1.96 * 0.25)
    assert rate.high == 1.0
    assert rate.n == 4


def test_the_interval_covers_the_truth_at_about_its_level() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(1000):
        rate = win_rate([rng.betavariate(2, 1) for _ in range(64)])
        covered += rate.low <= 2 / 3 <= rate.high
    assert 925 <= covered <= 970


def test_sequence_kl_is_the_mean_log_ratio_of_whole_completions() -> None:
    assert sequence_kl([([-1.0, -1.0], [-2.0, -1.5]), ([-0.5], [-0.25])]) == pytest.approx((1.5 - 0.25) / 2)
