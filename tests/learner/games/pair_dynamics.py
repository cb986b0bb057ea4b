"""Training on pairs of best and worst completions in a small game, every group enumerated: the slow path of the law."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from actors.world import sigmoid
from learner.games.tabular import Array, newton, softmax

Signal = Callable[[Array, Array], Array]
"""Takes the residual's argument h [n], beta z without an anchor, and the policy that sampled the pairs [n].

Returns the expected update of each action, given that it is in a group, [n].
"""


def mixed_cycle(cycle: float, strength: float) -> Array:
    """Rock, paper, scissors that win by `cycle`, and by a score of the given strength."""
    scores = strength * np.array([1.0, 0.0, -1.0])
    turns = cycle * np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    return 0.5 + turns + (sigmoid(np.subtract.outer(scores, scores)) - 0.5) * (1.0 - 2.0 * cycle)


def soft_signal(P: Array, kind: str = "dpo") -> Signal:
    """Of random pairs with the preference itself as label."""
    return lambda h, pi: _residual(P, np.subtract.outer(h, h), kind) @ pi


def hard_signal(P: Array, completions: int, kind: str = "dpo", smoothing: float = 0.0) -> Signal:
    """Of the best and the worst by mean win probability in groups of `completions`; ties among them are even."""
    rows = []
    for group in itertools.product(range(len(P)), repeat=completions):
        scores = P[np.ix_(group, group)].sum(axis=1)
        best, worst = (np.flatnonzero(np.isclose(scores, end)) for end in (scores.max(), scores.min()))
        if len(best) == completions:
            continue
        share = 1.0 / (len(best) * len(worst))
        rows += [(group[0], group[w], 1.0, share, group[1:]) for b in best for w in worst if b == 0]
        rows += [(group[0], group[b], -1.0, share, group[1:]) for b in best for w in worst if w == 0]
    own, other, sign, share = (np.array(column) for column in list(zip(*rows, strict=True))[:4])
    others = np.array([row[4] for row in rows])

    def signal(h: Array, pi: Array) -> Array:
        residual = sign * _residual(1.0 - smoothing, sign * (h[own] - h[other]), kind)
        return np.bincount(own, weights=share * residual * pi[others].prod(axis=1), minlength=len(P))

    return signal


def _residual(label: Array | float, difference: Array, kind: str) -> Array:
    return label - sigmoid(difference) if kind == "dpo" else label - 0.5 - difference


@dataclass(frozen=True)
class Rest:
    """Where nothing moves on fresh pairs: log-ratios to mu, and the signal's derivatives there."""

    z: Array  # [n]
    pi: Array  # [n]
    own: Array  # [n, n], by h
    old: Array  # [n, n], by the log-probs of the policy that sampled the pairs


def rest_of(signal: Signal, mu: Array, beta: float) -> Rest:
    """Find the rest by Newton's method; derivatives are differences."""
    n, e = len(mu), 1e-5

    def derivatives(z: Array) -> tuple[Array, Array, Array]:
        pi, own, old = softmax(np.log(mu) + z), np.zeros((n, n)), np.zeros((n, n))
        for i, d in enumerate(e * np.eye(n)):
            own[:, i] = (signal(beta * z + d, pi) - signal(beta * z - d, pi)) / (2 * e)
            ahead, behind = (softmax(np.log(mu) + z + side * d) for side in (1, -1))
            old[:, i] = (signal(beta * z, ahead) - signal(beta * z, behind)) / (2 * e)
        return pi, own, old

    def equations(z: Array) -> tuple[Array, Array, float]:
        pi, own, old = derivatives(z)
        F = _centred(signal(beta * z, pi))
        return F - z.mean(), (np.eye(n) - 1.0 / n) @ (beta * own + old) - 1.0 / n, 1e-7 * float(np.abs(F).max() > 1e-9)

    z = newton(equations, np.zeros(n), "choose another game")
    return Rest(z, *derivatives(z))


def growth(at: Rest, beta: float, eta: float, lag: int, anchor: tuple[float, float] = (0.0, 1.0)) -> float:
    """The largest |eigenvalue| of the delayed step on (z_t, ..., z_{t-lag}, u_t) at rest."""
    n, (kappa, horizon) = len(at.z), anchor
    centre, size = np.eye(n) - 1.0 / n, n * (lag + 2)
    step = np.zeros((size, size))
    step[:n, :n] = centre @ (np.eye(n) + eta * (beta + kappa) * at.own)
    step[:n, n * lag : n * (lag + 1)] += eta * centre @ at.old @ centre
    step[:n, -n:] = -eta * kappa * centre @ at.own
    step[n : n * (lag + 1), : n * lag] += np.eye(n * lag)
    step[-n:] = step[:n] / horizon
    step[-n:, -n:] += (1.0 - 1.0 / horizon) * centre
    return float(np.abs(np.linalg.eigvals(step)).max())


def settles(
    signal: Signal, mu: Array, beta: float, eta: float, lag: int, anchor: tuple[float, float] = (0.0, 1.0)
) -> bool:
    """Whether the game itself, from near its rest, ends nearer to it than it was."""
    start, (kappa, horizon) = rest_of(signal, mu, beta).z, anchor
    z = [start + 1e-3 * np.array([1.0, -1.0, *[0.0] * (len(mu) - 2)])]
    slow, steps = z[0], 200 * (lag + 5)
    away = np.zeros(steps)
    for t in range(steps):
        old = softmax(np.log(mu) + z[max(t - lag, 0)])
        z.append(z[t] + eta * _centred(signal(beta * z[t] + kappa * (z[t] - slow), old)))
        slow = slow + (z[-1] - slow) / horizon
        away[t] = np.abs(z[-1] - start).max()
    return bool(away[-steps // 4 :].max() < away[steps // 4 : steps // 2].max())


def _centred(values: Array) -> Array:
    return values - values.mean()
