"""The staleness limit of losses on pairs: their pull, and the rotation of what their labels leave unexplained.

Let z be the policy's log-ratio to the reference, and H[i, j] the label of completion i against j: 1 if i is preferred,
0 if not, less what label smoothing takes. Training on pairs of a policy d learner steps old follows

    z_{t+1}(y) = z_t(y) + eta E_{y' ~ pi_{t-d}}[H(y, y') - sigma(beta (z_t(y) - z_t(y')))] + c        (dpo)

and without sigma for ipo, where H - 1/2 - beta (z - z') is in its place. The density of y multiplies a residual that
vanishes at rest, so its age does not matter there: only the second completion's does. Linearised, with
R = H - sigma(beta dz) and sigma' <= 1/4,

    l = 1 - eta pull + i eta omega l^-d,        pull = beta sigma' (dpo), beta (ipo),

with +- i omega the eigenvalues of R diag(pi). That is `learner.games.stability` with tau = pull and no mixture. At rest
beta dz is the Bradley-Terry fit of H, so R is what no score explains.

A run pairs the best with the worst of K completions. Of a completion's K updates, 2 then have a gradient, so the pull
is 2 / K of that; the rotation is about that of R. For K = 2 the law is exact; for more its lag is rather too short.
Pure NumPy; must not depend on runs.
"""

from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from actors.errors import UsageError

Kind = Literal["dpo", "ipo"]
SLOPES: dict[Kind, float] = {"dpo": 0.25, "ipo": 1.0}
"""Largest slope of the residual in beta times the difference of log-ratios: sigma'(0), and 1."""
BISECTIONS = 40
"""Halvings of the interval that holds a cycle's strength: to 1e-12."""


def pull(kind: Kind, weight: float, completions: int) -> float:
    """Return the strength of the pull that `weight`, beta or an anchor's kappa, makes in pairs of best and worst."""
    return SLOPES[kind] * weight * 2.0 / completions


def labels(preferences: ArrayLike, label_smoothing: float = 0.0) -> np.ndarray:
    """Return the labels [g, k, k] that a run trains on: the preferred completion wins, whatever the probability."""
    table = np.asarray(preferences, dtype=np.float64)
    sign = np.sign(np.where(np.abs(table - 0.5) < 1e-9, 0.0, table - 0.5))
    return 0.5 + (0.5 - label_smoothing) * sign


def unexplained(labels: ArrayLike, kind: Kind) -> np.ndarray:
    """Estimate for each of g prompts the sum of omega^2 that no score explains, [g]; at least 0.

    labels [g, k, k], k >= 3, of completions sampled from the policy. Of three completions a score leaves one cycle:
    they beat each other in turn by 1/2 + a, which counts 3/2 a^2. The result is the mean over all threes. With p, q and
    r the labels around the cycle, a solves logit(p - a) + logit(q - a) + logit(r - a) = 0 for dpo. For ipo it is
    (p + q + r) / 3 - 1/2, and the result is that of `stability.rotations`.
    """
    table = np.asarray(labels, dtype=np.float64) - 0.5
    if table.ndim != 3 or table.shape[0] < 1 or table.shape[1] < 3:
        raise UsageError(f"labels have shape {table.shape}; they need [prompts, k, k] with k >= 3 and a prompt")
    k = table.shape[1]
    one, two, three = np.array(list(combinations(range(k), 3))).T
    around = np.stack([table[:, one, two], table[:, two, three], table[:, three, one]])
    strength = around.mean(axis=0) if kind == "ipo" else _cycle_strength(around)
    return 1.5 * (strength * strength).mean(axis=1)


def _cycle_strength(x: np.ndarray) -> np.ndarray:
    """Return a with sum of logit(1/2 + x - a) over the first axis 0; |x| <= 1/2, [3, ...].

    The product of 1/2 + y equals that of 1/2 - y, y = x - a, if sum(y) / 4 + prod(y) = 0, which falls in a as long as
    all |y| <= 1/2.
    """
    low, high = x.max(axis=0) - 0.5, x.min(axis=0) + 0.5
    for _ in range(BISECTIONS):
        a = 0.5 * (low + high)
        y = x - a
        over = 0.25 * y.sum(axis=0) + y.prod(axis=0) > 0.0
        low, high = np.where(over, a, low), np.where(over, high, a)
    return 0.5 * (low + high)
