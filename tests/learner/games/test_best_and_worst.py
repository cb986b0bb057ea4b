"""The law of stale pairs against enumerated groups: eigenvalues of the delayed step, and the game itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actors.errors import UsageError
from learner.games.best_and_worst import labels, pull, unexplained
from learner.games.stability import largest_anchored_lag, largest_stable_lag, rotations
from learner.games.tabular import bradley_terry
from tests.learner.games.pair_dynamics import Rest, growth, hard_signal, mixed_cycle, rest_of, settles, soft_signal

MU = np.array([0.5, 0.3, 0.2])
P = mixed_cycle(0.3, 0.5)


def _omega(table: Any, pi: Any) -> float:
    """The frequency of the residual at rest, from its eigenvalues; the fit of the scores is that of a reward model."""
    r = bradley_terry(table, pi)
    residual = table - 1.0 / (1.0 + np.exp(-np.subtract.outer(r, r)))
    return float(np.abs(np.linalg.eigvals(residual * pi).imag).max())


def _turns_at(at: Rest, beta: float, eta: float, anchor: tuple[float, float] = (0.0, 1.0)) -> int:
    """The largest lag at which every eigenvalue of the delayed step is inside the unit circle."""
    low, high = -1, 1
    while growth(at, beta, eta, high, anchor) < 1.0 - 1e-10:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if growth(at, beta, eta, middle, anchor) < 1.0 - 1e-10 else (low, middle)
    return low


@pytest.mark.parametrize(("beta", "eta"), [(0.1, 0.05), (0.1, 0.2), (0.2, 0.1), (0.5, 0.2), (0.5, 0.5)])
@pytest.mark.parametrize("label", ["soft", "hard", "smoothed"])
def test_pairs_of_two_turn_unstable_at_the_lag_of_the_residual_s_rotation(beta: float, eta: float, label: str) -> None:
    smoothing = 0.1 if label == "smoothed" else 0.0
    signal = soft_signal(P) if label == "soft" else hard_signal(P, 2, "dpo", smoothing)
    table = P if label == "soft" else labels(P, smoothing)
    at = rest_of(signal, MU, beta)
    told, exact = largest_stable_lag(pull("dpo", beta, 2), 0.0, eta, _omega(table, at.pi)), _turns_at(at, beta, eta)
    assert abs(told - exact) <= max(1.0, 0.1 * exact)


@pytest.mark.parametrize(("beta", "eta"), [(0.05, 0.05), (0.1, 0.1), (0.2, 0.2)])
def test_the_linear_residual_of_ipo_is_told_exactly(beta: float, eta: float) -> None:
    at = rest_of(hard_signal(P, 2, "ipo"), MU, beta)
    scores = (labels(P) - 0.5) @ at.pi
    residual = labels(P) - 0.5 - np.subtract.outer(scores, scores)
    omega = float(np.abs(np.linalg.eigvals(residual * at.pi).imag).max())
    assert largest_stable_lag(pull("ipo", beta, 2), 0.0, eta, omega) == _turns_at(at, beta, eta)


@pytest.mark.parametrize(("completions", "shortest"), [(3, 0.8), (4, 0.6), (6, 0.5)])
@pytest.mark.parametrize("game", [mixed_cycle(0.3, 0.0), P, mixed_cycle(0.4, 1.0)], ids=["cycle", "mixed", "strong"])
def test_for_more_completions_the_lag_is_somewhat_too_short(game: Any, completions: int, shortest: float) -> None:
    at = rest_of(hard_signal(game, completions), MU, 0.5)
    told = largest_stable_lag(pull("dpo", 0.5, completions), 0.0, 0.03, _omega(labels(game), at.pi))
    exact = _turns_at(at, 0.5, 0.03)
    assert shortest * exact <= told <= 1.05 * exact


@pytest.mark.parametrize("kappa", [0.2, 0.4])
def test_an_anchor_counts_with_the_same_slope(kappa: float) -> None:
    at, beta, eta = rest_of(hard_signal(P, 2), MU, 0.1), 0.1, 0.2
    told = largest_anchored_lag(pull("dpo", beta, 2), 0.0, eta, _omega(labels(P), at.pi), (pull("dpo", kappa, 2), 20.0))
    exact = _turns_at(at, beta, eta, (kappa, 20.0))
    assert exact > _turns_at(at, beta, eta)
    assert abs(told - exact) <= max(1.0, 0.1 * exact)


@pytest.mark.parametrize("anchor", [(0.0, 1.0), (1.28, 40.0)])
def test_the_game_itself_settles_below_that_lag_and_not_above(anchor: tuple[float, float]) -> None:
    """beta .1 and a step of .1: unstable from lag 3 on; the anchor of docs/anchor.md holds at 20 as well."""
    signal = hard_signal(P, 2)
    omega = _omega(labels(P), rest_of(signal, MU, 0.1).pi)
    told = largest_stable_lag(pull("dpo", 0.1, 2), 0.0, 0.1, omega)
    assert settles(signal, MU, 0.1, 0.1, int(told) - 1, anchor)
    assert settles(signal, MU, 0.1, 0.1, int(told) + 2, anchor) == (anchor[0] > 0.0)
    assert settles(signal, MU, 0.1, 0.1, 20, anchor) == (anchor[0] > 0.0)


# What the labels of a prompt's completions leave unexplained


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize(("label", "of"), [("soft", 0.3), ("hard", 0.5), ("smoothed", 0.4)])
def test_a_cycle_is_measured_without_bias_from_four_completions(kind: Any, label: str, of: float) -> None:
    """Enumerated over all groups of four from the uniform policy: omega is the cycle's amplitude over root 3."""
    cycle = mixed_cycle(0.3, 0.0)
    table = {"soft": cycle, "hard": labels(cycle), "smoothed": labels(cycle, 0.1)}[label]
    groups = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    measured = unexplained(table[groups[:, :, None], groups[:, None]], kind).mean()
    assert math.sqrt(measured) == pytest.approx(of / math.sqrt(3.0), rel=1e-9)


def test_a_score_explains_all_of_its_preferences_and_of_their_signs() -> None:
    scores = np.random.default_rng(0).normal(scale=2.0, size=(50, 5))
    table = 1.0 / (1.0 + np.exp(scores[:, None] - scores[:, :, None]))
    assert unexplained(table, "dpo").max() < 1e-12
    assert unexplained(labels(table), "dpo").max() < 1e-12
    assert rotations(labels(table)).mean() > 0.01  # what is left of signs by a linear score


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_residual_of_six_kinds_of_answers_is_measured_within_a_tenth(smoothing: float) -> None:
    """Sampled from a policy; sqrt of the sum of all modes, from the eigenvalues of the fitted residual."""
    rng, ahead = np.random.default_rng(5), np.subtract.outer(np.arange(6), np.arange(6))
    wins = np.isin(-ahead % 6, [1, 2]) | (ahead == -3)  # against the next two, and half of them against the third
    table = labels(np.where(ahead == 0, 0.5, wins), smoothing)
    pi = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.1])
    r = bradley_terry(table, pi)
    residual = table - 1.0 / (1.0 + np.exp(-np.subtract.outer(r, r)))
    modes = np.linalg.eigvals(residual * pi).imag
    drawn = rng.choice(6, p=pi, size=(20_000, 5))
    measured = unexplained(table[drawn[:, :, None], drawn[:, None]], "dpo").mean()
    assert math.sqrt(measured) == pytest.approx(math.sqrt(0.5 * (modes**2).sum()), rel=0.1)


def test_for_ipo_it_is_the_rotation_of_games() -> None:
    table = np.random.default_rng(1).random((4, 6, 6))
    table = 0.5 + 0.5 * (table - table.transpose(0, 2, 1))
    assert unexplained(table, "ipo") == pytest.approx(rotations(table))


def test_labels_are_the_preferred_completions_wins_less_the_smoothing() -> None:
    table = [[[0.5, 0.51, 0.5], [0.49, 0.5, 0.2], [0.5, 0.8, 0.5]]]
    assert labels(table, 0.1) == pytest.approx(np.array([[[0.5, 0.9, 0.5], [0.1, 0.5, 0.1], [0.5, 0.9, 0.5]]]))


def test_two_completions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"labels have shape \(1, 2, 2\); they need \[prompts, k, k\] with k >= 3"):
        unexplained(np.full((1, 2, 2), 0.5), "dpo")
