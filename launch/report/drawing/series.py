"""Numbers as they are drawn: thinned without losing extremes, smoothed, on scales with round ticks. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_POINTS = 600
"""Points of one drawn line."""
SMOOTHED = 20
"""Fewest points of a line that gets a running mean."""
ROUNDING = 1e-6
"""Relative, with room: single precision rounds to 6e-8."""
Point = tuple[float, float]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` (at least 4) of `points`, in order: both ends, and the extremes of equal parts."""
    if len(points) <= most:
        return list(points)
    parts = (most - 2) // 2
    kept = {0, len(points) - 1}
    for part in range(parts):
        indices = range(len(points) * part // parts, len(points) * (part + 1) // parts)
        kept |= {min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Average each point with its neighbours: a twentieth of the line, at least 5 points, fewer at its ends.

    Empty for a line of fewer than `SMOOTHED` points.
    """
    if len(points) < SMOOTHED:
        return []
    half = max(2, len(points) // 40)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for i, (x, _) in enumerate(points):
        first, end = max(0, i - half), min(len(points), i + half + 1)
        means.append((x, (sums[end] - sums[first]) / (end - first)))
    return means


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of values, from `low` to `high`, with round `ticks` inside."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return where `value` lies between `low`, 0, and `high`, 1."""
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """Return a tick with as many decimals as its distance to the next one needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick) or 1.0
        if max(abs(self.low), abs(self.high)) >= 1e6 or step < 1e-4:
            return f"{tick:.3g}"
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{tick + 0.0:,.{decimals}f}"


def scale_of(values: Sequence[float], ticks: int = 4) -> Scale:
    """Return the scale of finite values: their range and a little more, with about `ticks` ticks of 1, 2 or 5.

    Values that differ by rounding alone count as equal and lie in the middle.
    """
    low, high = min(values), max(values)
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        pad = abs(low) * 0.5 or 0.5
        low, high = low - pad, high + pad
    step = _round_step((high - low) / ticks)
    pad = 0.04 * (high - low)
    below = 0.0 if low == 0.0 else low - pad  # counts and shares begin at 0 and not below
    first, last = math.ceil(below / step - 1e-9), math.floor((high + pad) / step + 1e-9)
    return Scale(below, high + pad, tuple(n * step for n in range(first, last + 1)))


def whole_scale(first: int, last: int, ticks: int = 4) -> Scale:
    """Return the scale of whole numbers, as updates are, without room at the ends."""
    if last <= first:
        return Scale(first - 1.0, first + 1.0, (float(first),))
    step = max(1, round(_round_step((last - first) / ticks)))
    numbers = range(math.ceil(first / step) * step, last + 1, step)
    return Scale(float(first), float(last), tuple(map(float, numbers)))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if step <= factor * power * (1.0 + 1e-9))


def number(value: float) -> str:
    """Return a value with about four digits, as a reader wants it."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000.0:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100.0 else f"{value:.3g}"
