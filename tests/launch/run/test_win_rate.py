"""Win rates by hand, and the interval's coverage by simulation."""

from __future__ import annotations

import math
import random

import pytest

from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.run.win_rate import against, largest_gap, reward, sequence_kl, wilson_interval, win_rate, win_share

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


def test_the_win_rate_is_the_mean_over_prompts_with_wilson_s_interval() -> None:
    rate = win_rate([1.0, 0.5, 0.5, 1.0])
    assert (rate.value, rate.n) == (0.75, 4)
    assert (rate.low, rate.high) == wilson_interval(3, 4)


def test_sequence_kl_is_the_mean_log_ratio_of_whole_completions() -> None:
    assert sequence_kl([([-1.0, -1.0], [-2.0, -1.5]), ([-0.5], [-0.25])]) == pytest.approx((1.5 - 0.25) / 2)


def test_the_gap_is_of_the_tokens_that_the_scored_version_sampled_alone() -> None:
    one = Completion((5, 6, 7), (-1.0, -2.0, -0.5), (3, 4, 4), "", True)
    other = Completion((5,), (-3.0,), (4,), "", True)
    scored = [([-9.0, -2.25, -0.5], [0.0, 0.0, 0.0]), ([-3.125], [0.0])]
    assert largest_gap([one, other], scored, version=4) == 0.25
    assert largest_gap([one, other], scored, version=3) == 8.0
    assert largest_gap([one, other], scored, version=5) == 0.0


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        # z = 1.96, z^2 = 3.8416. 5 of 10: (0.5 + 0.19208 -+ 1.96 sqrt(0.025 + 0.009604)) / 1.38416.
        (5, 10, 0.236590, 0.763410),
        # 0 of n: from 0 to z^2 / (n + z^2) = 3.8416 / 13.8416.
        (0, 10, 0.0, 0.277540),
        (10, 10, 0.722460, 1.0),
        # Two ties count as one win: (0.5 + 0.9604 -+ 1.96 sqrt(0.125 + 0.2401)) / 2.9208.
        (0.5 + 0.5, 2, 0.094529, 0.905471),
    ],
)
def test_wilson_interval_by_hand(wins, n, low, high):
    assert wilson_interval(wins, n) == pytest.approx((low, high), abs=2e-6)


def test_no_comparison_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("wins", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(wins, n):
    with pytest.raises(ValueError, match=r"allowed are 0 <= wins <= n"):
        wilson_interval(wins, n)


def coverage(outcomes, weights, n, runs=3000):
    """Share of simulated evaluations whose interval holds the true mean."""
    rng = random.Random(7)
    mean = sum(outcome * weight for outcome, weight in zip(outcomes, weights, strict=True))
    held = 0
    for _ in range(runs):
        low, high = wilson_interval(sum(rng.choices(outcomes, weights, k=n)), n)
        held += low <= mean <= high
    return held / runs


@pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.87, 256), (0.97, 256)])
def test_wins_and_losses_are_covered_about_95_times_in_100(p, n):
    """Standard error of the simulated coverage: sqrt(0.95 * 0.05 / 3000) = 0.004; discreteness adds about 0.01."""
    assert coverage((0.0, 1.0), (1 - p, p), n) == pytest.approx(0.95, abs=0.02)


def test_ties_make_the_interval_wider_than_it_need_be_and_never_narrower():
    assert coverage((0.0, 0.5, 1.0), (0.3, 0.4, 0.3), 100) > 0.97


def test_the_reward_rises_by_the_mean_paired_difference_with_its_normal_interval() -> None:
    """Prompts with means 2 and 1.5, then 1 and 0: rises 0.5 and 1, of standard deviation sqrt(1/8)."""
    result = reward([_judged((3.0, 1.0, 1.0, 2.0)), _judged((1.0, 1.0, 0.0, 0.0))], None)
    assert (result.value, result.start, result.rise, result.n) == (1.5, 0.75, 0.75, 2)
    assert result.high - result.rise == pytest.approx(1.96 * (1 / 8) ** 0.5 / 2**0.5)
    assert result.rise - result.low == pytest.approx(result.high - result.rise)


def test_the_reward_of_an_unfinished_completion_is_what_training_gives_it() -> None:
    judged = _judged((1.0, 1.0, 1.0, 1.0), finished=(False, True, True, True))
    result = reward([judged], missing_eos_score=-1.0)
    assert (result.value, result.start) == (0.0, 1.0)
    assert result.low == result.high == result.rise == -1.0
