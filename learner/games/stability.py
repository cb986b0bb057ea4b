"""The staleness limit: the largest lag of an opponent at which mirror descent on a preference game converges.

Let pi be the equilibrium of the regularised game. Near it, `learner.games.tabular.online_mirror_descent` against a
mixture that is d learner steps old,

    z_{t+1} = (1 - eta tau) z_t + eta tau log mu + eta P mixture(z_{t-d}),

splits into modes that rotate with frequencies omega: the eigenvalues of (P - 1/2)(diag(pi) - pi pi^T) are +- i omega.
The mixture moves 1 - beta times as far as the policy, because mu has weight beta in it. So a mode grows if a root l of

    l = 1 - eta tau + i eta omega (1 - beta) l^-d

is outside the unit circle, and shrinks if all are inside. Lags count learner steps; omega is a probability, eta is in
nats per unit of probability and step, tau in probability per nat. Pure NumPy; must not depend on runs.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from actors.errors import UsageError
from learner.games.tabular import check_beta, check_tau, checked_game

MOST_LAG = 1024
"""Largest lag (learner steps) that is tried with an anchor."""
HALVINGS = 8
"""Ways to halve the completions of a game, drawn with a fixed seed."""


def _check(tau: float, beta: float, omega: float) -> None:
    check_tau(tau)
    check_beta(beta)
    if not (math.isfinite(omega) and omega >= 0.0):
        raise UsageError(f"omega is {omega}; it must be finite and >= 0")


def rotations(preferences: ArrayLike) -> np.ndarray:
    """Estimate for each of g prompts the sum of all modes' omega^2, [g]; unbiased, so below 0 at times.

    preferences [g, k, k], k >= 3: [p, i, j] is the probability that completion i of prompt p is preferred to its
    completion j, all sampled from the policy. Labels drawn as 0 or 1 add rotation of their own. The root of the sum is
    an upper bound of omega, and equals it if there is one cycle (three classes of responses, say).

    With A = P - 1/2 the sum of the modes' 2 omega^2 is E[A_ij^2] - 2 E[A_ij A_il] over independent i, j, l from the
    policy: two U-statistics.
    """
    games = np.asarray(preferences, dtype=np.float64)
    if games.ndim != 3 or games.shape[0] < 1 or games.shape[1] < 3:
        raise UsageError(f"preferences have shape {games.shape}; they need [prompts, k, k] with k >= 3 and a prompt")
    return _rotations_of(np.stack([checked_game(game) for game in games]))


def _rotations_of(games: np.ndarray) -> np.ndarray:
    A, k = games - 0.5, games.shape[1]
    squares, powers = (A * A).sum(axis=(1, 2)), (A.sum(axis=2) ** 2).sum(axis=1)
    return 0.5 * (squares - 2.0 * (powers - squares) / (k - 2)) / (k * (k - 1))


def fastest_rotation(
    preferences: ArrayLike,
    prompts: ArrayLike,
    share: float = 0.1,
    measure: Callable[[np.ndarray], np.ndarray] | None = None,
) -> float:
    """Estimate sqrt of the mean sum of omega^2 over the `share` of prompts where it is largest.

    preferences [g, k, k] as in `rotations`, which `measure` replaces; prompts [g] number them, and estimates of one
    prompt are averaged. The largest of noisy estimates are too large on average. Chosen by one half of a game's
    completions and estimated by the other, they are too small, since the choice errs. The result has the mean of both,
    over several ways to halve; the first alone for k < 6, whose halves are no games.
    """
    games = np.asarray(preferences, dtype=np.float64)
    _, number = np.unique(np.asarray(prompts), return_inverse=True)
    counts = np.bincount(number)
    chosen = math.ceil(share * len(counts))

    def largest(choose: np.ndarray, estimate: np.ndarray) -> float:
        by, of = (np.bincount(number, weights=each) / counts for each in (choose, estimate))
        return float(of[np.argsort(-by, kind="stable")[:chosen]].mean())

    whole = rotations(games) if measure is None else measure(games)
    measure = _rotations_of if measure is None else measure
    square, k = largest(whole, whole), games.shape[1]
    if k >= 6:
        random = np.random.default_rng(0)
        apart = []
        for _ in range(HALVINGS):
            one, other = np.array_split(random.permutation(k), 2)
            first, second = (measure(games[:, half[:, None], half]) for half in (one, other))
            apart += [largest(first, second), largest(second, first)]
        square = 0.5 * (square + float(np.mean(apart)))
    return math.sqrt(max(0.0, square))


def _critical_lag(tau: float, beta: float, step_size: float, omega: float) -> float:
    """Return the real d at which a root first reaches the unit circle: inf if none does, -1 if d would be negative.

    On the circle l = e^{i theta} requires |l - a| = c with a = 1 - eta tau, c = eta omega (1 - beta), which has a
    solution only if c >= 1 - a, and d theta + arg(l - a) = pi / 2. Roots leave the disc as d grows and never return.
    """
    a, c = 1.0 - step_size * tau, step_size * omega * (1.0 - beta)
    # Not c <= 1 - a: 1 - a is rounded.
    if omega * (1.0 - beta) <= tau:
        return math.inf
    if a * a + c * c >= 1.0:
        return -1.0
    theta = math.acos(min(1.0, (1.0 + a * a - c * c) / (2.0 * a)))
    phase = math.atan2(math.sin(theta), math.cos(theta) - a)
    return (0.5 * math.pi - phase) / theta if theta > 0.0 else math.inf


def largest_stable_lag(tau: float, beta: float, step_size: float, omega: float) -> float:
    """Return the largest whole lag d (learner steps) whose roots l are all inside the unit circle.

    inf if every lag is stable, as for omega (1 - beta) <= tau; -1 if not even d = 0 is. step_size is eta <= 1 / tau.
    """
    _check(tau, beta, omega)
    if not 0.0 < step_size * tau <= 1.0:
        raise UsageError(f"step_size is {step_size}; it must be > 0 and at most 1 / tau = {1.0 / tau:g}")
    critical = _critical_lag(tau, beta, step_size, omega)
    return critical if math.isinf(critical) else float(max(math.ceil(critical) - 1, -1))


def largest_stable_step(tau: float, beta: float, lag: float, omega: float) -> float:
    """Return the step size eta below which opponents `lag` learner steps old are stable, at most 1 / tau.

    Found from the roots, by bisection to machine precision. `lag` >= 0 may be a mean, so not a whole number.
    """
    _check(tau, beta, omega)
    if not (math.isfinite(lag) and lag >= 0.0):
        raise UsageError(f"lag is {lag}; it counts learner steps and must be finite and >= 0")
    low, high = 0.0, 1.0 / tau
    if _critical_lag(tau, beta, high, omega) > lag:
        return high
    while low < (middle := 0.5 * (low + high)) < high:
        if _critical_lag(tau, beta, middle, omega) > lag:
            low = middle
        else:
            high = middle
    return low


def step_size_estimate(change: ArrayLike, advantage: ArrayLike) -> float:
    """Estimate eta of a training step: the slope of the policy's change on the advantage; nan if that never varies.

    change [g, k]: log pi_{t+1}(y) - log pi_t(y) (nats) of k completions of each of g prompts. advantage [g, k]:
    P(y > opponent) - tau log(pi_t / mu)(y). Least squares with one intercept per prompt, which is the change of the
    policy's normalisation there. Exact for the exact step of a tabular policy.
    """
    y, x = np.asarray(change, dtype=np.float64), np.asarray(advantage, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 2:
        raise UsageError(f"change has shape {y.shape} and advantage {x.shape}; both need [prompts, completions]")
    if not y.size:
        return math.nan
    y, x = y - y.mean(axis=1, keepdims=True), x - x.mean(axis=1, keepdims=True)
    variation = float((x * x).sum())
    return float((x * y).sum()) / variation if variation > 1e-24 * x.size else math.nan


def anchored_growth(tau: float, step_size: float, lag: int, omega: float, anchor: tuple[float, float]) -> float:
    """Return the factor by which the slowest mode of `online_mirror_descent` with an anchor changes per step.

    Below 1 it shrinks. With u the slow average, kappa its weight and T its horizon, it is the largest root |l| of

        l = 1 - eta (tau + kappa) + eta kappa l / (1 + T (l - 1)) + i eta omega l^-d,

    an eigenvalue of the step on (z_t, ..., z_{t-d}, u_t). `omega` comes with the factor 1 - beta of a mixture.
    """
    _check(tau, 0.0, omega)
    kappa, horizon = anchor
    step = np.zeros((lag + 2, lag + 2), dtype=complex)
    step[0, 0] = 1.0 - step_size * (tau + kappa)
    step[0, lag] += 1j * step_size * omega
    step[0, -1] = step_size * kappa
    step[1 : lag + 1, :lag] += np.eye(lag)
    step[-1] = step[0] / horizon
    step[-1, -1] += 1.0 - 1.0 / horizon
    return float(np.abs(np.linalg.eigvals(step)).max())


def largest_anchored_lag(tau: float, beta: float, step_size: float, omega: float, anchor: tuple[float, float]) -> float:
    """Return the largest lag d (learner steps) up to which modes shrink with an anchor.

    At most `MOST_LAG`; -1 if not even d = 0 is stable. Larger lags than the result are taken to be unstable.
    """
    pull = step_size * (tau + anchor[0])
    if pull > 1.0 or anchored_growth(tau, step_size, 0, omega * (1.0 - beta), anchor) >= 1.0:
        return -1.0
    critical = _critical_anchored_lag(pull, step_size * omega * (1.0 - beta), step_size * anchor[0], anchor[1])
    return float(min(MOST_LAG, math.ceil(critical) - 1)) if math.isfinite(critical) else float(MOST_LAG)


def _critical_anchored_lag(pull: float, turn: float, slow: float, horizon: float) -> float:
    """Return the real d >= 0 at which a root of `anchored_growth` first is on the unit circle; inf if none ever is.

    With pull = eta (tau + kappa), turn = eta omega and slow = eta kappa a root solves F(l) = i turn l^-d for

        F(l) = l - 1 + pull - slow l / (1 + T (l - 1)).

    On the circle l = e^{i theta} that is |F| = turn, a quadratic equation in cos theta because F has real coefficients,
    and d theta + arg F = pi / 2 but for whole turns.
    """
    below = np.array([horizon, 1.0 - horizon])
    above = np.polymul([1.0, pull - 1.0], below) - [0.0, slow, 0.0]
    (p, q, r), (s, t) = above, below
    squared = turn * turn
    equation = [
        4.0 * p * r,
        2.0 * q * (p + r) - 2.0 * s * t * squared,
        p * p + q * q + r * r - 2.0 * p * r - squared * (s * s + t * t),
    ]
    lags = [math.inf]
    for cosine in np.roots(equation):
        if abs(cosine.imag) < 1e-12 and abs(cosine.real) < 1.0:
            for theta in (math.acos(cosine.real), -math.acos(cosine.real)):
                root = np.exp(1j * theta)
                phase = float(np.angle(np.polyval(above, root) / np.polyval(below, root)))
                lags.append((0.5 * math.pi - phase) / theta % (2.0 * math.pi / abs(theta)))
    return min(lags)


def largest_anchored_step(tau: float, beta: float, lag: int, omega: float, anchor: tuple[float, float]) -> float:
    """Return the step size below which opponents `lag` learner steps old are stable, at most 1 / (tau + kappa)."""
    most = 1.0 / (tau + anchor[0])

    def stable(step_size: float) -> bool:
        return anchored_growth(tau, step_size, lag, omega * (1.0 - beta), anchor) < 1.0

    low, high = (most, most) if stable(most) else (0.0, most)
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low
