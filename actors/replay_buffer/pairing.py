"""Turn a judged group into the pair or game that a loss consumes. Pure; must not import judges, buffers or losses.

Trusts judgements, which `actors/judges/worker.py` checks on arrival. Raises RunError for a group without one.
"""

from actors.errors import RunError
from actors.preferences import antisymmetric, bradley_terry, finished_first
from actors.records import Game, Group, Judgement, Pair


def effective_scores(group: Group, missing_eos_score: float | None) -> tuple[float, ...]:
    """Return the judge's scores; `missing_eos_score`, if set, replaces those of unfinished completions."""
    scores = _judgement(group).scores
    if missing_eos_score is None:
        return tuple(map(float, scores))
    return tuple(
        float(score if completion.finished else missing_eos_score)
        for score, completion in zip(scores, group.completions, strict=True)
    )


def best_and_worst(group: Group, missing_eos_score: float | None) -> Pair:
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


def game_of(group: Group, missing_eos_score: float | None) -> Game:
    """Build the preference game of a judged group: its players, its opponents, and the preference table.

    P(i > j) comes from the judge if it compares pairs, else from the effective scores by Bradley-Terry. If
    `missing_eos_score` is set, an unfinished completion loses every compared pair against a finished one and ties with
    other unfinished ones.
    """
    scores = effective_scores(group, missing_eos_score)
    given = _judgement(group).preferences
    if given is None:
        preferences = bradley_terry(scores)
    else:
        preferences = antisymmetric(given)
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


def _judgement(group: Group) -> Judgement:
    if group.judgement is None:
        raise RunError(
            f"the group of lease {group.lease.index} has no judgement yet; it must be judged before it is paired"
        )
    return group.judgement
