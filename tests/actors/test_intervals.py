"""Intervals by hand, against tables, and by their coverage in simulated evaluations."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from actors.intervals import mean_interval, means_by, share_interval, student_t, wilson_interval

RUNS = 1500
"""Simulated evaluations of a case. The standard error of a coverage of .95 is .0056."""


def held(intervals, mean) -> float:
    return float(np.mean([low <= mean <= high for low, high in intervals]))


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
    assert wilson_interval(wins, n, 1.96) == pytest.approx((low, high), abs=2e-6)


def test_no_comparison_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("wins", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(wins, n):
    with pytest.raises(ValueError, match=r"allowed are 0 <= wins <= n"):
        wilson_interval(wins, n)


def test_student_s_quantiles_are_those_of_the_tables() -> None:
    """Fisher and Yates, Statistical Tables, table III, P = .05; the normal's 1.959964 at infinity."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 30: 2.042, 120: 1.980, 1000: 1.962}
    assert {degrees: round(student_t(degrees), 3) for degrees in table} == table
    assert student_t(10**9) == pytest.approx(1.959964, abs=1e-6)
    assert student_t(200) - student_t(201) == pytest.approx(student_t(201) - student_t(202), rel=0.02)


def test_repeats_of_a_key_count_once() -> None:
    assert means_by("abab", (1.0, 4.0, 2.0, 6.0)) == [1.5, 5.0]


def test_nothing_is_said_of_one_value_or_of_values_that_do_not_vary() -> None:
    assert mean_interval([3.0]) is mean_interval([0.1 + 0.2, 0.3, 0.3]) is share_interval([0.5]) is None


def test_shares_that_are_all_0_or_1_or_equal_have_wilson_s_interval() -> None:
    """Equal shares have no spread to tell an interval from, as those of three prompts that tie."""
    assert share_interval([1.0, 0.0, 1.0]) == wilson_interval(2.0, 3)
    assert share_interval([0.5, 0.5, 0.5]) == wilson_interval(1.5, 3)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_a_mean_of_continuous_rewards_is_held_95_times_in_100(n: int, k: int) -> None:
    """It was 69 of 100 with two prompts."""
    rng = np.random.default_rng([n, k])
    values = 1.0 + rng.normal(size=(RUNS, n)) + rng.normal(size=(RUNS, n)) / math.sqrt(k)
    assert 0.93 <= held(map(mean_interval, values.tolist()), 1.0) <= 0.97


def latent(rng, n: int, k: int, runs: int, case: tuple[float, float, bool]) -> np.ndarray:
    """Win shares [runs, n] of k against k completions with normal scores, for `case` (shift, sd of prompts, grades)."""
    shift, effect, grades = case
    own = shift + effect * rng.normal(size=(runs, n, 1)) + rng.normal(size=(runs, n, k))
    start = rng.normal(size=(runs, n, k))
    if grades:  # whole numbers: about a quarter of ties
        own, start = np.floor(own), np.floor(start)
    difference = own[..., :, None] - start[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-1, -2))


def verified(rng, n: int, k: int, runs: int, case: tuple[float, float, float]) -> np.ndarray:
    """The same for right and wrong answers, for `case` (share right, its rise, how alike prompts are)."""
    right, rise, alike = case
    start = rng.beta(right * alike, (1.0 - right) * alike, size=(runs, n, 1))
    own, before = rng.random((runs, n, k)) < np.minimum(start + rise, 1.0), rng.random((runs, n, k)) < start
    return 0.5 + 0.5 * (own.mean(-1) - before.mean(-1))


POPULATIONS = [
    *((latent, (shift, effect, grades)) for shift in (0.0, 1.0) for effect in (0.0, 1.0) for grades in (False, True)),
    *((verified, (right, rise, 4.0)) for right in (0.3, 0.7) for rise in (0.0, 0.1)),
]


@functools.cache
def means() -> list[float]:
    """Of 200,000 prompts of each population."""
    return [float(draw(np.random.default_rng(0), 1000, 2, 200, case).mean()) for draw, case in POPULATIONS]


@pytest.mark.parametrize(
    ("n", "k"),
    [(2, 1), (2, 16), (3, 4), (4, 2), (4, 4), (4, 16), (8, 2), (8, 16), (16, 1), (16, 4), (64, 1), (64, 8), (256, 2)],
)
def test_a_win_rate_is_held_95_times_in_100_over_kinds_of_judges_and_policies(n: int, k: int) -> None:
    """It was 100 of 100 with 16 completions each, three times as wide as the data say.

    Below 16 completions in all shares are too coarse for exactly 95: there it is held more often, never less.
    """
    rng = np.random.default_rng([n, k])
    runs = 300 if n * k < 512 else 100
    covered = [
        held(map(share_interval, draw(rng, n, k, runs, case).tolist()), mean)
        for (draw, case), mean in zip(POPULATIONS, means(), strict=True)
    ]
    assert 0.93 <= np.mean(covered) <= (0.97 if n >= 4 and n * k >= 16 else 1.0)


def test_more_completions_of_a_prompt_make_the_interval_narrower() -> None:
    """64 prompts whose policies differ: the interval of 64 coin flips was .235 wide for any number of completions."""
    rng = np.random.default_rng(0)
    widths = {}
    for k in (1, 16):
        found = [share_interval(shares) for shares in latent(rng, 64, k, 50, (0.0, 0.2, False)).tolist()]
        widths[k] = np.mean([high - low for low, high in found])
    assert widths[1] == pytest.approx(0.236, abs=0.01)
    assert widths[16] < 0.08
