"""How good the probabilities of a preference model are, and the temperature that makes them better. Pure NumPy.

Throughout, z [n] are logits that the first of two responses is preferred, p [n] the labels: probabilities of the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.world import sigmoid

Array = NDArray[np.float64]
ECE_BINS = 15
_LARGEST_SCALE = 100.0
"""Temperatures are looked for between 1 / this and this."""


def negative_log_likelihood(z: Array, p: Array) -> float:
    """Mean of -p log sigmoid(z) - (1 - p) log sigmoid(-z), nats per pair."""
    return float(np.mean(np.logaddexp(0.0, z) - p * z))


def accuracy(z: Array, p: Array) -> float:
    """Share of pairs whose likelier response is the one that the label prefers; a tie of either counts one half."""
    return float(np.mean(0.5 + 0.5 * np.sign(z) * np.sign(p - 0.5)))


def expected_calibration_error(z: Array, p: Array, bins: int = ECE_BINS) -> float:
    """Guo et al. 2017, equation 3: mean over bins, weighted by their size, of |confidence - accuracy|.

    A pair's confidence is the probability of its likelier response, its accuracy the label's probability of that
    response. `bins` equal bins divide [1/2, 1], which two classes' confidences lie in.
    """
    confidence = sigmoid(np.abs(z))
    right = np.where(z >= 0.0, p, 1.0 - p)
    of_bin = np.minimum(((confidence - 0.5) * 2.0 * bins).astype(int), bins - 1)
    gaps = np.bincount(of_bin, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(z))


def fit_temperature(z: Array, p: Array) -> float:
    """The T in [1/100, 100] that minimises the negative log-likelihood of z / T (Guo et al. 2017, section 4.2).

    1 where all z are 0.
    """
    return 1.0 / _best_slope(z, p, 1.0 / _LARGEST_SCALE, _LARGEST_SCALE) if np.any(z) else 1.0


def fit_slope(x: Array, p: Array) -> float:
    """The a that minimises the negative log-likelihood of a x, a logistic regression without intercept.

    At most 100 over the root mean square of x, which it reaches where x tells the labels without error; 0 where all x
    are 0.
    """
    if not np.any(x):
        return 0.0
    largest = _LARGEST_SCALE / float(np.sqrt(np.mean(x * x)))
    return _best_slope(x, p, -largest, largest)


def _best_slope(x: Array, p: Array, low: float, high: float) -> float:
    """Bisection of the derivative by a, mean((sigmoid(a x) - p) x), which never falls: the loss is convex in a."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        if np.mean((sigmoid(middle * x) - p) * x) > 0.0:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


def curl(tables: Array) -> tuple[float, float]:
    """Of antisymmetric logits [n, 3, 3] of triples: the mean of |s_12 + s_23 + s_31|, and the share of cyclic triples.

    A triple is cyclic when each response is preferred to the next round one way: all of s_12, s_23, s_31 have one sign.
    """
    around = np.stack([tables[:, 0, 1], tables[:, 1, 2], tables[:, 2, 0]], axis=1)
    cyclic = (around > 0.0).all(axis=1) | (around < 0.0).all(axis=1)
    return float(np.abs(around.sum(axis=1)).mean()), float(cyclic.mean())
