"""Tabular Nash learning against published definitions, known equilibria to 12 digits, and slow independent paths."""

import itertools
import math

import numpy as np
import pytest

from actors.errors import RunError, UsageError
from learner.games import tabular
from learner.games.tabular import (
    GAMES,
    bradley_terry,
    exploitability,
    kl,
    nash_md,
    nash_md_fixed_point,
    online_dpo_fixed_point,
    regularised_best_response,
    regularised_gap,
    regularised_nash,
)
from tests.learner.games import theory
from tests.learner.games.theory import constant_descent, offline_dpo_fixed_point

MU = np.array([0.7, 0.2, 0.1])
UNIFORM = np.full(3, 1 / 3)
RPS, WRPS, BT = GAMES["rps"], GAMES["wrps"], GAMES["bradley_terry"]


def random_game(n: int, seed: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, n)) * spread
    P = 1.0 / (1.0 + np.exp(scores.T - scores))
    mu = rng.dirichlet(np.ones(n)) + 1e-9
    return P, mu / mu.sum()


# Metrics


def test_named_games_have_the_raw_equilibria_that_they_are_known_for():
    """At a raw equilibrium with full support no action wins or loses: P pi = 1/2 everywhere."""
    for name, pi in [
        ("rps", UNIFORM),
        ("dice", UNIFORM),
        ("wrps", np.array([2, 1, 4]) / 7),
        ("munos", np.array([1 / 3 + 0.05, 1 / 3 + 0.05, 1 / 3 - 0.1])),
    ]:
        np.testing.assert_allclose(GAMES[name] @ pi, 0.5, atol=1e-15)
    assert exploitability(GAMES["rps_dominated"], [1 / 3, 1 / 3, 1 / 3, 0, 0]) == pytest.approx(0.0, abs=1e-15)
    assert theory.best_response(BT, UNIFORM) == 1


def test_dice_are_the_dice():
    dice = [(2, 4, 9), (1, 6, 8), (3, 5, 7)]
    for i, j in itertools.product(range(3), range(3)):
        wins = sum((a > b) + 0.5 * (a == b) for a in dice[i] for b in dice[j]) / 9
        assert GAMES["dice"][i, j] == pytest.approx(wins if i != j else 0.5)


def test_exploitability_and_nash_conv_of_rock_paper_scissors_by_hand():
    """Against (.5, .3, .2) the third action beats the first and loses to the second: .5 + .2/2 = .6."""
    pi = [0.5, 0.3, 0.2]
    assert theory.best_response(RPS, pi) == 2
    assert exploitability(RPS, pi) == pytest.approx(0.1, abs=1e-15)
    assert theory.nash_conv(RPS, pi) == pytest.approx(0.2, abs=1e-15)


def test_the_regularised_gap_is_the_divergence_to_the_regularised_best_response():
    for pi in (np.array([0.5, 0.3, 0.2]), np.array([0.98, 0.01, 0.01]), MU):
        for P in (RPS, WRPS, BT):
            response = regularised_best_response(P, pi, MU, 0.1)
            assert regularised_gap(P, pi, MU, 0.1) == pytest.approx(2 * 0.1 * kl(pi, response), rel=1e-12)
    assert regularised_gap(RPS, [0.5, 0.3, 0.2], MU, 0.1) == pytest.approx(0.095535104364, abs=1e-12)


def test_nobody_on_a_grid_gains_more_than_the_regularised_gap_says():
    """The maximum of V(., pi) by search over 5,000 policies, V the regularised preference."""
    pi, tau = np.array([0.5, 0.3, 0.2]), 0.1
    grid = [(i / 100, j / 100, 1 - (i + j) / 100) for i in range(1, 99) for j in range(1, 100 - i)]
    value = max(p @ RPS @ pi - tau * kl(p, MU) + tau * kl(pi, MU) for p in np.array(grid))
    gap = regularised_gap(RPS, pi, MU, tau)
    assert gap - 1e-3 < 2 * (value - 0.5) <= gap


def test_geometric_mixture_by_hand():
    np.testing.assert_allclose(theory.geometric_mixture([0.8, 0.2], [0.2, 0.8], 0.5), 0.5)
    np.testing.assert_allclose(
        theory.geometric_mixture([0.5, 0.3, 0.2], MU, 0.125),
        [0.526717396377, 0.288039136950, 0.185243466672],
        atol=1e-12,
    )
    np.testing.assert_allclose(theory.geometric_mixture([1.0, 0.0, 0.0], MU, 1.0), MU)
    np.testing.assert_allclose(theory.geometric_mixture([0.0, 0.5, 0.5], UNIFORM, 0.5), [0.0, 0.5, 0.5])


# Equilibria

EQUILIBRIA = [
    ("rps", MU, 0.1, (0.417154297805, 0.211330397515, 0.371515304681), 0.102911950, 0.283300373),
    ("rps", MU, 0.05, (0.366630353319, 0.268643213512, 0.364726433170), 0.048993570, 0.314105990),
    ("rps", MU, 0.01, (0.338377986030, 0.320302903846, 0.341319110124), 0.009037541, 0.323893551),
    ("dice", MU, 0.05, (0.680876197160, 0.123093196957, 0.196030605882), 0.030987944, 0.053341724),
    ("wrps", UNIFORM, 0.1, (0.433848610100, 0.148184918879, 0.417966471020), 0.017477320, 0.088779454),
    ("wrps", MU, 0.1, (0.733396695793, 0.021361986408, 0.245241317799), 0.069067272, 0.206399787),
    ("wrps", MU, 0.05, (0.549229007562, 0.021458608557, 0.429312383881), 0.050631179, 0.444391055),
    ("bradley_terry", UNIFORM, 0.1, (0.016709156046, 0.943564139158, 0.039726704796), 0.019323978, 0.847281576),
    ("bradley_terry", MU, 0.1, (0.058093073186, 0.921808073416, 0.020098853398), 0.029632319, 1.231696482),
]


@pytest.mark.parametrize(("game", "mu", "tau", "pi", "exploited", "divergence"), EQUILIBRIA)
def test_regularised_equilibria_to_every_known_digit(game, mu, tau, pi, exploited, divergence):
    found = regularised_nash(GAMES[game], mu, tau)
    np.testing.assert_allclose(found, pi, atol=1e-11)
    assert exploitability(GAMES[game], found) == pytest.approx(exploited, abs=1e-9)
    assert kl(found, mu) == pytest.approx(divergence, abs=1e-9)
    assert regularised_gap(GAMES[game], found, mu, tau) == pytest.approx(0.0, abs=1e-14)


def test_a_symmetric_cycle_with_a_uniform_reference_keeps_the_uniform_policy_at_every_temperature():
    for game, tau in itertools.product(("rps", "dice"), (0.001, 0.1, 10.0)):
        np.testing.assert_allclose(regularised_nash(GAMES[game], UNIFORM, tau), UNIFORM, atol=1e-14)


@pytest.mark.parametrize("n", [2, 40, 261])
@pytest.mark.parametrize("tau", [0.02, 0.05, 1.0])
def test_random_games_are_solved_to_the_promised_residual(n, tau):
    for spread in (0.5, 30.0):
        P, mu = random_game(n, seed=n, spread=spread)
        pi = regularised_nash(P, mu, tau)
        logits = np.log(mu) + P @ pi / tau
        assert np.abs(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() - pi).sum() <= 1e-13


def test_newton_finds_what_slow_self_play_converges_to():
    P, mu = random_game(20, seed=1)
    slow = constant_descent(P, mu, 0.1, 4000, 0.2)[-1]
    np.testing.assert_allclose(regularised_nash(P, mu, 0.1), slow, atol=1e-12)


def test_the_equilibrium_s_exploitability_is_bounded_by_the_temperature():
    """e(pi*) <= tau (log 1/mu(best response) - KL(pi* || mu)), from V(y, pi*) <= 1/2."""
    for game, tau in itertools.product(("rps", "wrps", "bradley_terry"), (0.05, 0.2)):
        pi = regularised_nash(GAMES[game], MU, tau)
        answer = theory.best_response(GAMES[game], pi)
        assert 0 < exploitability(GAMES[game], pi) <= tau * (-math.log(MU[answer]) - kl(pi, MU)) + 1e-15


@pytest.mark.parametrize("game", ["rps", "wrps", "munos", "bradley_terry"])
@pytest.mark.parametrize("beta", [0.125, 0.5])
def test_the_mixture_of_nash_md_s_fixed_point_is_the_equilibrium_at_a_higher_temperature(game, beta):
    """The fixed point by a thousand damped steps of its own equation, without any solver."""
    P, tau = GAMES[game], 0.1
    pi = constant_descent(P, MU, tau, 4000, 0.5, beta=beta)[-1]
    np.testing.assert_allclose(nash_md_fixed_point(P, MU, tau, beta), pi, atol=1e-12)
    mixture = theory.geometric_mixture(pi, MU, beta)
    np.testing.assert_allclose(mixture, regularised_nash(P, MU, tau / (1 - beta)), atol=1e-12)
    np.testing.assert_allclose(regularised_best_response(P, mixture, MU, tau), pi, atol=1e-12)


def test_the_ends_of_beta_are_the_equilibrium_and_the_best_response_to_the_reference():
    np.testing.assert_allclose(nash_md_fixed_point(RPS, MU, 0.1, 0.0), EQUILIBRIA[0][3], atol=1e-11)
    np.testing.assert_allclose(
        nash_md_fixed_point(RPS, MU, 0.1, 1.0), regularised_best_response(RPS, MU, MU, 0.1), atol=1e-15
    )


# What each algorithm converges to: mu = (.7, .2, .1), tau = .1, as (policy, exploitability or None)

SOFT = {name: np.clip(P, 0.001, 0.999) for name, P in GAMES.items()}
"""For Bradley-Terry fits, which certain preferences would send to infinity."""

FIXED_POINTS = [
    ("rps", "nash_md .125", (0.38707, 0.18830, 0.42463), None),
    ("rps", "nash_md .5", (0.26422, 0.06445, 0.67134), 0.2036),
    ("rps", "nash_md 1", (0.48445, 0.00418, 0.51137), 0.2401),
    ("rps", "reward", (0.00035, 0.00000, 0.99965), 0.4997),
    ("rps", "online_dpo .1", (0.34749, 0.30071, 0.35179), 0.0234),
    ("rps", "offline_dpo .1", (0.00035, 0.00000, 0.99965), 0.4997),
    ("rps", "online_dpo .5", None, 0.1226),
    ("rps", "offline_dpo .5", None, 0.2429),
    ("wrps", "nash_md .125", (0.74067, 0.01824, 0.24109), None),
    ("wrps", "nash_md .5", (0.7788, 0.0121, 0.2091), None),
    ("wrps", "nash_md 1", (0.9039, 0.0095, 0.0866), None),
    ("wrps", "reward", (0.9756, 0.0000, 0.0244), 0.0976),
    ("wrps", "online_dpo .1", (0.3883, 0.0613, 0.5504), 0.0266),
    ("wrps", "offline_dpo .1", (0.9756, 0.0000, 0.0244), 0.0976),
    ("wrps", "online_dpo .5", None, 0.0716),
    ("wrps", "offline_dpo .5", None, 0.0876),
    ("bradley_terry", "nash_md .125", (0.0576, 0.9217, 0.0207), None),
    ("bradley_terry", "nash_md .5", (0.0554, 0.9201, 0.0245), None),
    ("bradley_terry", "nash_md 1", (0.0537, 0.9120, 0.0343), None),
    ("bradley_terry", "reward", (0.0, 1.0, 0.0), None),
    ("bradley_terry", "online_dpo .1", (0.0, 1.0, 0.0), None),
    ("bradley_terry", "offline_dpo .1", (0.0, 1.0, 0.0), None),
    ("bradley_terry", "online_dpo .5", (0.04046, 0.93642, 0.02312), None),
    ("bradley_terry", "offline_dpo .5", (0.04046, 0.93642, 0.02312), None),
]


def fixed_point(game: str, algorithm: str) -> np.ndarray:
    name, _, value = algorithm.partition(" ")
    if name == "nash_md":
        return nash_md_fixed_point(GAMES[game], MU, 0.1, float(value))
    if name == "reward":
        return tabular.rlhf_policy(bradley_terry(SOFT[game], MU), MU, 0.1)
    solver = online_dpo_fixed_point if name == "online_dpo" else offline_dpo_fixed_point
    return solver(SOFT[game], MU, float(value))


@pytest.mark.parametrize(("game", "algorithm", "pi", "exploited"), FIXED_POINTS)
def test_what_each_algorithm_converges_to(game, algorithm, pi, exploited):
    found = fixed_point(game, algorithm)
    if pi is not None:
        digits = 5 if any(round(p, 4) != p for p in pi) else 4
        np.testing.assert_allclose(found, pi, atol=0.51 * 10**-digits)
    if exploited is not None:
        assert exploitability(GAMES[game], found) == pytest.approx(exploited, abs=0.51e-4)


def test_the_biased_fixed_point_of_nash_md_keeps_a_regularised_gap():
    assert regularised_gap(RPS, nash_md_fixed_point(RPS, MU, 0.1, 0.125), MU, 0.1) == pytest.approx(0.0107, abs=5e-5)
    assert regularised_gap(WRPS, nash_md_fixed_point(WRPS, MU, 0.1, 0.125), MU, 0.1) == pytest.approx(1e-4, abs=5e-5)


def test_bradley_terry_recovers_a_reward_whatever_the_weights():
    reward = np.array([0.0, math.log(9), math.log(2)])
    for weights in (MU, UNIFORM):
        np.testing.assert_allclose(bradley_terry(BT, weights), reward - reward @ weights, atol=1e-10)


def test_bradley_terry_agrees_with_zermelo_s_iteration():
    """Minorise-maximise (Hunter 2004): gamma_i <- wins_i / sum_j n_ij / (gamma_i + gamma_j)."""
    P, mu = random_game(8, seed=3, spread=0.5)
    pairs = np.outer(mu, mu) * (1 - np.eye(8))
    gamma = np.ones(8)
    for _ in range(2000):
        gamma = (pairs * P).sum(1) / (pairs / np.add.outer(gamma, gamma)).sum(1)
    reward = np.log(gamma)
    np.testing.assert_allclose(bradley_terry(P, mu), reward - reward @ mu, atol=1e-9)


def test_online_dpo_s_fixed_point_is_offline_dpo_s_on_its_own_samples():
    for P, mu in [(SOFT["rps"], MU), (WRPS, MU), random_game(12, seed=5)]:
        pi = online_dpo_fixed_point(P, mu, 0.3)
        np.testing.assert_allclose(offline_dpo_fixed_point(P, mu, 0.3, sampler=pi), pi, atol=1e-9)


def test_dpo_forgets_the_sampler_exactly_when_preferences_are_a_reward_s():
    def shift(P: np.ndarray) -> float:
        stale = np.array([0.1, 0.1, 0.8])
        return np.abs(offline_dpo_fixed_point(P, MU, 0.5, stale) - offline_dpo_fixed_point(P, MU, 0.5)).sum()

    assert shift(BT) < 1e-9
    assert shift(SOFT["rps"]) > 0.5


def test_a_reward_that_would_be_infinite_is_refused():
    with pytest.raises(UsageError, match=r"always beat all others.*clip P"):
        bradley_terry([[0.5, 1.0], [0.0, 0.5]], [0.5, 0.5])


# Algorithms


def test_first_iterates_of_nash_md_to_12_digits():
    """The first step, where eta tau = 1, is the best response to mu."""
    iterates = nash_md(RPS, MU, 0.1, 3)
    expected = [
        MU,
        (0.484447475895, 0.004179727479, 0.511372796625),
        (0.196346274625, 0.004769548669, 0.798884176706),
        (0.128665313678, 0.019492104663, 0.851842581659),
    ]
    np.testing.assert_allclose(iterates, expected, atol=1e-12)
    np.testing.assert_allclose(iterates[1], regularised_best_response(RPS, MU, MU, 0.1), atol=1e-15)


CURVES = [
    ("rps", 0.1, (1.679e-2, 5.029e-5, 1.179e-6, 1.288e-8)),
    ("rps", 0.05, (1.252, 3.320e-2, 1.501e-5, 1.182e-8)),
    ("wrps", 0.1, (2.173e-3, 2.348e-5, 2.252e-7, 2.260e-9)),
    ("wrps", 0.05, (1.883e-2, 1.202e-4, 1.369e-6, 1.364e-8)),
]


@pytest.mark.parametrize(("game", "tau", "curve"), CURVES)
def test_nash_md_s_last_iterate_converges_on_the_known_curve_and_within_the_theorem_s_bound(game, tau, curve):
    iterates = nash_md(GAMES[game], MU, tau, 10_000)
    equilibrium = regularised_nash(GAMES[game], MU, tau)
    divergences = (equilibrium * (np.log(equilibrium) - np.log(iterates))).sum(1)
    assert divergences[[10, 100, 1000, 10_000]] == pytest.approx(curve, rel=0.02)
    T = np.arange(1, 10_001)
    assert np.all(divergences[1:] <= 8 / (tau**2 * (T + 1)))


def test_a_hundred_thousand_steps_of_nash_md():
    equilibrium = regularised_nash(WRPS, MU, 0.1)
    assert kl(equilibrium, nash_md(WRPS, MU, 0.1, 100_000)[-1]) == pytest.approx(2.261e-11, rel=0.02)


def test_convergence_need_not_be_monotone():
    iterates = nash_md(RPS, MU, 0.05, 5)
    equilibrium = regularised_nash(RPS, MU, 0.05)
    assert [kl(equilibrium, iterates[t]) for t in (1, 2, 5)] == pytest.approx([2.554, 3.436, 1.594], rel=1e-3)


def test_one_step_obeys_the_theorem_s_inequality():
    """KL(pi* || pi_{t+1}) <= (1 - eta tau) KL(pi* || pi_t) + 2 eta^2, at every step of a constant step size."""
    for eta in (0.05, 0.5, 2.0):
        equilibrium = regularised_nash(RPS, MU, 0.1)
        distances = np.array([kl(equilibrium, pi) for pi in nash_md(RPS, MU, 0.1, 200, step_size=eta)])
        assert np.all(distances[1:] <= (1 - eta * 0.1) * distances[:-1] + 2 * eta**2)


def test_a_constant_step_converges_to_its_own_biased_point():
    equilibrium = regularised_nash(RPS, MU, 0.05)
    assert kl(equilibrium, nash_md(RPS, MU, 0.05, 1000, step_size=0.2)[-1]) == pytest.approx(3.27e-5, rel=0.02)
    for eta, limit in ((0.2, 3.409e-5), (1.0, 9.269e-4)):
        last = nash_md(RPS, MU, 0.05, 4000, step_size=eta)[-1]
        np.testing.assert_allclose(last, nash_md_fixed_point(RPS, MU, 0.05, eta * 0.05), atol=1e-12)
        assert kl(equilibrium, last) == pytest.approx(limit, rel=1e-3)


def test_a_constant_step_of_nash_md_is_mirror_descent_against_the_mixture():
    np.testing.assert_allclose(
        nash_md(WRPS, MU, 0.1, 50, step_size=0.7), constant_descent(WRPS, MU, 0.1, 50, 0.7, beta=0.07), atol=1e-14
    )


def test_regularised_self_play_converges_to_the_equilibrium_itself():
    equilibrium = regularised_nash(RPS, MU, 0.05)
    iterates = constant_descent(RPS, MU, 0.05, 5000, 0.2)
    assert kl(equilibrium, iterates[1000]) == pytest.approx(1.6e-8, rel=0.05)
    assert kl(equilibrium, iterates[-1]) < 1e-14


def test_extragradient_converges_to_the_equilibrium_where_self_play_diverges():
    """Self-play with exact gradients is stable for eta < 2 tau / (tau^2 + omega^2); half a step more it is not."""
    tau, eta = 0.05, 1.5 * 2 * 0.05 / (0.05**2 + 1 / 12)
    equilibrium = regularised_nash(RPS, MU, tau)
    assert kl(equilibrium, theory.extragradient(RPS, MU, tau, 2000, eta)[-1]) < 1e-14
    assert kl(equilibrium, constant_descent(RPS, MU, tau, 2000, eta)[-1]) > 0.1


def test_extragradient_s_first_step_by_hand():
    """From mu: half = softmax(log mu + eta P mu), next = softmax(log mu + eta P half)."""
    half = MU * np.exp(0.5 * RPS @ MU)
    following = MU * np.exp(0.5 * RPS @ (half / half.sum()))
    step = theory.extragradient(RPS, MU, 0.1, 1, 0.5)
    np.testing.assert_allclose(step, [MU, following / following.sum()], atol=1e-15)


def test_self_play_without_regularisation_cycles_outward_while_its_average_converges():
    iterates = constant_descent(RPS, UNIFORM, 0.0, 2000, 0.5, start=MU)
    distances = [kl(UNIFORM, iterates[t]) for t in (0, 10, 100, 500, 2000)]
    assert distances == pytest.approx([0.3243, 0.3601, 0.7742, 2.3072, 5.4748], abs=1e-4)
    assert exploitability(RPS, iterates[-1]) == pytest.approx(0.4871, abs=1e-4)
    average = tabular.running_average(iterates)
    np.testing.assert_allclose(average[:2], [MU, (MU + iterates[1]) / 2])
    assert exploitability(RPS, average[-1]) == pytest.approx(0.0074, abs=1e-4)


def test_smaller_steps_of_self_play_cycle_outward_more_slowly():
    iterates = constant_descent(RPS, UNIFORM, 0.0, 2000, 0.1, start=MU)
    distances = [kl(UNIFORM, iterates[t]) for t in (0, 100, 1000, 2000)]
    assert distances == pytest.approx([0.3243, 0.3395, 0.4925, 0.6754], abs=1e-4)
    assert exploitability(RPS, iterates.mean(0)) == pytest.approx(0.0081, abs=1e-4)


def test_a_lagging_opponent_is_the_policy_of_that_many_steps_ago():
    lagged = constant_descent(WRPS, MU, 0.1, 6, 0.4, lag=2)
    for t in range(6):
        logits = (1 - 0.04) * np.log(lagged[t]) + 0.04 * np.log(MU) + 0.4 * WRPS @ lagged[max(t - 2, 0)]
        np.testing.assert_allclose(lagged[t + 1], np.exp(logits) / np.exp(logits).sum(), atol=1e-14)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exploitability([[0.5, 0.7], [0.7, 0.5]], [0.5, 0.5]), r"P \+ P\^T must be 1.*off by up to 0.4"),
        (lambda: exploitability([[1.0]], [1.0]), r"P \+ P\^T must be 1"),
        (lambda: exploitability([[0.5, 1.5], [-0.5, 0.5]], [0.5, 0.5]), r"probabilities in \[0, 1\]"),
        (lambda: exploitability([[0.5, np.nan], [np.nan, 0.5]], [0.5, 0.5]), r"probabilities in \[0, 1\]"),
        (lambda: exploitability([[0.5, 0.5]], [0.5, 0.5]), r"P has shape \[1, 2\]; a game is a square matrix \[n, n\]"),
        (lambda: exploitability(RPS, [0.5, 0.5]), r"pi must be a distribution over the game's 3 actions"),
        (lambda: exploitability(RPS, [0.5, 0.5, 0.5]), "pi must be non-negative and sum to 1; its sum is 1.5"),
        (lambda: exploitability(RPS, [1.5, -0.5, 0.0]), "pi must be non-negative"),
        (lambda: regularised_nash(RPS, [0.5, 0.5, 0.0], 0.1), r"mu must give every action a positive.*\[2\]"),
        (lambda: regularised_nash(RPS, MU, 0.0), "tau is 0.0; it must be finite and > 0"),
        (lambda: regularised_nash(RPS, MU, math.nan), "tau is nan"),
        (lambda: nash_md_fixed_point(RPS, MU, 0.1, 1.1), r"beta is 1.1.*\[0, 1\]"),
        (lambda: nash_md(RPS, MU, 0.1, 5, step_size=11.0), "step_size is 11.0; it must be > 0 and at most 1 / tau"),
        (lambda: nash_md(RPS, MU, 0.1, -1), "steps is -1"),
        (lambda: constant_descent(RPS, MU, -0.1, 5, 0.1), "tau is -0.1; it must be finite and >= 0"),
        (lambda: constant_descent(RPS, MU, 0.1, 5, 0.1, lag=-1), "lag is -1"),
        (
            lambda: constant_descent(RPS, MU, 0.0, 5, 0.1, start=[1.0, 0.0, 0.0]),
            r"start must give every.*\[1, 2\]",
        ),
    ],
)
def test_what_is_no_game_no_policy_or_out_of_range_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_a_temperature_beyond_rounding_is_an_error_and_no_wrong_answer():
    P, mu = random_game(30, seed=2)
    with pytest.raises(RunError, match=r"residual .*tau is 1e-09: use a larger one"):
        regularised_nash(P, mu, 1e-9)
