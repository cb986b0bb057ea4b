"""Theory that only tests need: other gaps, fixed points of DPO, EGPO, and the first order of the staleness limit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from learner.games.tabular import (
    Array,
    bradley_terry,
    checked_game,
    checked_policy,
    exploitability,
    online_mirror_descent,
    rlhf_policy,
    softmax,
)


def best_response(P: ArrayLike, pi: ArrayLike) -> int:
    """The action most often preferred to pi; the first of equals."""
    return int(np.argmax(checked_game(P) @ np.asarray(pi)))


def nash_conv(P: ArrayLike, pi: ArrayLike) -> float:
    """Both players' gains from a best response when both play pi: twice the exploitability."""
    return 2.0 * exploitability(P, pi)


def geometric_mixture(pi: ArrayLike, mu: ArrayLike, beta: float) -> Array:
    """pi^(1-beta) mu^beta, normalised, [n] (Munos et al. 2023, section 6). mu is positive; pi may be 0 somewhere."""
    reference = np.asarray(mu, dtype=np.float64)
    if beta == 1.0:
        return reference / reference.sum()
    with np.errstate(divide="ignore"):
        return softmax((1.0 - beta) * np.log(np.asarray(pi, dtype=np.float64)) + beta * np.log(reference))


def offline_dpo_fixed_point(P: ArrayLike, mu: ArrayLike, b: float, sampler: ArrayLike | None = None) -> Array:
    """The limit of DPO with coefficient b on pairs from `sampler` [n] (default mu), labelled by P. [n]

    b log(pi / mu) is then the Bradley-Terry reward of those pairs (Rafailov et al. 2023, eq. 5 and 7), so the policy is
    that of RLHF on that reward with tau = b. It depends on the sampler unless P is itself Bradley-Terry.
    """
    return rlhf_policy(bradley_terry(P, mu if sampler is None else sampler), mu, b)


def constant_descent(P: ArrayLike, mu: ArrayLike, tau: float, steps: int, step_size: float, **options) -> Array:
    """`online_mirror_descent` with one step size."""
    return online_mirror_descent(P, mu, tau, np.full(steps, step_size), **options)


def extragradient(P: Array, mu: ArrayLike, tau: float, steps: int, step_size: float) -> Array:
    """Every iterate of EGPO from mu, [steps + 1, n] (Zhou, Fazel, Du 2025, arXiv 2503.08942).

    A step of self-play gives the opponent of the real step, which starts from the same policy.
    """
    iterates = [np.asarray(mu, dtype=np.float64)]
    for _ in range(steps):
        z, log_mu = np.log(iterates[-1]), np.log(iterates[0])
        kept = (1.0 - step_size * tau) * z + step_size * tau * log_mu
        opponent = softmax(kept + step_size * (P @ iterates[-1]))
        iterates.append(softmax(kept + step_size * (P @ opponent)))
    return np.array(iterates)


def rotation_frequency(P: ArrayLike, pi: ArrayLike) -> float:
    """omega: the largest |imaginary part| of an eigenvalue of (P - 1/2)(diag(pi) - pi pi^T); 0 without a cycle.

    With s = sqrt(pi) and Q = I - s s^T the matrix is similar to the antisymmetric Q diag(s) (P - 1/2) diag(s) Q, whose
    largest singular value omega is.
    """
    game = checked_game(P)
    s = np.sqrt(checked_policy(pi, len(game)))
    projected = (game - 0.5) * np.outer(s, s)
    projected -= np.outer(s, s @ projected)
    projected -= np.outer(projected @ s, s)
    return float(np.linalg.norm(projected, 2))


def largest_stable_lag_first_order(tau: float, beta: float, step_size: float, omega: float) -> float:
    """The d with eta (d + 1/2) = tau / ((1 - beta)^2 omega^2), a real number; smaller lags are stable.

    The roots' condition to first order in eta, for eta tau and eta omega well below 1. inf if omega (1 - beta) is 0.
    """
    rotation = (1.0 - beta) * omega
    return math.inf if rotation == 0.0 else tau / (rotation * rotation * step_size) - 0.5


def anchored_descent(P, mu, tau, step_size, steps, lag, start, anchor):
    """Mirror descent against the policy of `lag` steps ago, pulled to mu and to the slow average of log pi as well.

    `anchor`: kappa and the horizon T. Every iterate, [steps + 1, n].
    """
    kappa, horizon = anchor
    log_mu, z = np.log(mu), [np.log(start)]
    slow = z[0]
    for t in range(steps):
        old = np.exp(z[max(t - lag, 0)])
        wins = P @ (old / old.sum()) - 0.5
        z.append(z[t] + step_size * (tau * (log_mu - z[t]) + kappa * (slow - z[t]) + wins))
        slow = slow + (z[-1] - slow) / horizon
    policies = np.exp(np.array(z))
    return policies / policies.sum(-1, keepdims=True)
