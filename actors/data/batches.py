"""Rows in batches, as a source yields them: cheap to send to another process, and decoded only by their reader.

Must not know which columns a row should have, or where sources lie.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from actors.data.formats import record_of_line, suffix_of
from actors.errors import UsageError

ROWS_PER_BATCH = 1024
BYTES_PER_BATCH = 2 << 20
"""Bytes of lines that end a batch before it has its full number of rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    id: str
    """`<file or source name>:<row>`; JSONL lines count from 1 and table rows from 0, as their tools count them."""
    place: str
    """Name of the row in errors: path and line, or path and row."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Reason why the row cannot be read; None if it can."""


class Batch(Protocol):
    """Some consecutive rows of a source."""

    @property
    def work(self) -> float:
        """Return the work of tokenising this batch, as a share of a full batch's work."""
        ...

    def rows(self) -> Iterator[Row]:
        """Decode the rows."""
        ...


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows that their reader has already decoded."""

    read: Sequence[Row]

    @property
    def work(self) -> float:
        return len(self.read) / ROWS_PER_BATCH

    def rows(self) -> Iterator[Row]:
        return iter(self.read)


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a JSONL file by number; None for a line that is too long to be read."""

    file: Path
    lines: Sequence[tuple[int, bytes | None]]

    @property
    def work(self) -> float:
        size = sum(len(line or b"") for _, line in self.lines)
        return max(len(self.lines) / ROWS_PER_BATCH, size / BYTES_PER_BATCH)

    def rows(self) -> Iterator[Row]:
        name = self.file.name
        for number, line in self.lines:
            record = record_of_line(number, line)
            if record is not None:
                yield Row(f"{name}:{number}", f"{self.file}:{number}", record.columns or {}, record.problem)


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Rows of a Parquet file, from row `first` on."""

    file: Path
    place: str
    """Name of the file in errors about the whole file."""
    first: int
    content: Any  # pyarrow.RecordBatch

    @property
    def work(self) -> float:
        return float(self.content.num_rows / ROWS_PER_BATCH)

    def rows(self) -> Iterator[Row]:
        """Decode the rows. Raises UsageError if the file is damaged."""
        names = self.content.schema.names
        with reading_parquet(self.place):
            for number, scalars in enumerate(zip(*self.content.columns, strict=True), self.first):
                yield _arrow_row(self.file, number, dict(zip(names, scalars, strict=True)))


@contextmanager
def reading_parquet(place: str) -> Iterator[None]:
    """Turn pyarrow's errors into UsageError."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise UsageError(f"{place} is not a readable Parquet file: {str(error).rstrip('.')}; write it again") from error


def batches_of_rows(rows: Iterable[Row]) -> Iterator[ReadRows]:
    """Group rows into batches."""
    rows = iter(rows)
    while read := list(islice(rows, ROWS_PER_BATCH)):
        yield ReadRows(read)


def batches_of_lines(file: Path, lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Lines]:
    """Group the lines of a JSONL file into batches, limited by number and size."""
    held: list[tuple[int, bytes | None]] = []
    size = 0
    for number, line in lines:
        held.append((number, line))
        size += len(line or b"")
        if len(held) == ROWS_PER_BATCH or size >= BYTES_PER_BATCH:
            yield Lines(file, held)
            held, size = [], 0
    if held:
        yield Lines(file, held)


def row_of_record(file: Path, number: int, columns: Mapping[str, Any] | None, problem: str | None) -> Row:
    """Return a record of a text file as a row, with its id and its name in errors."""
    document = suffix_of(file).startswith(".json") and not suffix_of(file).startswith(".jsonl")
    place = f"{file} item {number}" if document else f"{file}:{number}"
    return Row(f"{file.name}:{number}", place, columns or {}, problem)


def _arrow_row(file: Path, number: int, scalars: Mapping[str, Any]) -> Row:
    row_id, place = f"{file.name}:{number}", f"{file} row {number}"
    try:
        return Row(row_id, place, {name: scalar.as_py() for name, scalar in scalars.items()})
    except UnicodeDecodeError as error:
        return Row(row_id, place, problem=f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, OverflowError, RecursionError) as error:  # such as a date that Python cannot hold
        return Row(row_id, place, problem=f"not readable: {error}")
