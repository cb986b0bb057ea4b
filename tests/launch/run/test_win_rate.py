"""Win rates and rewards by hand."""

from __future__ import annotations

import math

import pytest

from actors.intervals import share_interval
from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.run.win_rate import (
    Reward,
    WinRate,
    against,
    by_prompt,
    largest_gap,
    reward,
    sequence_kl,
    win_rate,
    win_share,
)


def _completion(finished: bool = True) -> Completion:
    return Completion((1,), (-1.0,), (0,), "x", finished)


def _judged(scores, preferences=None, finished=(True, True, True, True), prompt=1) -> Group:
    completions = tuple(_completion(f) for f in finished)
    lease = Lease(-1, 0, Prompt(f"p:{prompt}", (prompt,), "p"), 0, math.inf)
    both = against(Group(lease, completions[:2]), Group(lease, completions[2:]))
    return Group(lease, both.completions, Judgement(scores, preferences))


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


def test_the_win_rate_is_the_mean_over_prompts_with_the_interval_of_shares() -> None:
    rate = win_rate([1.0, 0.5, 0.5, 1.0])
    assert (rate.value, rate.n) == (0.75, 4)
    assert (rate.low, rate.high) == share_interval([1.0, 0.5, 0.5, 1.0])


def test_one_prompt_has_a_win_rate_and_a_rise_without_an_interval() -> None:
    """The rise had an interval of width 0, named 95%."""
    assert win_rate([1.0]) == WinRate(1.0, None, None, 1)
    assert reward([_judged((3.0, 1.0, 1.0, 2.0))], None) == Reward(2.0, 1.5, 0.5, None, None, 1)


def test_a_prompt_that_repeats_is_no_further_draw() -> None:
    """256 evaluation prompts of a source with 3 counted as n = 256, and a win rate of chance as a win."""
    judged = [_judged(scores, prompt=prompt) for prompt, scores in ((1, (2.0, 2.0, 1.0, 1.0)), (2, (1.0,) * 4)) * 128]
    shares = by_prompt(judged, [win_share(group, None) for group in judged])
    assert shares == [1.0, 0.5]
    assert (win_rate(shares).n, reward(judged, None).n) == (2, 2)
    assert (reward(judged, None).low, reward(judged, None).high) == pytest.approx(
        (0.5 - 12.706205 / 2, 0.5 + 12.706205 / 2)
    )


def test_a_rise_of_right_and_wrong_answers_has_the_interval_of_shares() -> None:
    """Rises 1, 1 and 0 of scores that are 0 or 1: shares of 1, 1 and 1/2."""
    result = reward([_judged((1.0, 1.0, 0.0, 0.0), prompt=n) for n in (1, 2)] + [_judged((1.0,) * 4, prompt=3)], None)
    low, high = share_interval([1.0, 1.0, 0.5])
    assert (result.low, result.high) == (2 * low - 1, 2 * high - 1)


def test_sequence_kl_is_the_mean_log_ratio_of_whole_completions() -> None:
    assert sequence_kl([[-1.0, -1.0], [-0.5]], [[-2.0, -1.5], [-0.25]]) == pytest.approx((1.5 - 0.25) / 2)


def test_the_gap_is_of_the_tokens_that_the_scored_version_sampled_alone() -> None:
    one = Completion((5, 6, 7), (-1.0, -2.0, -0.5), (3, 4, 4), "", True)
    other = Completion((5,), (-3.0,), (4,), "", True)
    scored = [([-9.0, -2.25, -0.5], [0.0, 0.0, 0.0]), ([-3.125], [0.0])]
    assert largest_gap([one, other], scored, version=4) == 0.25
    assert largest_gap([one, other], scored, version=3) == 8.0
    assert largest_gap([one, other], scored, version=5) == 0.0


def test_the_reward_rises_by_the_mean_paired_difference_with_student_s_interval() -> None:
    """Prompts with means 2 and 1.5, then 1 and 0: rises 0.5 and 1, of standard deviation sqrt(1/8)."""
    result = reward([_judged((3.0, 1.0, 1.0, 2.0)), _judged((1.0, 1.0, 0.0, 0.0), prompt=2)], None)
    assert (result.value, result.start, result.rise, result.n) == (1.5, 0.75, 0.75, 2)
    assert result.high - result.rise == pytest.approx(12.706205 * (1 / 8) ** 0.5 / 2**0.5)
    assert result.rise - result.low == pytest.approx(result.high - result.rise)


def test_the_reward_of_an_unfinished_completion_is_what_training_gives_it() -> None:
    judged = _judged((1.0, 1.0, 1.0, 1.0), finished=(False, True, True, True))
    result = reward([judged], missing_eos_score=-1.0)
    assert (result.value, result.start) == (0.0, 1.0)
    assert (result.rise, result.low, result.high) == (-1.0, None, None)
