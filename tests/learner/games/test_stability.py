"""The law of stale opponents against polynomial roots, simulations of the game itself and enumerated samples."""

import itertools
import math

import numpy as np
import pytest

from actors.errors import UsageError
from learner.games import stability
from learner.games.stability import (
    fastest_rotation,
    largest_stable_lag,
    largest_stable_step,
    rotations,
    step_size_estimate,
)
from learner.games.tabular import GAMES, nash_md_fixed_point, regularised_nash
from tests.learner.games.theory import (
    anchored_descent,
    constant_descent,
    largest_stable_lag_first_order,
    rotation_frequency,
)

UNIFORM = np.full(3, 1 / 3)
MU = np.array([0.7, 0.2, 0.1])
RPS_OMEGA = 1 / math.sqrt(12)
"""0.288675: rock, paper, scissors at the uniform policy."""


def lag_by_roots(tau: float, beta: float, eta: float, omega: float, limit: int = 100) -> float:
    """The largest d with all roots of l^(d+1) - (1 - eta tau) l^d - i eta omega (1 - beta) in the unit disc."""
    for d in range(limit):
        polynomial = np.zeros(d + 2, dtype=complex)
        polynomial[0] = 1.0
        polynomial[1] -= 1.0 - eta * tau
        polynomial[-1] -= 1j * eta * omega * (1.0 - beta)
        if np.abs(np.roots(polynomial)).max() >= 1.0:
            return d - 1
    return math.inf


# The frequency of rotation


def test_a_cycle_rotates_with_its_amplitude_over_the_root_of_three():
    for game, amplitude in (("rps", 0.5), ("dice", 1 / 18)):
        assert rotation_frequency(GAMES[game], UNIFORM) == pytest.approx(amplitude / math.sqrt(3), abs=1e-15)


def test_rotation_of_other_games_at_their_equilibria():
    for game, omega in (("wrps", 0.1075), ("dice", 0.0321), ("munos", 0.0935)):
        pi = regularised_nash(GAMES[game], UNIFORM, 0.05)
        assert rotation_frequency(GAMES[game], pi) == pytest.approx(omega, abs=5e-5)


def test_rotation_is_the_largest_imaginary_part_of_an_eigenvalue():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        scores = rng.normal(size=(n, n))
        P, pi = 1 / (1 + np.exp(scores.T - scores)), rng.dirichlet(np.ones(n))
        eigenvalues = np.linalg.eigvals((P - 0.5) @ (np.diag(pi) - np.outer(pi, pi)))
        assert rotation_frequency(P, pi) == pytest.approx(np.abs(eigenvalues.imag).max(), rel=1e-9)


def test_preferences_that_are_differences_of_a_score_do_not_rotate():
    score = np.array([0.1, 0.2, 0.05, 0.3])
    P = 0.5 + np.subtract.outer(score, score)
    assert rotation_frequency(P, [0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.0, abs=1e-15)


# Lags and steps

THRESHOLDS = [
    (0.05, 0.05, (11, 15, 51), (11.5, 15.2, 47.5)),
    (0.05, 0.1, (5, 7, 25), (5.5, 7.3, 23.5)),
    (0.05, 0.2, (2, 3, 12), (2.5, 3.4, 11.5)),
    (0.1, 0.1, (12, 16, 72), (11.5, 15.2, 47.5)),
    (0.1, 0.2, (5, 8, 35), (5.5, 7.3, 23.5)),
    (0.02, 0.1, (1, 2, 9), (1.9, 2.6, 9.1)),
]


@pytest.mark.parametrize(("tau", "eta", "lags", "first_order"), THRESHOLDS)
def test_the_largest_stable_lag_is_that_of_the_roots_and_near_the_first_order_s(tau, eta, lags, first_order):
    for beta, lag, estimate in zip((0.0, 0.125, 0.5), lags, first_order, strict=True):
        assert largest_stable_lag(tau, beta, eta, RPS_OMEGA) == lag == lag_by_roots(tau, beta, eta, RPS_OMEGA)
        # The published estimates have one digit, some of them cut off.
        assert largest_stable_lag_first_order(tau, beta, eta, RPS_OMEGA) == pytest.approx(estimate, abs=0.07)


def test_the_closed_form_is_the_roots_over_random_settings():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(60):
        tau, beta, omega = rng.uniform(0.01, 0.3), rng.uniform(0.0, 0.6), rng.uniform(0.02, 0.5)
        eta = rng.uniform(0.01, 1.0) / tau
        lag = largest_stable_lag(tau, beta, eta, omega)
        if lag < 40:
            assert lag == lag_by_roots(tau, beta, eta, omega)
        else:
            assert lag_by_roots(tau, beta, eta, omega, limit=40) == math.inf
        seen.add(-1 if lag < 0 else math.inf if lag == math.inf else 0)
    assert seen == {-1, 0, math.inf}


def test_without_rotation_or_with_more_damping_than_rotation_every_lag_is_stable():
    assert largest_stable_lag(0.05, 0.0, 1.0, 0.0) == math.inf
    assert largest_stable_lag_first_order(0.05, 0.0, 1.0, 0.0) == math.inf
    assert largest_stable_lag(0.05, 1.0, 1.0, RPS_OMEGA) == math.inf
    assert largest_stable_lag(0.3, 0.0, 1.0, RPS_OMEGA) == math.inf
    assert largest_stable_step(0.3, 0.0, 1000, RPS_OMEGA) == pytest.approx(1 / 0.3)


def test_a_step_that_is_too_large_is_stable_at_no_lag():
    """Without lag the roots are 1 - eta tau + i eta omega: stable for eta < 2 tau / (tau^2 + omega^2)."""
    edge = 2 * 0.05 / (0.05**2 + RPS_OMEGA**2)
    assert largest_stable_lag(0.05, 0.0, edge * 1.001, RPS_OMEGA) == -1
    assert largest_stable_lag(0.05, 0.0, edge * 0.999, RPS_OMEGA) == 0
    assert largest_stable_step(0.05, 0.0, 0, RPS_OMEGA) == pytest.approx(edge, rel=1e-12)


@pytest.mark.parametrize("lag", [0, 1, 5, 40])
@pytest.mark.parametrize("beta", [0.0, 0.125, 0.5])
def test_the_largest_stable_step_is_the_inverse_of_the_largest_stable_lag(lag, beta):
    eta = largest_stable_step(0.05, beta, lag, RPS_OMEGA)
    assert largest_stable_lag(0.05, beta, eta * (1 - 1e-6), RPS_OMEGA) == lag
    assert largest_stable_lag(0.05, beta, eta * (1 + 1e-6), RPS_OMEGA) == lag - 1


def test_a_mean_lag_between_two_whole_ones_has_a_step_between_theirs():
    steps = [largest_stable_step(0.05, 0.0, lag, RPS_OMEGA) for lag in (5, 5.5, 6)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[1] > steps[2]


def growth(game: np.ndarray, tau: float, beta: float, eta: float, lag: int) -> float:
    """The non-linear iteration from 1e-4 beside its fixed point: the late distance to it over an earlier one."""
    fixed_point = nash_md_fixed_point(game, UNIFORM, tau, beta)
    start = fixed_point + np.array([1e-4, -1e-4, 0.0])
    iterates = constant_descent(game, UNIFORM, tau, 4000, eta, beta=beta, lag=lag, start=start)
    distances = np.abs(iterates - fixed_point).max(axis=1)
    return distances[3500:].max() / distances[1000:1500].max()


@pytest.mark.parametrize(
    ("tau", "eta", "beta", "lag"),
    [(0.05, 0.1, 0.0, 5), (0.05, 0.1, 0.125, 7), (0.05, 0.2, 0.0, 2), (0.1, 0.2, 0.0, 5)],
)
def test_the_game_itself_settles_at_the_largest_stable_lag_and_not_beyond(tau, eta, beta, lag):
    assert largest_stable_lag(tau, beta, eta, RPS_OMEGA) == lag
    assert growth(GAMES["rps"], tau, beta, eta, lag) < 0.5
    assert growth(GAMES["rps"], tau, beta, eta, lag + 1) > 1.1


def test_the_law_holds_at_an_equilibrium_that_is_not_uniform():
    """Weighted stakes and a mixture: what decides is the rotation at the mixture, the opponent that is played."""
    game, tau, beta, eta = GAMES["wrps"], 0.02, 0.25, 0.5
    mixture = regularised_nash(game, UNIFORM, tau / (1 - beta))
    lag = int(largest_stable_lag(tau, beta, eta, rotation_frequency(game, mixture)))
    assert 2 <= lag <= 20
    assert growth(game, tau, beta, eta, lag) < 0.8
    assert growth(game, tau, beta, eta, lag + 1) > 1.25


# Estimates from samples


def enumerated(k: int) -> np.ndarray:
    """Judgements [3^k, k, k] of all equally likely ways to draw k actions of rock, paper, scissors."""
    draws = np.array(list(itertools.product(range(3), repeat=k)))
    return GAMES["rps"][draws[:, :, None], draws[:, None, :]]


@pytest.mark.parametrize("k", [3, 4, 6])
def test_the_rotation_is_unbiased_at_any_number_of_completions(k):
    """The mean over all equally likely samples is the policy's own, exactly: one mode, omega = 0.288675."""
    assert math.sqrt(rotations(enumerated(k)).mean()) == pytest.approx(RPS_OMEGA, abs=1e-14)


def test_the_rotation_adds_up_the_modes():
    """All draws of 3 from a random game of 6 actions, against sum of eigenvalues^2 / 2."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(6, 6))
    P = 1 / (1 + np.exp(scores.T - scores))
    draws = np.array(list(itertools.product(range(6), repeat=3)))
    eigenvalues = np.linalg.eigvals((P - 0.5) @ (np.eye(6) / 6 - 1 / 36))
    total = math.sqrt((eigenvalues.imag**2).sum() / 2)
    assert math.sqrt(rotations(P[draws[:, :, None], draws[:, None, :]]).mean()) == pytest.approx(total, rel=1e-12)
    assert total > rotation_frequency(P, np.full(6, 1 / 6))


def sampled(games: np.ndarray, policies: np.ndarray, k: int, rng) -> np.ndarray:
    """Judgements [g, k, k] of k actions of each prompt's policy."""
    draws = np.stack([rng.choice(len(policy), size=k, p=policy) for policy in policies])
    return np.stack([game[draw[:, None], draw] for game, draw in zip(games, draws, strict=True)])


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
@pytest.mark.parametrize(("k", "shortest"), [(4, 4), (6, 7), (8, 8), (16, 9)])
def test_the_fastest_tenth_of_the_prompts_decides(k, shortest, share):
    """A tenth, a quarter or all of 256 prompts are rock, paper, scissors, the rest flat: stable up to lag 11. The mean
    over prompts was told: 153 for a tenth, 51 for a quarter."""
    rng = np.random.default_rng(k)
    cycling = np.arange(256) < round(share * 256)
    games = np.where(cycling[:, None, None], GAMES["rps"], 0.5)
    policies = np.full((256, 3), 1 / 3)
    omegas = [fastest_rotation(sampled(games, policies, k, rng), range(256)) for _ in range(4)]
    assert shortest <= largest_stable_lag(0.05, 0.0, 0.05, float(np.mean(omegas))) <= 12


@pytest.mark.parametrize("k", [6, 8, 12, 16])
def test_the_noise_of_the_estimates_is_taken_out_of_the_fastest_tenth(k):
    """Random games of six actions, whose own tenth is known. The largest estimates alone are up to a fifth too high."""
    rng = np.random.default_rng(k)
    ratios = []
    for _ in range(6):
        scores = rng.normal(size=(256, 6, 6)) * rng.gamma(1.0, 1.0, size=(256, 1, 1))
        games = 1 / (1 + np.exp(scores.transpose(0, 2, 1) - scores))
        policies = rng.dirichlet(np.ones(6), size=256)
        own = [
            0.5 * (np.square(np.linalg.eigvals((P - 0.5) @ (np.diag(pi) - np.outer(pi, pi))).imag)).sum()
            for P, pi in zip(games, policies, strict=True)
        ]
        truth = math.sqrt(np.sort(own)[-26:].mean())
        ratios.append(fastest_rotation(sampled(games, policies, k, rng), range(256)) / truth)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)


def test_games_of_one_prompt_are_averaged():
    """Two prompts, one of them twice with estimates that are 1/2 the cycle's on average."""
    games = np.stack([GAMES["rps"], np.full((3, 3), 0.5), np.full((3, 3), 0.5)])
    one = rotations(GAMES["rps"][None])[0]
    assert fastest_rotation(games, [7, 7, 3]) == pytest.approx(math.sqrt(one / 2))
    assert fastest_rotation(games, [7, 2, 3]) == pytest.approx(math.sqrt(one))


def test_the_step_size_of_an_exact_step_is_measured_exactly():
    """Two prompts with normalisers of their own; completions are actions of the tabular policy."""
    game, tau, eta = GAMES["wrps"], 0.1, 0.3
    change, advantage = [], []
    for start in (MU, np.array([0.2, 0.3, 0.5])):
        before, after = constant_descent(game, MU, tau, 1, eta, start=start)
        change.append(np.log(after / before))
        advantage.append(game @ before - tau * np.log(before / MU))
    assert step_size_estimate(change, advantage) == pytest.approx(eta, rel=1e-12)


def test_the_step_size_is_the_least_squares_slope_with_a_constant_per_prompt():
    rng = np.random.default_rng(4)
    change, advantage = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    design = np.column_stack([advantage.ravel(), np.kron(np.eye(3), np.ones((5, 1)))])
    slope = np.linalg.lstsq(design, change.ravel(), rcond=None)[0][0]
    assert step_size_estimate(change, advantage) == pytest.approx(slope, rel=1e-12)


def test_an_advantage_that_never_varies_within_a_prompt_tells_no_step_size():
    assert math.isnan(step_size_estimate([[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.1], [0.3, 0.3]]))
    assert math.isnan(step_size_estimate(np.zeros((0, 4)), np.zeros((0, 4))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_stable_lag(0.0, 0.0, 0.1, 0.1), "tau is 0.0; it must be finite and > 0"),
        (lambda: largest_stable_lag(0.1, -0.1, 0.1, 0.1), r"beta is -0.1.*\[0, 1\]"),
        (lambda: largest_stable_lag(0.1, 0.0, 11.0, 0.1), "step_size is 11.0; it must be > 0 and at most 1 / tau = 10"),
        (lambda: largest_stable_lag(0.1, 0.0, 0.0, 0.1), r"step_size is 0\.0"),
        (lambda: largest_stable_lag(0.1, 0.0, 0.1, -0.1), "omega is -0.1; it must be finite and >= 0"),
        (lambda: largest_stable_step(0.1, 0.0, -1, 0.1), "lag is -1; it counts learner steps"),
        (lambda: rotations(GAMES["rps"]), r"shape \(3, 3\); they need \[prompts, k, k\]"),
        (lambda: rotations(np.full((1, 3, 3), 0.7)), r"P \+ P\^T must be 1"),
        (lambda: rotations(np.full((1, 2, 2), 0.5)), "k >= 3"),
        (lambda: step_size_estimate([1.0], [1.0]), r"change has shape \(1,\) and advantage \(1,\); both need"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# The anchor


@pytest.mark.parametrize("lag", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("omega", [0.1, 1 / (2 * math.sqrt(3)), 1 / math.pi])
def test_with_the_default_anchor_every_mode_shrinks_at_every_lag(lag, omega):
    """kappa .32 and T = 2 (d + 1): 1 / pi is the fastest rotation known of any game. Without an anchor lag 64 grows."""
    anchor = (0.32, max(8, 2 * (lag + 1)))
    for step_size in (0.05, 0.1, 0.3):
        assert stability.anchored_growth(0.05, step_size, lag, omega, anchor) < 1.0
    assert stability.anchored_growth(0.05, 0.3, 64, omega, (0.0, 8)) > 1.0


def test_the_growth_with_an_anchor_is_that_of_the_iterates():
    """From the delayed step itself, on rock-paper-scissors near its equilibrium: omega is 1 / (2 sqrt 3)."""
    near, tau, step_size, lag = np.array([0.334, 0.333, 0.333]), 0.05, 0.05, 5
    for anchor in ((0.0, 20.0), (0.1, 20.0), (0.32, 12.0)):
        iterates = anchored_descent(GAMES["rps"], UNIFORM, tau, step_size, 1200, lag, near, anchor)
        away = np.linalg.norm(iterates - 1 / 3, axis=1)
        # Of two points as far apart as the mode goes round nearly whole times.
        measured = (away[1000:1200].max() / away[700:900].max()) ** (1 / 300)
        expected = stability.anchored_growth(tau, step_size, lag, 1 / (2 * math.sqrt(3)), anchor)
        assert measured == pytest.approx(expected, abs=3e-4)


def test_stale_opponents_cycle_without_an_anchor_and_settle_with_one():
    """Rock-paper-scissors, tau .05, eta .3, lag 64, horizon 128: the last iterates."""
    settled = regularised_nash(GAMES["rps"], MU, 0.05)
    off = {}
    for name, anchor in (("none", (0.0, math.inf)), ("anchor", (0.32, 128.0))):
        iterates = anchored_descent(GAMES["rps"], MU, 0.05, 0.3, 8000, 64, MU, anchor)
        off[name] = np.abs(iterates[-1] - settled).sum()
    assert off["none"] > 0.3
    assert off["anchor"] < 1e-9


@pytest.mark.parametrize("horizon", [1.0, 2.0, 18.0, 60.0])
@pytest.mark.parametrize("weight", [0.0, 0.05, 0.32])
def test_the_largest_lag_with_an_anchor_is_where_modes_begin_to_grow(weight, horizon):
    """Lag by lag from the roots; steps from small ones to those that overshoot."""
    random, found = np.random.default_rng(0), []
    for _ in range(12):
        tau, step_size = 10.0 ** random.uniform(-2.5, -0.5), 10.0 ** random.uniform(-1.5, 0.3)
        omega = random.uniform(0.0, 0.4)
        lag = stability.largest_anchored_lag(tau, 0.125, step_size, omega, (weight, horizon))
        overshoots = step_size * (tau + weight) > 1.0
        grows = [
            overshoots or stability.anchored_growth(tau, step_size, d, 0.875 * omega, (weight, horizon)) >= 1.0
            for d in range(24)
        ]
        assert grows == [d > lag for d in range(24)]
        found.append(lag)
    assert len(set(found)) > 3


def test_a_game_that_does_not_turn_bears_the_largest_lag_that_is_told():
    assert stability.largest_anchored_lag(0.05, 0.0, 0.1, 0.0, (0.32, 18.0)) == stability.MOST_LAG
    assert stability.largest_anchored_lag(0.05, 0.0, 0.1, 0.04, (0.32, 18.0)) == stability.MOST_LAG


@pytest.mark.parametrize("omega", [0.2, 0.28])
def test_the_largest_step_with_an_anchor_is_where_modes_begin_to_grow(omega):
    tau, beta, anchor = 0.05, 0.0, (0.2, 16.0)
    assert stability.largest_anchored_lag(tau, beta, 5.0, omega, anchor) == -1.0  # eta (tau + kappa) > 1
    step = stability.largest_anchored_step(tau, beta, 40, omega, anchor)
    assert stability.anchored_growth(tau, 0.999 * step, 40, omega, anchor) < 1.0
    assert stability.anchored_growth(tau, 1.01 * step, 40, omega, anchor) >= 1.0
