"""Preferences from files, saved data sets and hubs, and back to Parquet in one form.

Knows files, where in them a row stands, and what is done with malformed rows. It must not know tokenizers or models,
nor which preferences are worth training on: `preference_filters.py` says that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.data.preference_layouts import (
    COLUMNS,
    LAYOUTS,
    MalformedPreferenceError,
    Message,
    PreferenceRow,
    ProbabilityFrom,
    Reason,
    parse_preference,
)
from actors.data.prompts import MalformedRowError, checked_messages, checked_text
from actors.data.rows import Row, RowSource, columns_named, rows_from
from actors.errors import UsageError

__all__ = [
    "Message",
    "PreferenceRow",
    "Problem",
    "check_one_kind",
    "check_problems",
    "collect_preferences",
    "read_preferences",
    "read_samples",
    "write_preferences",
]

REPORTED_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is left out."""

    place: str
    """Path and line, or path and row."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything that was read: `len(rows) + len(problems)` rows, blank lines not counted."""

    rows: list[PreferenceRow] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each of `rows` stood."""
    problems: list[Problem] = field(default_factory=list)
    """Malformed rows, in file order."""


def read_preferences(
    source: str,
    split: str = "train",
    *,
    on_malformed: Literal["error", "skip"] = "error",
    probability_from: ProbabilityFrom = "probability",
    section: str = "",
) -> list[PreferenceRow]:
    """The preferences of `source` in file order: written by `write_preferences`, or raw in one of `LAYOUTS`.

    Args:
        source: a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, or a hub name.
        split: for sources that have several.
        on_malformed: `error` refuses a source with a malformed row, `skip` leaves it out.
        probability_from: see `parse_preference`.
        section: what errors put before the names `source`, `split` and `on_malformed`, such as `preferences.`.

    Raises:
        UsageError: the source cannot be read, rows are malformed (unless skipped), or no row is left.
    """
    collected = collect_preferences(source, split, probability_from=probability_from, section=section)
    check_problems(collected.problems, len(collected.rows), source, on_malformed, section)
    return collected.rows


def collect_preferences(
    source: str, split: str = "train", *, probability_from: ProbabilityFrom = "probability", section: str = ""
) -> Collected:
    """The same with every malformed row as a `Problem`; raises UsageError only when the source cannot be read."""
    collected = Collected()
    for row in rows_from(RowSource(source, split, section, _known_columns)):
        try:
            if row.problem is not None:
                reason: Reason = "wrong_encoding" if row.problem.startswith("not UTF-8") else "not_json"
                raise MalformedPreferenceError(reason, row.problem)
            collected.rows.append(parse_preference(row.columns, probability_from))
            collected.places.append(row.place)
        except MalformedPreferenceError as error:
            collected.problems.append(Problem(row.place, error.reason, str(error)))
    return collected


def check_problems(
    problems: Sequence[Problem], good: int, source: str, on_malformed: Literal["error", "skip"], section: str = ""
) -> None:
    """Refuses malformed rows unless they are skipped, and a source of which no row is `good`. Raises UsageError."""
    shown = problems[:REPORTED_PROBLEMS]
    lines = "".join(f"\n  {problem.place}: {problem.message}" for problem in shown)
    total = len(problems) + good
    if problems and on_malformed == "error":
        raise UsageError(
            f"{len(problems)} of {total} rows of {section}source '{source}' are malformed; the first {len(shown)}:"
            f"{lines}\nCorrect them, or set {section}on_malformed to 'skip' to leave them out."
        )
    if problems and not good:
        raise UsageError(
            f"all {total} rows of {section}source '{source}' are malformed and none is left; the first {len(shown)}:"
            f"{lines}"
        )
    if not total:
        raise UsageError(f"{section}source '{source}' holds no rows; give one with at least one preference")


def read_samples(source: str, section: str = "") -> list[tuple[str | list[Message], str]]:
    """Prompts (texts or chats) and responses, from the columns `prompt` and `response` of a source as above.

    Raises UsageError when `source` cannot be read, or any row is malformed.
    """
    samples: list[tuple[str | list[Message], str]] = []
    columns = {"column of prompts": "prompt", "column of responses": "response"}
    for row in rows_from(RowSource(source, "train", section, columns_named(columns))):
        try:
            samples.append(_sample(row))
        except MalformedRowError as error:
            raise UsageError(f"{row.place}: {error}; correct it or remove it") from error
    if not samples:
        raise UsageError(f"{section}source '{source}' holds no rows; give one with at least one sample")
    return samples


def _sample(row: Row) -> tuple[str | list[Message], str]:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    prompt, response = row.columns.get("prompt"), row.columns.get("response")
    if not isinstance(prompt, str | list) or not isinstance(response, str):
        raise MalformedRowError("'prompt' must be a text or a list of chat messages, and 'response' a text")
    response = checked_text(response, "response")
    if isinstance(prompt, str):
        return checked_text(prompt, "prompt"), response
    messages = checked_messages(prompt, "prompt")
    return [{"role": message["role"], "content": message["content"]} for message in messages], response


def check_one_kind(rows: Sequence[PreferenceRow]) -> None:
    """Raises UsageError where some prompts are texts and others chats, which one column cannot hold."""
    texts = sum(isinstance(row.prompt, str) for row in rows)
    if 0 < texts < len(rows):
        raise UsageError(
            f"{texts} prompts are texts and {len(rows) - texts} are chats, and one column holds only one kind; prepare "
            "them as two sources, or write the texts as chats of one user message"
        )


def write_preferences(path: Path, rows: Sequence[PreferenceRow]) -> None:
    """Writes `rows` as Parquet with the columns prompt, chosen, rejected, probability and id; whole or not at all.

    Raises:
        UsageError: as `check_one_kind`.
        OSError: the disk refuses.
    """
    import pyarrow
    import pyarrow.parquet

    check_one_kind(rows)
    texts = any(isinstance(row.prompt, str) for row in rows)
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = {
        "prompt": pyarrow.string() if texts or not rows else pyarrow.list_(message),
        "chosen": pyarrow.string(),
        "rejected": pyarrow.string(),
        "probability": pyarrow.float64(),
        "id": pyarrow.string(),
    }
    arrays = [pyarrow.array([getattr(row, name) for row in rows], kind) for name, kind in columns.items()]
    temporary = path.with_name(f".tmp-{path.name}")
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=list(columns)), temporary)
    os.replace(temporary, path)


def _known_columns(names: Sequence[str], place: str) -> list[str]:
    """Those of a table that make preferences; one that makes none is refused whole."""
    known = [name for name in COLUMNS if name in names]
    if not ({"chosen", "rejected"} <= set(known) or {"response_a", "response_b", "preference"} <= set(known)):
        raise UsageError(
            f"{place} has the columns {', '.join(names) or 'none'}, which make no preference; {LAYOUTS} do"
        )
    return known
