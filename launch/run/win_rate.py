"""Win rate, reward and KL of the policy against its starting point, by the run's judge. Pure functions.

The starting policy answers the evaluation prompts once, before training; every evaluation compares fresh completions
with those. The loop samples and judges.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from actors.intervals import mean_interval, means_by, share_interval
from actors.records import Completion, Group
from actors.replay_buffer.pairing import MissingEos, effective_scores


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons in which the policy is preferred to the starting policy; a tie counts one half."""

    value: float
    low: float | None
    high: float | None  # 95% interval of the mean over prompts; None, as `low`, if there is one prompt
    n: int  # different prompts


@dataclass(frozen=True)
class Reward:
    """The judge's mean score over prompts; unfinished completions count as in training."""

    value: float
    start: float  # of the starting policy on the same prompts
    rise: float  # value - start
    low: float | None
    high: float | None
    """95% interval of the rise, paired by prompt; None, as `low`, if nothing says how far prompts vary."""
    n: int  # different prompts


def against(policy: Group, baseline: Group) -> Group:
    """Join both sides' completions of one prompt into a group for the judge, policy first."""
    return Group(policy.lease, policy.completions + baseline.completions)


def win_share(judged: Group, missing_eos_score: MissingEos) -> float:
    """Compute the share of comparisons that the policy wins, from a judged group made by `against`."""
    total = len(judged.completions)
    return share_of(judged, range(total // 2), range(total // 2, total), missing_eos_score)


def share_of(judged: Group, rows: Sequence[int], columns: Sequence[int], missing_eos_score: MissingEos) -> float:
    """Compute the share of comparisons that completions `rows` win against completions `columns`.

    A judge of pairs gives its probability per comparison; a scalar judge gives 1, 1/2 (tie) or 0.
    """
    assert judged.judgement is not None
    preferences = judged.judgement.preferences
    if preferences is not None:
        wins = [preferences[i][j] for i in rows for j in columns]
    else:
        scores = effective_scores(judged, missing_eos_score)
        wins = [0.5 * ((scores[i] > scores[j]) + (scores[i] >= scores[j])) for i in rows for j in columns]
    return sum(wins) / len(wins)


def by_prompt(groups: Sequence[Group], values: Sequence[float]) -> list[float]:
    """Average `values`, one per group, over groups of the same prompt: `means_by`."""
    return means_by((group.lease.prompt.token_ids for group in groups), values)


def win_rate(shares: Sequence[float]) -> WinRate:
    """Average the shares of different prompts, with their interval (`share_interval`)."""
    low, high = share_interval(shares) or (None, None)
    return WinRate(statistics.fmean(shares), low, high, len(shares))


def reward(judged: Sequence[Group], missing_eos_score: MissingEos) -> Reward:
    """Average the scores of policy and starting policy from groups made by `against`, and their difference.

    The interval is that of the difference on the same prompts: of shares if all scores are 0 or 1, else Student's.
    """
    scores = [effective_scores(group, missing_eos_score) for group in judged]
    halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in scores]
    sides = [by_prompt(judged, [statistics.fmean(half[side]) for half in halves]) for side in (0, 1)]
    (value, start), rises = map(statistics.fmean, sides), [own - other for own, other in zip(*sides, strict=True)]
    if all(score in (0.0, 1.0) for each in scores for score in each):
        shares = share_interval([0.5 + 0.5 * rise for rise in rises])
        interval = None if shares is None else (2.0 * shares[0] - 1.0, 2.0 * shares[1] - 1.0)
    else:
        interval = mean_interval(rises)
    low, high = interval or (None, None)
    return Reward(value, start, statistics.fmean(rises), low, high, len(rises))


def largest_gap(
    completions: Sequence[Completion], scored: Sequence[tuple[Sequence[float], Sequence[float]]], version: int
) -> float:
    """Return the largest |log policy - log behaviour| (nats) of a token that policy `version` sampled; 0 if none.

    `scored` holds the log-probs of each completion's tokens under `version` and under the reference.
    """
    gaps = (
        abs(ours - theirs)
        for completion, (policy, _) in zip(completions, scored, strict=True)
        for ours, theirs, sampled_by in zip(
            policy, completion.sampled(completion.logprobs), completion.sampled(completion.versions), strict=True
        )
        if sampled_by == version
    )
    return max(gaps, default=0.0)


def sequence_kl(policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> float:
    """Estimate KL(policy || reference) in nats per completion: the mean difference of rollouts' log-probs.

    `policy` holds the log-probs of each rollout's tokens under the version that sampled it: those of version v under
    v + n would estimate KL(v || reference) - KL(v || v + n).
    """
    return sum(sum(ours) - sum(theirs) for ours, theirs in zip(policy, reference, strict=True)) / len(policy)
