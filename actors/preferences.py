"""Preference tables [n][n] among one prompt's completions: make them from scores, check, round, average to scores.

Entry [i][j] is P(completion i is preferred to completion j). Pure; must not import judges or the replay buffer.
"""

import math
from collections.abc import Sequence

from actors.errors import RunError

Table = tuple[tuple[float, ...], ...]

TOLERANCE = 1e-6
"""Rounding error allowed in P(i > j) outside [0, 1], and in P(i > j) + P(j > i) = 1."""


def bradley_terry(scores: Sequence[float]) -> Table:
    """Compute P(i > j) = sigmoid(scores[i] - scores[j]) (Bradley and Terry 1952) of any finite scores."""
    # tanh overflows for no difference.
    return tuple(tuple(0.5 + 0.5 * math.tanh(0.5 * (a - b)) for b in scores) for a in scores)


def mean_win_probabilities(preferences: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Score each of n >= 2 completions by its mean win probability against the others. The diagonal is not read."""
    return tuple(
        sum(probability for j, probability in enumerate(row) if j != i) / (len(row) - 1)
        for i, row in enumerate(preferences)
    )


def check_preferences(preferences: Sequence[Sequence[float]], count: int) -> None:
    """Raise RunError unless `preferences` is a `count` x `count` table of probabilities. The diagonal is not read.

    Each entry must be in [0, 1], and the two entries of each pair must add up to 1, both within `TOLERANCE`.
    """
    who = "the judge gave preferences"
    if len(preferences) != count or any(len(row) != count for row in preferences):
        raise RunError(f"{who} that are not {count} x {count}; return one row and column per completion")
    for i in range(count):
        for j in range(i):
            p, q = preferences[i][j], preferences[j][i]
            if not all(-TOLERANCE <= each <= 1.0 + TOLERANCE for each in (p, q)):  # also refuses NaN
                raise RunError(f"{who} {p} and {q} of completions {i} and {j}; each must be a probability from 0 to 1")
            if abs(p + q - 1.0) > TOLERANCE:
                raise RunError(
                    f"{who} {p} for completion {i} over {j} and {q} for {j} over {i}; they must add up to 1; have the "
                    "judge average both orders"
                )


def antisymmetric(preferences: Sequence[Sequence[float]]) -> Table:
    """Average both entries of each pair, clipped to [0, 1].

    With p = P(i > j) and q = P(j > i), the result is P(i > j) = (p + 1 - q) / 2: each pair adds up to exactly 1, and
    the diagonal is 1/2. A checked table only loses its rounding errors. The diagonal is not read.
    """
    count = len(preferences)
    table = [[0.5] * count for _ in range(count)]
    for i in range(count):
        for j in range(i):
            p, q = (min(max(float(each), 0.0), 1.0) for each in (preferences[i][j], preferences[j][i]))
            table[i][j] = 0.5 * (p + (1.0 - q))
            table[j][i] = 1.0 - table[i][j]
    return tuple(map(tuple, table))


def finished_first(preferences: Sequence[Sequence[float]], finished: Sequence[bool]) -> Table:
    """Let every finished completion beat every unfinished one, and unfinished ones tie; keep all other entries."""
    return tuple(
        tuple(p if a and b else 0.5 + 0.5 * (a - b) for p, b in zip(row, finished, strict=True))
        for row, a in zip(preferences, finished, strict=True)
    )
