"""Win rate and KL of the policy against its own starting point, by the run's judge.

The starting policy answers the evaluation prompts once, before training; every evaluation sets fresh completions
against those. Pure functions here; who samples and who judges is the loop's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actors.pairing import effective_scores
from actors.records import Group


@dataclass(frozen=True)
class WinRate:
    """How often the policy is preferred to where it started; a tie counts one half."""

    value: float
    low: float
    high: float
    """95% interval of the mean over prompts."""
    n: int
    """Prompts, each with K completions of either side."""


def against(policy: Group, baseline: Group) -> Group:
    """Both sides' completions of one prompt as a single group for the judge: policy first, baseline second."""
    return Group(policy.lease, policy.completions + baseline.completions)


def win_share(judged: Group, missing_eos_score: float | None) -> float:
    """Share of policy-baseline comparisons that the policy wins, from a judged group made by `against`.

    Judges that compare pairs give their probability; scalar judges give 1, 1/2 (tie) or 0 per comparison.
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
    """Mean over prompts with its 95% normal interval, clipped to [0, 1]."""
    n = len(shares)
    mean = sum(shares) / n
    variance = sum((share - mean) ** 2 for share in shares) / max(1, n - 1)
    half_width = 1.96 * math.sqrt(variance / n)
    return WinRate(mean, max(0.0, mean - half_width), min(1.0, mean + half_width), n)


def sequence_kl(scored: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Monte-Carlo KL(policy || reference) in nats per completion: mean of log-prob differences on policy samples."""
    return sum(sum(policy) - sum(reference) for policy, reference in scored) / len(scored)
