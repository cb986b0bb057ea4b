"""Estimate the time left of a sweep from its completed runs. Pure."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence


def seconds_left(
    taken: Mapping[str, Sequence[float]], running: Iterable[tuple[str, float]], waiting: Iterable[str], slots: int
) -> float | None:
    """Estimate the seconds until the last run ends; None before any run has ended.

    `taken` has the seconds of completed runs by row, `running` rows with the seconds so far, `waiting` rows in order.
    A row of which no run is completed is expected to take the mean of all.
    """
    every = [seconds for of_row in taken.values() for seconds in of_row]
    if not every:
        return None

    def expected(row: str) -> float:
        return statistics.fmean(taken.get(row) or every)

    free = sorted(max(0.0, expected(row) - so_far) for row, so_far in running)
    free = [0.0] * (slots - len(free)) + free
    for row in waiting:  # each starts where a slot is free first
        heapq.heapreplace(free, free[0] + expected(row))
    return max(free)
