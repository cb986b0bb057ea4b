"""Choose the preferences worth training on: find duplicates, apply rules on perplexity, split by prompt.

Pure: numbers and rows in, one decision per row out: the reason why the row is left out, or None if it is kept. Must not
know files or models.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from actors.data.preference_layouts import PreferenceRow
from actors.data.rows import held_out

Selection = Literal["duplicate", "contradictory", "unlike_own_samples", "fluency_gap", "no_mistake"]
"""Reasons to leave out a well-formed row."""
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
Split = Literal["train", "validation"]
DIGEST = 16  # bytes


def duplicates_among(
    keys: Sequence[bytes], *, duplicates: bool = True, contradictory: Literal["keep", "drop"] = "keep"
) -> list[Selection | None]:
    """Find rows that repeat or contradict others, by their `comparison_key`.

    With `duplicates` every row after the first with the same prompt, chosen and rejected is a duplicate. If a pair
    occurs both ways round, `drop` makes all its rows contradictory, because neither order is more credible; `keep`
    leaves both, which together say that the responses are about equally good.
    """
    orders: dict[tuple[bytes, frozenset[bytes]], set[bytes]] = defaultdict(set)
    if contradictory == "drop":
        for key in keys:
            orders[_unordered(key)].add(key[DIGEST : 2 * DIGEST])
    seen: set[bytes] = set()
    decisions: list[Selection | None] = []
    for key in keys:
        if contradictory == "drop" and len(orders[_unordered(key)]) > 1:
            decisions.append("contradictory")
        else:
            decisions.append("duplicate" if duplicates and key in seen else None)
        seen.add(key)
    return decisions


def comparison_key(prompt: str, chosen: str, rejected: str) -> bytes:
    """Shorten the `keys` of a row to 48 bytes: a million whole rows would fill the memory."""
    return b"".join(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()
        for text in (prompt, chosen, rejected)
    )


def prompt_of(key: bytes) -> bytes:
    """Return the part of a `comparison_key` that stands for the prompt."""
    return key[:DIGEST]


def _unordered(key: bytes) -> tuple[bytes, frozenset[bytes]]:
    return prompt_of(key), frozenset((key[DIGEST : 2 * DIGEST], key[2 * DIGEST :]))


def split_of(row: PreferenceRow, validation_fraction: float, seed: int) -> Split:
    """Return whether `row` is in training or validation, by the hash of its normalised prompt and `seed` alone.

    A prompt is on one side only, and new rows move no other. `validation_fraction` is the expected share of prompts;
    the share of rows differs if prompts have several.
    """
    return side_of(row.keys[0], validation_fraction, seed)


def side_of(prompt: str, validation_fraction: float, seed: int) -> Split:
    """Return the result of `split_of` for a row with this `prompt_key`."""
    return "validation" if held_out(f"{seed}:{prompt}".encode(), validation_fraction) else "train"


@dataclass(frozen=True, slots=True)
class PerplexityRules:
    """Rules on pairs by their log-perplexities under the policy; None or False turns a rule off.

    Kutalev and Markoff (2024, arXiv:2410.01789) filter preferences by the target policy's perplexity; these three rules
    are our reading of it.
    """

    ceiling: float | None = None
    """Nats per token. Rule 1 drops a pair with a response above it: the policy would never produce that text."""
    max_gap: float | None = None
    """Nats per token. Rule 2 drops a pair whose responses differ by more: fluency alone separates them."""
    mistakes_only: bool = False
    """True if rule 3 keeps only the policy's real mistakes: pairs whose rejected response is at least as likely as the
    chosen one."""


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """The effect of one rule."""

    rule: Selection
    judged: int  # pairs that the rules before it had kept
    rejected: int  # of these
    rejected_alone: int
    """Pairs that this rule would reject of all pairs, if it were the only rule."""

    @property
    def acceptance(self) -> float | None:
        """Return the share of the judged pairs that the rule kept; None if it judged no pair."""
        return 1.0 - self.rejected / self.judged if self.judged else None


def apply_rules(
    chosen: NDArray[np.float64], rejected: NDArray[np.float64], rules: PerplexityRules
) -> tuple[list[Selection | None], list[RuleOutcome]]:
    """Apply the active rules in order to the log-perplexities `chosen` [n] and `rejected` [n] (nats per token).

    Returns one decision per pair, the first rule that rejects it, and each rule's effect.
    """
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
    """Return the `quantile` of the log-perplexities of the model's `own` samples, interpolated linearly."""
    return float(np.quantile(np.asarray(own, dtype=np.float64), quantile))
