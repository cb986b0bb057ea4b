"""The policy's answers and their judgements: early and late groups of the journal. Reads only a few of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.output.journal_files import Segment, segments
from launch.output.metrics import damaged_lines
from launch.output.samples import BEFORE_AND_AFTER, Answer, read_before_and_after
from launch.report.records import Run, finite

MOST_PROMPTS = 4
_COLUMNS = ["update", "prompt_id", "prompt", "oldest_version", "completions", "scores"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion: the first of its group, so that nothing is picked."""

    prompt: str
    when: str
    text: str
    finished: bool
    score: float | None  # None if it was not judged
    others: float | None = None
    """Mean score of the whole group."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Completions of the same prompts early and late; `note` says where they are from, or why there are none."""

    pairs: Sequence[tuple[Sample | None, Sample | None]]
    note: str


def read_samples(run: Run) -> Samples:
    """Read answers before and after training, else early and late ones of the journal, else the starting policy's."""
    answers, damaged = _of_final_evaluation(run.files.path)
    if answers:
        note = "First answers of both policies to prompts of the final evaluation: none was picked for what it says."
        note += f" {damaged_lines(BEFORE_AND_AFTER, damaged)}." if damaged else ""
        return Samples(answers, note)
    found = segments(run.files.journal) if run.files.journal.is_dir() else []
    if not found:
        return _baseline(run.files.baseline, "This run has no journal that was closed, so no training samples.")
    try:
        return _from_journal(found)
    except Exception as error:  # a damaged file fails in as many ways as it can be changed
        return _baseline(run.files.baseline, f"The journal cannot be read: {error}.")


def _of_final_evaluation(directory: Path) -> tuple[list[tuple[Sample | None, Sample | None]], int]:
    try:
        rows, damaged = read_before_and_after(directory)
    except OSError:  # the journal has others
        return [], 0

    def sample(prompt: str, when: str, answer: Answer) -> Sample:
        return Sample(prompt, when, answer.text, answer.finished, finite(answer.score))

    return [
        (sample(row.prompt, "before training", row.start), sample(row.prompt, "after training", row.final))
        for row in rows[:MOST_PROMPTS]
    ], damaged


def staleness_of(run: Run) -> dict[int, int]:
    """Count groups by staleness (versions) over the closed journal; empty if there is none that can be read."""
    counts = Counter[int]()
    try:
        import pyarrow.parquet

        for segment in segments(run.files.journal):
            column = pyarrow.parquet.read_table(segment.updates, columns=["staleness"]).column("staleness")
            counts.update(age for ages in column.to_pylist() for age in ages)
    except Exception:  # as above; the section says that nothing is recorded
        return {}
    return dict(sorted(counts.items()))


def _from_journal(found: Sequence[Segment]) -> Samples:
    first, last = found[0].groups, found[-1].groups
    early: dict[str, int] = {}
    for position, (_, prompt) in enumerate(_ids(first)):
        early.setdefault(prompt, position)
    late = {prompt: position for position, (_, prompt) in enumerate(_ids(last))}
    updates = [update for update, _ in _ids(first)[:1] + _ids(last)[-1:]]
    both = [prompt for prompt in early if prompt in late and (first, early[prompt]) != (last, late[prompt])]
    if both:
        wanted = both[:MOST_PROMPTS]
        before = _samples(first, [early[prompt] for prompt in wanted])
        after = _samples(last, [late[prompt] for prompt in wanted])
        note = "The first completion of each group, early and late in the journal: none was picked for what it says."
        return Samples(list(zip(before, after, strict=True)), note)
    before = _samples(first, list(early.values())[:MOST_PROMPTS])
    if not before or updates[0] == updates[-1]:
        return Samples([(each, None) for each in before], "The journal holds one update, so there is no later sample.")
    after = _samples(last, list(late.values())[-MOST_PROMPTS:])
    pairs: list[tuple[Sample | None, Sample | None]] = [(each, None) for each in before]
    note = "No prompt is both early and late in the journal, so these are of different prompts."
    return Samples([*pairs, *((None, each) for each in after)], note)


def _ids(path: Path) -> list[tuple[int, str]]:
    """Return update and prompt of every group of a file, in order."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=["update", "prompt_id"])
    return list(zip(*(table.column(name).to_pylist() for name in ("update", "prompt_id")), strict=True))


def _samples(path: Path, positions: Sequence[int]) -> list[Sample]:
    """Return the samples at these positions of a file, in the order that is asked for."""
    rows = dict(_groups(path, set(positions)))
    return [_sample(rows[position]) for position in positions]


def _groups(path: Path, positions: set[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow.parquet

    file, start = pyarrow.parquet.ParquetFile(path), 0
    for number in range(file.num_row_groups):
        end = start + file.metadata.row_group(number).num_rows
        wanted = sorted(position - start for position in positions if start <= position < end)
        if wanted:
            rows = file.read_row_group(number, columns=_COLUMNS).take(wanted).to_pylist()
            yield from zip([start + each for each in wanted], rows, strict=True)
        start = end


def _sample(row: Mapping[str, Any]) -> Sample:
    scores = [score for score in row["scores"] if finite(score) is not None]
    completion = row["completions"][0]
    when = f"update {row['update'] + 1}, sampled by version {row['oldest_version']}"
    score = finite(row["scores"][0]) if row["scores"] else None
    mean = sum(scores) / len(scores) if scores else None
    return Sample(row["prompt"], when, completion["text"], bool(completion["finished"]), score, mean)


def _baseline(path: Path, why: str) -> Samples:
    """Return the starting policy's completions of evaluation prompts; the file names these by id alone."""
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))[:MOST_PROMPTS]
        found = [
            Sample(
                f"(evaluation prompt {group['lease']['prompt']})",
                "before training",
                str(group["completions"][0]["text"]),
                bool(group["completions"][0]["finished"]),
                None,
            )
            for group in groups
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return Samples([], why)
    return Samples([(each, None) for each in found], f"{why} The starting policy answered these before training.")
