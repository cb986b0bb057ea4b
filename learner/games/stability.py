"""How stale an opponent may be: the lag up to which mirror descent on a preference game still converges.

Near the equilibrium pi of the regularised game, the update of `learner.games.tabular.online_mirror_descent` against a
mixture that is d learner steps old,

    z_{t+1} = (1 - eta tau) z_t + eta tau log mu + eta P mixture(z_{t-d}),

splits into modes that rotate with frequencies omega: the eigenvalues of (P - 1/2)(diag(pi) - pi pi^T) are +- i omega.
The mixture's weight beta of mu divides its motion by 1 / (1 - beta), so a mode grows or shrinks as the roots l of

    l = 1 - eta tau + i eta omega (1 - beta) l^-d

lie outside or inside the unit circle. Lags are in learner steps, omega in units of probability, eta in nats per unit of
probability and step, tau in probability per nat. Pure NumPy; knows nothing of runs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from actors.errors import UsageError
from learner.games.tabular import checked_game, checked_policy


def _checked(tau: float, beta: float, omega: float) -> None:
    if not (math.isfinite(tau) and tau > 0.0):
        raise UsageError(f"tau is {tau}; it must be finite and > 0")
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"beta is {beta}; the weight of mu in the mixture must be in [0, 1]")
    if not (math.isfinite(omega) and omega >= 0.0):
        raise UsageError(f"omega is {omega}; it must be finite and >= 0")


def _checked_step(step_size: float, tau: float) -> None:
    if not 0.0 < step_size * tau <= 1.0:
        raise UsageError(f"step_size is {step_size}; it must be > 0 and at most 1 / tau = {1.0 / tau:g}")


def rotation_frequency(P: ArrayLike, pi: ArrayLike) -> float:
    """omega: the largest |imaginary part| of an eigenvalue of (P - 1/2)(diag(pi) - pi pi^T); 0 without a cycle.

    P [n, n] is the game, pi [n] the policy, in general the equilibrium. With s = sqrt(pi) and Q = I - s s^T the matrix
    is similar to the antisymmetric Q diag(s) (P - 1/2) diag(s) Q, whose largest singular value omega is.
    """
    game = checked_game(P)
    s = np.sqrt(checked_policy(pi, len(game)))
    projected = (game - 0.5) * np.outer(s, s)
    projected -= np.outer(s, s @ projected)
    projected -= np.outer(projected @ s, s)
    return float(np.linalg.norm(projected, 2))


def total_rotation(preferences: ArrayLike) -> float:
    """sqrt of the sum of all modes' omega^2, mean over g prompts, estimated without bias before the root; needs k >= 3.

    preferences [g, k, k]: [p, i, j] is the probability that completion i of prompt p is preferred to its completion j,
    all sampled by the policy. Draws of 0 or 1 instead turn by themselves. An upper bound of omega in expectation, and
    equal to it where one cycle rules (three classes of responses, say). With A = P - 1/2 the modes' 2 omega^2 add up to
    E[A_ij^2] - 2 E[A_ij A_il] over independent i, j, l from the policy, two U-statistics; 0 where noise makes their
    difference negative.
    """
    games = np.asarray(preferences, dtype=np.float64)
    if games.ndim != 3 or games.shape[0] < 1 or games.shape[1] < 3:
        raise UsageError(
            f"preferences have the shape [prompts, k, k], at least one prompt and k >= 3; got {games.shape}"
        )
    k = games.shape[1]
    A = np.stack([checked_game(game) for game in games]) - 0.5
    squares = (A * A).sum(axis=-1)
    products = (A.sum(axis=-1) ** 2 - squares).mean() / ((k - 1) * (k - 2))
    return math.sqrt(max(0.0, 0.5 * float(squares.mean() / (k - 1) - 2.0 * products)))


def _critical_lag(tau: float, beta: float, step_size: float, omega: float) -> float:
    """The real d at which a root first lies on the unit circle; smaller d are stable. inf if none does, -1 if d < 0.

    On the circle l = e^{i theta} asks |l - a| = c with a = 1 - eta tau, c = eta omega (1 - beta), which has a solution
    only for c >= 1 - a, and d theta + arg(l - a) = pi / 2. Roots leave the disc as d grows and none comes back.
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
    """The largest whole number d of learner steps with every root l of the module's equation inside the unit circle.

    inf if every lag is stable, which is so where omega (1 - beta) <= tau, and at omega = 0; -1 if not even d = 0 is.
    step_size is eta, in (0, 1 / tau].
    """
    _checked(tau, beta, omega)
    _checked_step(step_size, tau)
    critical = _critical_lag(tau, beta, step_size, omega)
    return critical if math.isinf(critical) else float(max(math.ceil(critical) - 1, -1))


def largest_stable_lag_first_order(tau: float, beta: float, step_size: float, omega: float) -> float:
    """The d with eta (d + 1/2) = tau / ((1 - beta)^2 omega^2), a real number; smaller lags are stable.

    The roots' condition to first order in eta: for eta tau and eta omega well below 1. inf where omega (1 - beta) is 0;
    negative where no lag is stable. Where omega (1 - beta) nears tau it is far below `largest_stable_lag`.
    """
    _checked(tau, beta, omega)
    _checked_step(step_size, tau)
    rotation = (1.0 - beta) * omega
    return math.inf if rotation == 0.0 else tau / (rotation * rotation * step_size) - 0.5


def largest_stable_step(tau: float, beta: float, lag: float, omega: float) -> float:
    """The step size eta below which opponents `lag` learner steps old are stable; at most 1 / tau, where steps end.

    From the roots, by bisection to machine precision; lag >= 0 may be a mean and no whole number.
    """
    _checked(tau, beta, omega)
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
    """eta as measured on a training step: the slope of the policy's change on the advantage. nan if that never varies.

    change [g, k]: log pi_{t+1}(y) - log pi_t(y), nats, of k completions of each of g prompts; advantage [g, k]: what
    the step pushed by, P(y > opponent) - tau log(pi_t / mu) (y). Least squares with a constant of its own for each
    prompt, which is the policy's normalisation there. The exact step of a tabular policy gives eta exactly.
    """
    y, x = np.asarray(change, dtype=np.float64), np.asarray(advantage, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 2:
        raise UsageError(f"change and advantage have one shape, [prompts, completions]; got {y.shape} and {x.shape}")
    if not y.size:
        return math.nan
    y, x = y - y.mean(axis=1, keepdims=True), x - x.mean(axis=1, keepdims=True)
    variation = float((x * x).sum())
    return float((x * y).sum()) / variation if variation > 1e-24 * x.size else math.nan
