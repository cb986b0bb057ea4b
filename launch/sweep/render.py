"""The results of a sweep as text: a table for the terminal and in Markdown, all figures in CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from launch.output.board import clock
from launch.output.metrics import damaged_lines
from launch.sweep.table import Estimate, Results, TableRow

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table: a figure, and how its numbers are written."""

    title: str
    figure: str
    write: Callable[[float], str]
    half_width: Callable[[float], str] | None = None  # of the interval; None: it is not shown
    of_difference: bool = False
    brief: bool = True
    """True if the terminal shows the column too."""


def columns(results: Results) -> list[Column]:
    """Return the columns whose figure any row has."""
    quality = results.quality
    found = []
    if quality is not None:
        found = [
            Column(quality.title, quality.name, _three, _three),
            Column("difference", quality.name, _signed, _three, of_difference=True),
            Column("mean over updates", "area_updates", _three, _three, brief=False),
            Column("mean over tokens", "area_tokens", _three, _three, brief=False),
        ]
    found += [
        Column("KL (nats)", "kl", _two, _two),
        Column("win rate", "win_rate", _three, _three),
        Column("wall time", "wall_seconds", clock),
        Column("learner trains", "share.learner.training", _percent, brief=False),
        Column("learner waits", "share.learner.waiting", _percent, brief=False),
        Column("tokens trained on", "trained_share", _percent, brief=False),
    ]
    found = list(dict.fromkeys(found))  # the quality may be the win rate
    return [column for column in found if any(_of(row, column) for row in results.rows)]


def terminal_table(results: Results) -> Table:
    """Return the main columns of the table, for a terminal."""
    shown = [column for column in columns(results) if column.brief]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for axis in results.axes:
        table.add_column(axis, no_wrap=True)
    for title in ("runs", *(column.title for column in shown)):
        table.add_column(title, justify="right")
    for row in results.rows:
        table.add_row(*map(Text, _cells(row, shown)))
    return table


def markdown(results: Results, notes: list[str]) -> str:
    """Return the table and its notes in Markdown."""
    shown = columns(results)
    titles = [*results.axes, "runs", *(column.title for column in shown)]
    lines = [f"# {results.name}", "", _bar(titles), "|" + "---|" * len(results.axes) + "---:|" * (len(shown) + 1)]
    lines += [_bar(_cells(row, shown)) for row in results.rows]
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)]) + "\n"


def notes(results: Results) -> list[str]:
    """Say what the table's numbers are, what is missing, and which runs failed."""
    said = ["Means over seeds ± half the 95% interval (Student's t); one seed has none."]
    if results.quality is not None:
        better = "lower" if results.quality.lower_is_better else "higher"
        said.append(f"{results.quality.title.capitalize()}: {better} is better.")
    compared = {row.name: row.compared_with for row in results.rows if row.compared_with is not None}
    if compared:
        with_one = len(set(compared.values())) == 1
        other = f"row {next(iter(compared.values()))}" if with_one else "the row with the compared labels"
        said.append(f"Difference: to {other}, paired by seed.")
    resumed = sum(each.resumed for each in results.outcomes if each.status == "completed")
    if resumed:
        said.append(f"Times and shares leave out runs that were resumed ({resumed}), whose first part is not timed.")
    for each in results.outcomes:
        if each.status != "completed":
            said.append(f"{each.row}/seed-{each.seed}: {each.status}" + (f": {each.error}" if each.error else ""))
        if each.damaged:
            said.append(f"{damaged_lines(f'{each.directory}/metrics.jsonl', each.damaged)}.")
    return said


def as_csv(results: Results) -> str:
    """Return one line for each row, with every figure: mean, ends of the interval, and the difference's."""
    names = sorted({name for row in results.rows for name in row.figures})
    parts = ("", "_low", "_high")
    differences = [f"{name}_difference" for name in names]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{name}{part}" for name in [*names, *differences] for part in parts]
    writer.writerow([*results.axes, "runs", "compared_with", *heads])
    for row in results.rows:
        estimates = [row.figures.get(name) for name in names] + [(row.differences or {}).get(name) for name in names]
        values = [value for each in estimates for value in _ends(each)]
        writer.writerow([*row.labels.values(), row.runs, row.compared_with or "", *values])
    return file.getvalue()


def as_json(results: Results) -> str:
    """Return every run and every row as JSON."""
    record: dict[str, Any] = asdict(results)
    return json.dumps(record, indent=1) + "\n"


def _cells(row: TableRow, shown: list[Column]) -> Iterator[str]:
    yield from row.labels.values()
    yield f"{row.runs}" if row.runs == row.planned else f"{row.runs} of {row.planned}"
    for column in shown:
        found = _of(row, column)
        if found is None:
            yield MISSING
            continue
        text = column.write(found.mean)
        if column.half_width is not None and found.high is not None:
            text += f" ± {column.half_width(found.high - found.mean)}"
        yield text


def _of(row: TableRow, column: Column) -> Estimate | None:
    return ((row.differences or {}) if column.of_difference else row.figures).get(column.figure)


def _ends(each: Estimate | None) -> list[float | str]:
    if each is None:
        return ["", "", ""]
    return ["" if value is None else value for value in (each.mean, each.low, each.high)]


def _bar(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"
