"""The account of a preparation: `report.json`, with histograms, and the table in the terminal.

Names in the file are relied on: add, never rename. Counts rows; must not decide on them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from actors.data.preference_filters import SELECTIONS, RuleOutcome, Selection, Split
from actors.data.preference_layouts import REASONS, PreferenceRow, Reason
from actors.data.preferences import PreferenceColumns
from actors.foreign.text import shown
from launch.data.config import DataConfig
from launch.data.store import PairStore

BINS = 40
LEFT_OUT: tuple[Reason | Selection, ...] = (*REASONS, *SELECTIONS)
"""Every reason, in the order of the checks."""
MEANINGS: dict[Reason | Selection, str] = {
    "not_json": "not a JSON object",
    "wrong_encoding": "not UTF-8",
    "missing_column": "a column is missing",
    "wrong_type": "a column has another type",
    "bad_conversation": "not a chat with one response",
    "lost_text": "the chat template or an end loses text",
    "empty_prompt": "the prompt is empty",
    "empty_response": "a response is empty",
    "identical_pair": "chosen and rejected are the same",
    "unread_content": "a message has content that is not read",
    "contrary_scores": "the rejected response has the higher score",
    "no_pair": "no row of its prompt has the other label",
    "long_prompt": "the prompt is too long",
    "long_response": "a response is too long",
    "duplicate": "repeats an earlier row",
    "contradictory": "occurs both ways round",
    "unlike_own_samples": "rule 1: text the model would never produce",
    "fluency_gap": "rule 2: fluency alone tells them apart",
    "no_mistake": "rule 3: the model already prefers the chosen",
}


@dataclass(slots=True)
class Pair:
    """A well-formed row and the decision on it. `launch/data/prepare.py` fills it in."""

    store: PairStore = field(repr=False)
    number: int  # in the store
    place: str  # path and line, or path and row
    tokens: tuple[int, int, int] | None = None  # counted in prompt, chosen and rejected; None without a tokenizer
    log_perplexities: tuple[float, float] | None = None
    """Values of chosen and rejected (nats per token); None without a model, or if the row was left out before."""
    left_out: Reason | Selection | None = None  # None while it is kept
    why: str = ""

    @property
    def row(self) -> PreferenceRow:
        return self.store.row(self.number)

    @property
    def split(self) -> Split:
        return self.store.sides[self.number]


@dataclass(frozen=True, slots=True)
class OwnSamples:
    """The model's own responses, source of rule 1's ceiling."""

    count: int
    quantile: float
    mean_log_perplexity: float  # nats per token


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts before and after the filters in the same bins."""

    title: str
    unit: str
    logarithmic: bool  # whether the bins have equal ratios
    edges: list[float]
    """[bins + 1], rising; a bin holds its left edge, the last one both."""
    before: list[int]  # [bins]
    after: list[int]  # [bins]; never more than `before`
    marks: tuple[float, ...] = ()  # thresholds of filters


@dataclass(frozen=True, slots=True)
class DataReport:
    """`read` = `kept` + the sum of `left_out`, and `kept` = the sum of `splits`."""

    source: str
    split: str
    columns: list[str]  # those that were read of each layout
    unread_columns: list[str]
    read: int
    kept: int
    left_out: dict[str, int]  # by every reason, 0 included
    splits: dict[str, int]
    model: str | None
    ceiling: float | None
    """Nats per token; None if rule 1 is off."""
    own_samples: OwnSamples | None
    rules: list[RuleOutcome]
    histograms: dict[str, Histogram]

    def as_json(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        data = asdict(self)
        for entry, outcome in zip(data["rules"], self.rules, strict=True):
            entry["acceptance"] = outcome.acceptance
        return data

    def renderable(self) -> Group:
        """Draw tables for a terminal: rows by reason, and the effect of each rule."""
        rows = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(no_wrap=True)
        rows.add_column(style="dim")
        rows.add_row(f"{self.read:,}", "read", Text(shown(f"{self.source}, split {self.split}")))
        for layout in self.columns:
            rows.add_row("", "columns", Text(shown(layout)))
        if self.unread_columns:
            rows.add_row("", "not read", Text(shown(", ".join(self.unread_columns))))
        for reason in LEFT_OUT:
            if self.left_out[reason]:
                rows.add_row(f"-{self.left_out[reason]:,}", reason, MEANINGS[reason])
        parts = ", ".join(f"{count:,} {name}" for name, count in self.splits.items())
        rows.add_row(Text(f"{self.kept:,}", style="bold"), Text("kept", style="bold"), Text(shown(parts)))
        if not self.rules:
            return Group(rows)
        rules = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("rule", "judged", "rejected", "acceptance", "rejected alone"):
            rules.add_column(name, justify="left" if name == "rule" else "right")
        for outcome in self.rules:
            share = "" if outcome.acceptance is None else f"{outcome.acceptance:.1%}"
            counts = (f"{outcome.judged:,}", f"{outcome.rejected:,}", share, f"{outcome.rejected_alone:,}")
            rules.add_row(Text(shown(outcome.rule)), *counts)
        return Group(rows, "", rules)


def make_report(
    pairs: Sequence[Pair],
    malformed: Counter[str],
    config: DataConfig,
    columns: PreferenceColumns,
    ceiling: float | None,
    own_samples: OwnSamples | None,
    rules: Sequence[RuleOutcome],
) -> DataReport:
    """Count `pairs` and, by reason, the `malformed` rows that never became one."""
    counts = malformed + Counter(pair.left_out for pair in pairs if pair.left_out is not None)
    kept = [pair for pair in pairs if pair.left_out is None]
    return DataReport(
        source=config.source,
        split=config.split,
        columns=columns.layouts(),
        unread_columns=columns.unread(),
        read=len(pairs) + malformed.total(),
        kept=len(kept),
        left_out={reason: counts[reason] for reason in LEFT_OUT},
        splits={side: sum(pair.split == side for pair in kept) for side in ("train", "validation")},
        model=config.model,
        ceiling=ceiling,
        own_samples=own_samples,
        rules=list(rules),
        histograms=_histograms(pairs, ceiling, config.filters.max_gap),
    )


def histogram(
    title: str,
    unit: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    lengths: bool = False,
    marks: Sequence[float] = (),
) -> Histogram:
    """Count `before`, at least one value, and `after`, a part of it.

    `lengths` are whole numbers from 1: one bin for each if they are few, else bins of equal ratio. Other values get
    bins of equal width.
    """
    low, high = float(min(before)), float(max(before))
    logarithmic = lengths and high - low >= BINS
    if logarithmic:
        edges = np.geomspace(low, high, BINS + 1).tolist()
    elif lengths:
        edges = np.arange(low - 0.5, high + 1.0).tolist()
    else:
        edges = np.linspace(low, high, BINS + 1).tolist() if high > low else [low - 0.5, low + 0.5]
    # geomspace and linspace round: the extremes must not fall out.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts = [np.histogram(values, edges)[0].tolist() for values in (before, after)]
    return Histogram(title, unit, logarithmic, edges, counts[0], counts[1], tuple(marks))


def _histograms(pairs: Sequence[Pair], ceiling: float | None, max_gap: float | None) -> dict[str, Histogram]:
    """Count lengths of all well-formed rows, and log-perplexities of all rows that the rules judged."""
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
        return pair.tokens
    prompt, chosen, rejected = pair.store.lengths[3 * pair.number : 3 * pair.number + 3]
    return prompt, chosen, rejected
