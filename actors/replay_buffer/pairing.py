"""From a judged group to the pair or game that a loss consumes. Pure; it must not know judges, buffers or losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from actors.errors import RunError
from actors.records import Game, Group, Pair

PREFERENCE_TOLERANCE = 1e-6
"""What is taken for rounding: of P(i > j) beyond [0, 1], and of P(i > j) + P(j > i) beside 1."""


def effective_scores(group: Group, missing_eos_score: float | None) -> tuple[float, ...]:
    """The judge's scores, with `missing_eos_score` in place of those of completions without end-of-sequence.

    Args:
        group: a judged group.
        missing_eos_score: replacement for unfinished completions; None keeps what the judge said.

    Returns:
        One finite score per completion.

    Raises:
        RunError: the group has no judgement, or one that does not fit its completions.
    """
    index = group.lease.index
    if group.judgement is None:
        raise RunError(f"lease {index} has no judgement yet; a group must be judged before it is paired")
    scores = group.judgement.scores
    if len(scores) != len(group.completions):
        raise RunError(
            f"lease {index} has {len(scores)} scores for {len(group.completions)} completions; check its judge"
        )
    if not all(math.isfinite(score) for score in scores):
        raise RunError(f"lease {index} has scores {scores}; every score must be finite; check its judge")
    if missing_eos_score is None:
        return tuple(map(float, scores))
    return tuple(
        float(score if completion.finished else missing_eos_score)
        for score, completion in zip(scores, group.completions, strict=True)
    )


def best_and_worst(group: Group, missing_eos_score: float | None) -> Pair:
    """The best and the worst of a group's K completions (argmax and argmin, as in Noukhovitch et al. 2024, section 3).

    Equal scores go to the first index. When all K are equal, both sides are the same completion: the log-ratio is then
    exactly 0 whatever the policy, and the pair carries no gradient; two different completions would carry noise.

    Raises:
        RunError: as `effective_scores`.
    """
    scores = effective_scores(group, missing_eos_score)
    best = scores.index(max(scores))
    worst = scores.index(min(scores))
    return Pair(
        lease_index=group.lease.index,
        prompt_token_ids=group.lease.prompt.token_ids,
        chosen=group.completions[best],
        rejected=group.completions[worst],
        margin=scores[best] - scores[worst],
    )


def game_of(group: Group, missing_eos_score: float | None) -> Game:
    """The preference game of a group: its players, its opponents, and who is preferred to whom.

    P(i > j) is the judge's where it compares pairs, else Bradley and Terry's: the sigmoid of the difference of the
    effective scores. With a `missing_eos_score`, an unfinished completion loses every comparison of a judge of pairs
    with a finished one, and ties with its like; None keeps the judge's word.

    Args:
        group: a judged group, the policy's completions before the opponents'.
        missing_eos_score: as for `effective_scores`.

    Raises:
        RunError: as `effective_scores`, or for preferences that are not probabilities of one or the other.
    """
    scores = effective_scores(group, missing_eos_score)
    assert group.judgement is not None
    if group.judgement.preferences is None:
        preferences = bradley_terry(scores)
    else:
        preferences = checked_preferences(group.judgement.preferences, len(scores), group.lease.index)
        if missing_eos_score is not None:
            preferences = finished_first(preferences, [completion.finished for completion in group.completions])
    return Game(
        lease_index=group.lease.index,
        prompt_token_ids=group.lease.prompt.token_ids,
        players=tuple(completion for completion in group.completions if not completion.opponent),
        opponents=tuple(completion for completion in group.completions if completion.opponent),
        preferences=preferences,
        scores=scores,
    )


def bradley_terry(scores: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """P(i > j) = sigmoid(scores[i] - scores[j]) (Bradley and Terry 1952); [n][n], of any finite scores."""
    # By tanh, which overflows for no difference.
    return tuple(tuple(0.5 + 0.5 * math.tanh(0.5 * (a - b)) for b in scores) for a in scores)


def finished_first(preferences: Sequence[Sequence[float]], finished: Sequence[bool]) -> tuple[tuple[float, ...], ...]:
    """`preferences` [n][n] where both have `finished`; else 1 for the one that has, and 1/2 where neither has."""
    return tuple(
        tuple(p if a and b else 0.5 + 0.5 * (a - b) for p, b in zip(row, finished, strict=True))
        for row, a in zip(preferences, finished, strict=True)
    )


def checked_preferences(
    preferences: Sequence[Sequence[float]], count: int, lease_index: int
) -> tuple[tuple[float, ...], ...]:
    """`preferences` [count][count] without their rounding: in [0, 1], each pair's two add up to 1, 1/2 on the diagonal.

    With p = P(i > j) and q = P(j > i) as given, in [0, 1], P(i > j) becomes (p + 1 - q) / 2. The diagonal is not read.

    Raises RunError unless each entry is a probability and the two of each pair add up to 1, both to within
    `PREFERENCE_TOLERANCE`.
    """
    if len(preferences) != count or any(len(row) != count for row in preferences):
        raise RunError(f"lease {lease_index} has preferences that are not {count} x {count}; check its judge")
    table = [[0.5] * count for _ in range(count)]
    for i in range(count):
        for j in range(i):
            p, q = float(preferences[i][j]), float(preferences[j][i])
            if not all(-PREFERENCE_TOLERANCE <= each <= 1.0 + PREFERENCE_TOLERANCE for each in (p, q)):  # also NaN
                raise RunError(
                    f"lease {lease_index} has preferences {p} and {q} of completions {i} and {j}; each must be a "
                    "probability, from 0 to 1; check its judge"
                )
            if abs(p + q - 1.0) > PREFERENCE_TOLERANCE:
                raise RunError(
                    f"lease {lease_index} has preferences {p} for completion {i} over {j} and {q} for {j} over {i}; "
                    "they must add up to 1; have the judge average both orders"
                )
            p, q = (min(max(each, 0.0), 1.0) for each in (p, q))
            table[i][j] = 0.5 * (p + (1.0 - q))
            table[j][i] = 1.0 - table[i][j]
    return tuple(map(tuple, table))


def mean_win_probabilities(preferences: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Score of each completion where a judge only compares: its mean win probability against the other K-1.

    Args:
        preferences: K x K; `preferences[i][j]` = P(i is preferred to j). The diagonal is not read. K >= 2.
    """
    return tuple(
        sum(probability for j, probability in enumerate(row) if j != i) / (len(row) - 1)
        for i, row in enumerate(preferences)
    )
