"""What a preparation of preference data did: `report.json`, the table in the terminal, the histograms.

Names in the file are relied on: add, never rename. Knows counts and numbers, not how they came about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from actors.data.preference_filters import SELECTIONS, RuleOutcome, Selection, Split
from actors.data.preference_layouts import REASONS, PreferenceRow, Reason
from actors.data.preference_tokens import PreferenceTokens
from launch.data.histograms import Histogram, histogram

LEFT_OUT: tuple[Reason | Selection, ...] = (*REASONS, *SELECTIONS)
"""Every reason, in the order in which rows are tried."""
MEANINGS: dict[Reason | Selection, str] = {
    "not_json": "not a JSON object",
    "wrong_encoding": "not UTF-8",
    "missing_column": "a column is missing",
    "wrong_type": "a column of another type",
    "bad_conversation": "no chat with one response",
    "empty_prompt": "the prompt is empty",
    "empty_response": "a response is empty",
    "identical_pair": "chosen and rejected are the same",
    "long_prompt": "the prompt is too long",
    "long_response": "a response is too long",
    "duplicate": "said before",
    "contradictory": "said both ways round",
    "unlike_own_samples": "rule 1: text the model would never produce",
    "fluency_gap": "rule 2: told apart by fluency",
    "no_mistake": "rule 3: the model prefers the chosen already",
}


@dataclass(slots=True)
class Pair:
    """A well-formed row on its way. Made and changed by `launch/data/prepare.py`."""

    row: PreferenceRow
    place: str
    """Path and line, or path and row."""
    tokens: PreferenceTokens | None = None
    """None without a tokenizer."""
    log_perplexities: tuple[float, float] | None = None
    """Of chosen and rejected, nats per token; None without a model, and where the row was left out before."""
    left_out: Reason | Selection | None = None
    """None while it is kept."""
    why: str = ""
    split: Split = "train"
    """Of a row that is kept."""


@dataclass(frozen=True, slots=True)
class OwnSamples:
    """The responses that rule 1's ceiling was taken from."""

    count: int
    quantile: float
    mean_log_perplexity: float
    """Nats per token."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """`read` = `kept` + the sum of `left_out`, and `kept` = the sum of `splits`."""

    source: str
    split: str
    read: int
    kept: int
    left_out: dict[str, int]
    """By every reason, 0 included."""
    splits: dict[str, int]
    model: str | None
    ceiling: float | None
    """Nats per token; None where rule 1 is off."""
    own_samples: OwnSamples | None
    rules: list[RuleOutcome]
    histograms: dict[str, Histogram]

    def as_json(self) -> dict[str, Any]:
        """What `report.json` holds."""
        data = asdict(self)
        for entry, outcome in zip(data["rules"], self.rules, strict=True):
            entry["acceptance"] = outcome.acceptance
        return data

    def renderable(self) -> Group:
        """Tables for a terminal: what became of the rows, and what each rule did."""
        rows = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(no_wrap=True)
        rows.add_column(style="dim")
        rows.add_row(f"{self.read:,}", "read", Text(f"{self.source}, split {self.split}"))
        for reason in LEFT_OUT:
            if self.left_out[reason]:
                rows.add_row(f"-{self.left_out[reason]:,}", reason, MEANINGS[reason])
        parts = ", ".join(f"{count:,} {name}" for name, count in self.splits.items())
        rows.add_row(Text(f"{self.kept:,}", style="bold"), Text("kept", style="bold"), parts)
        if not self.rules:
            return Group(rows)
        rules = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("rule", "judged", "rejected", "acceptance", "rejected alone"):
            rules.add_column(name, justify="left" if name == "rule" else "right")
        for outcome in self.rules:
            share = "" if outcome.acceptance is None else f"{outcome.acceptance:.1%}"
            counts = (f"{outcome.judged:,}", f"{outcome.rejected:,}", share, f"{outcome.rejected_alone:,}")
            rules.add_row(outcome.rule, *counts)
        return Group(rows, "", rules)


def make_report(
    pairs: Sequence[Pair],
    malformed: Counter[str],
    *,
    source: str,
    split: str,
    model: str | None = None,
    ceiling: float | None = None,
    max_gap: float | None = None,
    own_samples: OwnSamples | None = None,
    rules: Sequence[RuleOutcome] = (),
) -> DataReport:
    """Counts `pairs` and the `malformed` rows that never became one, by reason."""
    counts = malformed + Counter(pair.left_out for pair in pairs if pair.left_out is not None)
    kept = [pair for pair in pairs if pair.left_out is None]
    return DataReport(
        source=source,
        split=split,
        read=len(pairs) + malformed.total(),
        kept=len(kept),
        left_out={reason: counts[reason] for reason in LEFT_OUT},
        splits={side: sum(pair.split == side for pair in kept) for side in ("train", "validation")},
        model=model,
        ceiling=ceiling,
        own_samples=own_samples,
        rules=list(rules),
        histograms=_histograms(pairs, ceiling, max_gap),
    )


def _histograms(pairs: Sequence[Pair], ceiling: float | None, max_gap: float | None) -> dict[str, Histogram]:
    """Of lengths of all well-formed rows, and of log-perplexities of all that the rules judged; before and after."""
    panels: dict[str, Histogram] = {}
    if not pairs:
        return panels
    unit = "tokens" if any(pair.tokens for pair in pairs) else "characters"
    counted = [pair for pair in pairs if pair.tokens] or pairs
    lengths = np.array([_lengths(pair) for pair in counted])
    kept = np.array([pair.left_out is None for pair in counted])
    for column, name in enumerate(("prompt", "chosen", "rejected")):
        values = lengths[:, column]
        panels[f"{name}_length"] = histogram(
            f"{name} length", unit, values.tolist(), values[kept].tolist(), lengths=True
        )
    judged = [pair for pair in pairs if pair.log_perplexities]
    if not judged:
        return panels
    scores = np.array([pair.log_perplexities for pair in judged])
    kept = np.array([pair.left_out is None for pair in judged])
    gaps = [] if max_gap is None else [-max_gap, max_gap]
    for name, title, values, marks in (
        ("chosen_log_perplexity", "chosen log-ppl", scores[:, 0], [] if ceiling is None else [ceiling]),
        ("rejected_log_perplexity", "rejected log-ppl", scores[:, 1], [] if ceiling is None else [ceiling]),
        ("log_perplexity_difference", "log-ppl, chosen - rejected", scores[:, 0] - scores[:, 1], gaps),
    ):
        panels[name] = histogram(title, "nats per token", values.tolist(), values[kept].tolist(), marks=marks)
    return panels


def _lengths(pair: Pair) -> tuple[int, int, int]:
    if pair.tokens is not None:
        return len(pair.tokens.prompt), len(pair.tokens.chosen), len(pair.tokens.rejected)
    prompt = pair.row.prompt
    text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
    return len(text), len(pair.row.chosen), len(pair.row.rejected)
