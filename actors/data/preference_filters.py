"""Which preferences are worth training on: duplicates, rules on perplexity, and a split that keeps prompts apart.

Pure: numbers and rows in, decisions out, one for each row in order. It must not know files or models. A decision is the
reason why a row is left out, or None where it is kept.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from actors.data.preference_layouts import PreferenceRow, normalised, prompt_key

Selection = Literal["duplicate", "contradictory", "unlike_own_samples", "fluency_gap", "no_mistake"]
"""Why a well-formed row is left out."""
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
Split = Literal["train", "validation"]


def find_duplicates(
    rows: Sequence[PreferenceRow], *, duplicates: bool = True, contradictory: Literal["keep", "drop"] = "keep"
) -> list[Selection | None]:
    """Rows that say again, or against each other, what others say; compared after `normalised`.

    With `duplicates` every row after the first with the same prompt, chosen and rejected is a duplicate. Where a pair
    occurs both ways round, `drop` makes all its rows contradictory, because neither order is more to be believed;
    `keep` leaves both, which together say that the responses are about as good.
    """
    orders: dict[tuple[str, frozenset[str]], set[str]] = defaultdict(set)
    keys = [(prompt_key(row.prompt), normalised(row.chosen), normalised(row.rejected)) for row in rows]
    for prompt, chosen, rejected in keys:
        orders[prompt, frozenset((chosen, rejected))].add(chosen)
    seen: set[tuple[str, str, str]] = set()
    decisions: list[Selection | None] = []
    for key in keys:
        both_ways = len(orders[key[0], frozenset(key[1:])]) > 1
        if both_ways and contradictory == "drop":
            decisions.append("contradictory")
        else:
            decisions.append("duplicate" if duplicates and key in seen else None)
        seen.add(key)
    return decisions


def split_of(row: PreferenceRow, validation_fraction: float, seed: int) -> Split:
    """The side of `row`, by the hash of its normalised prompt and `seed` alone.

    So a prompt is never on both sides, and rows that are added later move no other. In expectation the share of prompts
    in validation is `validation_fraction`; of rows only roughly, where prompts have several.
    """
    digest = hashlib.sha256(f"{seed}:{prompt_key(row.prompt)}".encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else "train"


@dataclass(frozen=True, slots=True)
class PerplexityRules:
    """Which pairs teach a policy something, by their log-perplexities under it; None or False turns a rule off.

    The idea of filtering preferences by the target policy's perplexity is that of Kutalev and Markoff (2024,
    arXiv:2410.01789); these three rules are our own reading of it.
    """

    ceiling: float | None = None
    """Nats per token. Rule 1 drops a pair with a response above it, text that the policy would never produce."""
    max_gap: float | None = None
    """Nats per token. Rule 2 drops a pair whose responses differ by more, which fluency alone tells apart."""
    mistakes_only: bool = False
    """Rule 3 keeps only pairs whose rejected response is at least as likely as the chosen one: the policy's real
    mistakes."""


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What one rule did."""

    rule: Selection
    judged: int
    """Pairs that the rules before it had kept."""
    rejected: int
    """Of these."""
    rejected_alone: int
    """Of all pairs, were it the only rule."""

    @property
    def acceptance(self) -> float | None:
        """Share of the judged pairs that it kept; None where it judged none."""
        return 1.0 - self.rejected / self.judged if self.judged else None


def apply_rules(
    chosen: NDArray[np.float64], rejected: NDArray[np.float64], rules: PerplexityRules
) -> tuple[list[Selection | None], list[RuleOutcome]]:
    """Decisions on pairs with the log-perplexities `chosen` [n] and `rejected` [n] (nats per token), and what each rule
    that is on did. Rules are applied in order; a pair is left out for the first that rejects it."""
    violations: dict[Selection, NDArray[np.bool_]] = {}
    if rules.ceiling is not None:
        violations["unlike_own_samples"] = np.maximum(chosen, rejected) > rules.ceiling
    if rules.max_gap is not None:
        violations["fluency_gap"] = np.abs(chosen - rejected) > rules.max_gap
    if rules.mistakes_only:
        violations["no_mistake"] = rejected > chosen
    decisions: list[Selection | None] = [None] * len(chosen)
    outcomes = []
    left = np.ones(len(chosen), dtype=bool)
    for rule, alone in violations.items():
        here = left & alone
        for index in np.flatnonzero(here):
            decisions[index] = rule
        outcomes.append(RuleOutcome(rule, int(left.sum()), int(here.sum()), int(alone.sum())))
        left &= ~alone
    return decisions, outcomes


def ceiling_of(own: Sequence[float], quantile: float) -> float:
    """The `quantile` of the log-perplexities of the model's `own` samples, interpolated linearly between them."""
    return float(np.quantile(np.asarray(own, dtype=np.float64), quantile))
