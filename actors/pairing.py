"""From a judged group to the pair that a preference loss consumes. Pure; it must not know judges, buffers or losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from actors.errors import RunError
from actors.records import Group, Pair


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


def mean_win_probabilities(preferences: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Score of each completion where a judge only compares: its mean win probability against the other K-1.

    Args:
        preferences: K x K; `preferences[i][j]` = P(i is preferred to j). The diagonal is not read. K >= 2.
    """
    return tuple(
        sum(probability for j, probability in enumerate(row) if j != i) / (len(row) - 1)
        for i, row in enumerate(preferences)
    )
