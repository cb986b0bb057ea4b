"""Turn a judged group into the pair or game that a loss consumes. Pure; must not import judges, buffers or losses.

Trusts judgements, which `actors/judges/worker.py` checks on arrival. Raises RunError for a group without one.
"""

import math
from typing import Literal

from actors.errors import RunError
from actors.preferences import antisymmetric, bradley_terry, finished_first
from actors.records import Game, Group, Judgement, Pair

MissingEos = float | Literal["below_finished"] | None
"""Type of `judging.missing_eos_score`."""


def effective_scores(group: Group, missing_eos_score: MissingEos) -> tuple[float, ...]:
    """Return the judge's scores; those of unfinished completions are replaced if `missing_eos_score` is not None.

    `below_finished` puts all of these below the group's lowest finished score, by the spread of the judge's scores,
    whatever their unit. If no completion finished, all get the lowest score of the group.
    """
    scores = [float(score) for score in _judgement(group).scores]
    finished = [completion.finished for completion in group.completions]
    if missing_eos_score is None or all(finished):
        return tuple(scores)
    if missing_eos_score == "below_finished":
        missing_eos_score = _below(
            min((s for s, ended in zip(scores, finished, strict=True) if ended), default=None), scores
        )
    return tuple(score if ended else float(missing_eos_score) for score, ended in zip(scores, finished, strict=True))


def unfinished_won(group: Group, missing_eos_score: MissingEos) -> bool | None:
    """Return whether an unfinished completion has the best score of its group; None if only one kind exists."""
    finished = [completion.finished for completion in group.completions]
    if all(finished) or not any(finished):
        return None
    scores = effective_scores(group, missing_eos_score)
    return not finished[scores.index(max(scores))]


def best_and_worst(group: Group, missing_eos_score: MissingEos) -> Pair:
    """Pair the best and the worst completion (argmax and argmin, as in Noukhovitch et al. 2024, section 3).

    Ties go to the first index. If all scores are equal, both sides are the same completion: its log-ratio is exactly 0
    for any policy and the pair has no gradient, while two different completions would add noise.
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


def game_of(group: Group, missing_eos_score: MissingEos) -> Game:
    """Build the preference game of a judged group: its players, its opponents, and the preference table.

    P(i > j) comes from the judge if it compares pairs, else from the effective scores by Bradley-Terry. With
    `below_finished`, and in compared pairs with any `missing_eos_score` but None, an unfinished completion loses
    against every finished one and ties with other unfinished ones.
    """
    scores = effective_scores(group, missing_eos_score)
    given = _judgement(group).preferences
    preferences = bradley_terry(scores) if given is None else antisymmetric(given)
    if missing_eos_score == "below_finished" or (given is not None and missing_eos_score is not None):
        preferences = finished_first(preferences, [completion.finished for completion in group.completions])
    return Game(
        lease_index=group.lease.index,
        prompt_token_ids=group.lease.prompt.token_ids,
        players=tuple(completion for completion in group.completions if not completion.opponent),
        opponents=tuple(completion for completion in group.completions if completion.opponent),
        preferences=preferences,
        scores=scores,
    )


def _below(lowest_finished: float | None, scores: list[float]) -> float:
    if lowest_finished is None:
        return min(scores)
    spread = max(scores) - min(scores)
    return min(lowest_finished - (spread or 1.0), math.nextafter(lowest_finished, -math.inf))


def _judgement(group: Group) -> Judgement:
    if group.judgement is None:
        raise RunError(
            f"the group of lease {group.lease.index} has no judgement yet; it must be judged before it is paired"
        )
    return group.judgement
