"""Counts of a language model as a judge, and the shares that show how far to trust it.

Counts of several judges add up; shares do not, so `with_shares` computes them from the sums.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.intervals import student_t
from actors.judges.http.answers import REASONS, Abstention, Verdict

REASON_COUNTS = {"cut_off": "length", "filtered": "content_filter", "out_of_scale": "out_of_scale"}
"""Reasons of abstentions, by the name of their count."""
FREQUENT = 0.05
"""Share of answers without a verdict above which reasons and remedy are reported."""
FEWEST = 20  # answers; a share of fewer means little


@dataclass
class Counts:
    """Totals since the judge was made. A pair is two comparisons."""

    comparisons: int = 0  # orders of pairs that were needed
    ratings: int = 0  # completions whose score was needed
    remembered: int = 0  # of both, answered from memory
    verdicts: int = 0  # new ones, abstentions included
    abstentions: int = 0  # of these
    cut_off: int = 0  # of these, stopped by the limit on tokens
    filtered: int = 0  # of these, stopped by the endpoint's content filter
    out_of_scale: int = 0  # of these, with a number outside the scale or without a criterion in every try
    pairs: int = 0  # pairs with a verdict in both orders
    order_disagreements: int = 0
    """Pairs of these in which the two orders prefer different completions."""
    order_changes: int = 0
    """Pairs of these whose outcome (one, the other, neither) depends on the order."""
    first_place_groups: int = 0  # groups with pairs of these
    first_place_sum: float = 0.0
    """Sum, over these groups, of the mean preference for the completion shown first."""
    first_place_squares: float = 0.0  # sum of that mean's squares
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0  # answers whose tokens the endpoint did not report, or not as a plausible number

    def count_tokens(self, tokens: tuple[int, int] | None) -> None:
        """Add the tokens in and out of one answer; None counts as unmetered."""
        self.unmetered += tokens is None
        self.tokens_in += tokens[0] if tokens else 0
        self.tokens_out += tokens[1] if tokens else 0

    def count_question(self, mode: str) -> None:
        """Count one order of a pair, or one completion."""
        self.comparisons += mode == "pairs"
        self.ratings += mode != "pairs"

    def count_verdict(self, verdict: Verdict) -> None:
        """Count a new verdict, or the reason of an abstention."""
        self.verdicts += 1
        if isinstance(verdict, Abstention):
            self.abstentions += 1
            for name, reason in REASON_COUNTS.items():
                setattr(self, name, getattr(self, name) + (verdict.reason == reason))

    def count_orders(self, pairs: Sequence[tuple[float, float]]) -> None:
        """Count one group's pairs with a verdict in both orders. A verdict is the preference for the first shown."""
        if not pairs:
            return
        self.pairs += len(pairs)
        self.order_disagreements += sum((one - 0.5) * (other - 0.5) > 0 for one, other in pairs)
        self.order_changes += sum(_side(one) != -_side(other) for one, other in pairs)
        mean = sum(one + other for one, other in pairs) / (2 * len(pairs))
        self.first_place_groups += 1
        self.first_place_sum += mean
        self.first_place_squares += mean * mean


def with_shares(figures: Mapping[str, float]) -> dict[str, float]:
    """Add the shares to the counts of one or several judges. Shares of an ensemble's members keep their prefix.

    `abstention_rate` is a share of the answers, `order_change_rate` of the pairs. `first_place_share` is the share of
    wins of the first place, 1/2 without position bias; its 95% interval over groups is `first_place_low` to
    `first_place_high`.
    """
    told = dict(figures)
    for prefix in language_models(figures):
        counts = {key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)}
        told |= {f"{prefix}{key}": value for key, value in _shares(counts).items()}
    return told


def language_models(figures: Mapping[str, float]) -> list[str]:
    """Return the prefix of the figures of each judge that may abstain: empty, or `MEMBER.` in an ensemble."""
    return [name.removesuffix("abstentions") for name in figures if name.endswith("abstentions")]


def frequent_abstentions(figures: Mapping[str, float], prefix: str) -> str:
    """Report the share of answers without verdict, and the reasons; empty if it is small. `figures` have shares."""
    rate = figures.get(f"{prefix}abstention_rate", 0.0)
    if rate <= FREQUENT or figures.get(f"{prefix}verdicts", 0.0) < FEWEST:
        return ""
    counted = {reason: figures.get(f"{prefix}{name}", 0.0) for name, reason in REASON_COUNTS.items()}
    said = ", ".join(f"{count:,.0f} were {REASONS[reason]}" for reason, count in counted.items() if count)
    return f"{rate:.0%} of the answers had no verdict{': ' if said else ''}{said}"


def _shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Compute the shares of one judge, without those whose denominator is 0."""
    shares: dict[str, float] = {}
    pairs, groups = counts.get("pairs", 0.0), counts.get("first_place_groups", 0.0)
    if verdicts := counts.get("verdicts", 0.0):
        shares["abstention_rate"] = counts["abstentions"] / verdicts
    if pairs and groups:
        shares["order_change_rate"] = counts.get("order_changes", 0.0) / pairs
        mean = counts["first_place_sum"] / groups
        shares["first_place_share"] = mean
        if groups > 1:
            variance = max(0.0, counts["first_place_squares"] - groups * mean * mean) / (groups - 1)
            half = student_t(int(groups) - 1) * math.sqrt(variance / groups)
            shares |= {"first_place_low": max(0.0, mean - half), "first_place_high": min(1.0, mean + half)}
    return shares


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)
