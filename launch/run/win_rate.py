"""Win rate, reward and KL of the policy against its starting point, by the run's judge. Pure functions.

The starting policy answers the evaluation prompts once, before training; every evaluation compares fresh completions
with those. The loop samples and judges.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from actors.records import Completion, Group
from actors.replay_buffer.pairing import effective_scores


@dataclass(frozen=True)
class WinRate:
    """How often the policy is preferred to the starting policy; a tie counts one half."""

    value: float
    low: float
    high: float  # 95% interval of the mean over prompts
    n: int  # prompts, each with K completions per side


@dataclass(frozen=True)
class Reward:
    """The judge's mean score over prompts; unfinished completions count as in training."""

    value: float
    start: float  # of the starting policy on the same prompts
    rise: float  # value - start
    low: float
    high: float  # 95% interval of the rise
    n: int  # prompts


def against(policy: Group, baseline: Group) -> Group:
    """Join both sides' completions of one prompt into a group for the judge, policy first."""
    return Group(policy.lease, policy.completions + baseline.completions)


def win_share(judged: Group, missing_eos_score: float | None) -> float:
    """Compute the share of comparisons that the policy wins, from a judged group made by `against`.

    A judge of pairs gives its probability per comparison; a scalar judge gives 1, 1/2 (tie) or 0.
    """
    half = len(judged.completions) // 2
    assert judged.judgement is not None
    rows = range(half)
    columns = range(half, len(judged.completions))
    preferences = judged.judgement.preferences
    if preferences is not None:
        wins = [preferences[i][j] for i in rows for j in columns]
    else:
        scores = effective_scores(judged, missing_eos_score)
        wins = [0.5 * ((scores[i] > scores[j]) + (scores[i] >= scores[j])) for i in rows for j in columns]
    return sum(wins) / len(wins)


def win_rate(shares: Sequence[float]) -> WinRate:
    """Average over prompts, with the 95% Wilson interval (conservative: shares vary less than coin flips)."""
    n = len(shares)
    wins = sum(shares)
    return WinRate(wins / n, *wilson_interval(wins, n), n)


def reward(judged: Sequence[Group], missing_eos_score: float | None) -> Reward:
    """Average the scores of policy and starting policy from groups made by `against`, and their difference.

    The interval is the normal one of paired differences, mean ± 1.96 s / sqrt(n) over prompts; a point if n = 1.
    """
    sides = []
    for group in judged:
        scores, half = effective_scores(group, missing_eos_score), len(group.completions) // 2
        sides.append((statistics.fmean(scores[:half]), statistics.fmean(scores[half:])))
    rises = [policy - start for policy, start in sides]
    rise, n = statistics.fmean(rises), len(rises)
    half_width = 1.96 * statistics.stdev(rises) / math.sqrt(n) if n > 1 else 0.0
    value, start = (statistics.fmean(side) for side in zip(*sides, strict=True))
    return Reward(value, start, rise, rise - half_width, rise + half_width, n)


def wilson_interval(wins: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion (E. B. Wilson, JASA 22, 1927): 95% for z = 1.96.

        (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),   p = wins / n

    Unlike p ± z s/sqrt(n) it stays inside [0, 1] and does not shrink to a point at p = 0 or 1. `wins` may be fractional
    (a tie counts one half): outcomes in [0, 1] vary at most as much as wins and losses with the same mean, so the
    interval is then too wide, never too narrow.

    Returns (0, 1) for n = 0. Raises ValueError unless 0 <= wins <= n.
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


def largest_gap(
    completions: Sequence[Completion], scored: Sequence[tuple[Sequence[float], Sequence[float]]], version: int
) -> float:
    """Return the largest |log policy - log behaviour| (nats) of a token that policy `version` sampled; 0 if none.

    `scored` holds the log-probs of each completion's tokens under `version` and under the reference.
    """
    gaps = (
        abs(ours - theirs)
        for completion, (policy, _) in zip(completions, scored, strict=True)
        for ours, theirs, sampled_by in zip(policy, completion.logprobs, completion.versions, strict=True)
        if sampled_by == version
    )
    return max(gaps, default=0.0)


def sequence_kl(scored: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Estimate KL(policy || reference) in nats per completion from rollouts: the mean log-prob difference."""
    return sum(sum(policy) - sum(reference) for policy, reference in scored) / len(scored)
