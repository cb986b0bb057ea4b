"""Compute 95% intervals of a mean over prompts, for every reported figure that has one. Pure; knows only numbers.

Prompts are the independent draws, so a prompt's completions count once, as their mean: more of them make the interval
narrower only by making that mean vary less. For a difference on the same prompts, give the differences.
"""

import functools
import math
import statistics
from collections.abc import Hashable, Iterable, Sequence

CONFIDENCE = 0.95
_NORMAL = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2.0)


Interval = tuple[float, float]


def means_by(keys: Iterable[Hashable], values: Iterable[float]) -> list[float]:
    """Average the values of each key, in order of the keys: a repeated prompt is not a further draw."""
    found: dict[Hashable, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    return [statistics.fmean(each) for each in found.values()]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return mean ± t s / sqrt(n) of n prompts' values, t of n - 1 degrees of freedom.

    None if n < 2 or all values are equal: then their variation is unknown. Exact for normal values (Student, "The
    probable error of a mean", Biometrika 6, 1908).
    """
    n = len(values)
    if n < 2:
        return None
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if spread <= 1e-9 * max(map(abs, values)):
        return None
    half = student_t(n - 1) * spread / math.sqrt(n)
    return mean - half, mean + half


def share_interval(shares: Sequence[float]) -> Interval | None:
    """Return an interval for the mean of n prompts' shares, each in [0, 1]; None if n < 2.

    Wilson's with as many coin flips as would vary like the shares, n (p (1 - p) + s^2 / n) / s^2, and Student's t of
    n - 1 degrees of freedom (Franco et al. 2019, "Comparative Study of Confidence Intervals for Proportions in Complex
    Sample Surveys"). Wilson's own with n flips if all shares are 0 or 1, or all are equal. It never holds
    the mean less often than in 95 of 100 cases on average over means; with under 16 completions in all, more often.
    """
    n = len(shares)
    if n < 2:
        return None
    mean, variance = min(max(statistics.fmean(shares), 0.0), 1.0), statistics.variance(shares)
    if variance < 1e-18 or all(share in (0.0, 1.0) for share in shares):
        return wilson_interval(mean * n, n)
    flips = n * (mean * (1.0 - mean) + variance / n) / variance
    return wilson_interval(mean * flips, flips, student_t(n - 1))


def wilson_interval(wins: float, n: float, z: float = _NORMAL) -> Interval:
    """Compute Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927).

        (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),   p = wins / n

    Unlike p ± z s/sqrt(n) it stays inside [0, 1] and does not shrink to a point at p = 0 or 1. Returns (0, 1) for
    n = 0. Raises ValueError unless 0 <= wins <= n.
    """
    if n < 0 or not 0 <= wins <= n:
        raise ValueError(f"wins {wins} of n {n}: allowed are 0 <= wins <= n")
    if n == 0:
        return 0.0, 1.0
    p = wins / n
    centre = p + z * z / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


@functools.cache
def student_t(degrees: int) -> float:
    """Return the t with P(|T| <= t) = 0.95, to within 1e-8. T: Student's, with `degrees` >= 1 degrees of freedom."""
    if degrees > 200:  # Abramowitz and Stegun 1964, 26.7.5
        z, n = _NORMAL, degrees
        return (
            z
            + (z**3 + z) / (4 * n)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        )
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return 0.5 * (low + high)


def _within(t: float, degrees: int) -> float:
    """Return P(|T| <= t) by the finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * math.cos(theta) ** 2
        total += term
    return 2.0 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
