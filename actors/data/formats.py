"""Records of one file: JSON lines, a JSON document, comma- or tab-separated values; each may be gzipped.

A record that cannot be read carries its problem. Must not know which columns a record should have.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from actors.foreign.documents import LFS_POINTER, RepeatedKeyError, no_json, unique_keys
from actors.foreign.text import many

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", *TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
ALLOWED = ".jsonl (one JSON object per line), .json, .csv and .tsv, each also as .gz, and .parquet"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
"""Separators of cells, with the nouns that errors use for them."""
LONGEST_LINE = 64 * 2**20  # bytes; longer ones are not held in memory


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its `columns`, or its `problem`."""

    number: int
    """Number of the line on which it begins, from 1; in a JSON document number of the item, from 0."""
    columns: dict[str, Any] | None = None
    problem: str | None = None


def suffix_of(file: Path) -> str:
    """Return the ending that names the format, such as `.csv.gz`."""
    last = file.suffix.lower()
    return f"{Path(file.stem).suffix.lower()}.gz" if last == ".gz" else last


def data_files(directory: Path) -> list[Path]:
    """Return the .jsonl and .parquet files; without any, all of the other formats, as .json may describe the data."""
    files = sorted(file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    return [file for file in files if suffix_of(file) in (".jsonl", ".parquet")] or [
        file for file in files if suffix_of(file) in SUFFIXES
    ]


def wrong_content(head: bytes, suffix: str) -> str | None:
    """Say why the first bytes of a file do not fit its suffix; None if they may fit."""
    for start, what in _STARTS.items():
        if head.startswith(start) and not suffix.endswith(_ENDINGS.get(start, ("none",))):
            return what
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in head[2:6]:
        return "is text in UTF-16; save it as UTF-8"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:9].lower() in (b"<!doctype", b"<html>") or text[:5].lower() == b"<html":
        return "is a web page; download the file itself"
    if suffix == ".jsonl" and re.match(rb"\[\s*\{", text):
        return "is one JSON list instead of an object in each line; let its name end in .json"
    if suffix == ".jsonl" and re.match(rb'\{\s*\n\s*"', text):
        return "has objects of several lines; write each in one line, as `jq -c . FILE` does"
    return None


_STARTS = {
    b"\x1f\x8b": "is gzipped; let its name end in .gz",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    LFS_POINTER: "is a Git LFS pointer, not the file itself; run `git lfs pull`",
}
"""Errors for files whose suffix does not fit their first bytes, by these bytes."""
_ENDINGS = {b"\x1f\x8b": (".gz",), b"PAR1": (".parquet",)}
"""Suffixes that promise these first bytes."""


def records(file: Path) -> Iterator[Record]:
    """Read all records of a file that ends in one of `SUFFIXES` but `.parquet`. Raises OSError."""
    suffix = suffix_of(file)
    number = 0
    with closing(gzip.open(file) if suffix.endswith(".gz") else file.open("rb")) as content:
        try:
            for record in _READERS[suffix.removesuffix(".gz")](content):
                number = record.number
                yield record
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Record(number + 1, problem=f"not readable: the compressed file is damaged from here on: {error}")


def numbered_lines(content: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number from 1; None for a line longer than `LONGEST_LINE`."""
    number = 0
    while line := content.readline(LONGEST_LINE):
        number += 1
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = content.readline(LONGEST_LINE)
        yield number, None


def _json_lines(content: BinaryIO) -> Iterator[Record]:
    """Decode line by line, so that an error names its line. Skip blank lines."""
    for number, line in numbered_lines(content):
        record = record_of_line(number, line)
        if record is not None:
            yield record


def record_of_line(number: int, line: bytes | None) -> Record | None:
    """Decode a line of JSONL as `numbered_lines` yields it; None if it is blank."""
    if line is None:
        return Record(number, problem=f"not JSON: the line is longer than {LONGEST_LINE} bytes")
    try:
        # Editors may put a byte-order mark at the start of the file.
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        columns = json.loads(text, object_pairs_hook=unique_keys) if text else None
    except UnicodeDecodeError as error:
        return Record(number, problem=f"not UTF-8: {error.reason} at byte {error.start} of the line; save it as UTF-8")
    except (ValueError, RecursionError) as error:  # also an integer of more digits than Python converts
        of_python = text.startswith("{'")
        needed = (
            "it is as Python prints it: write it with json.dumps" if of_python else "each line must be one JSON object"
        )
        return Record(number, problem=_problem(error, needed))
    return _object(number, columns, "each line") if text else None


def _problem(error: ValueError | RecursionError, needed: str) -> str:
    """Say why a text was not decoded. A text with a repeated key is JSON, so it gets its own message."""
    return str(error) if isinstance(error, RepeatedKeyError) else f"not JSON: {no_json(error)}; {needed}"


def _object(number: int, value: Any, each: str) -> Record:
    if isinstance(value, dict):
        return Record(number, value)
    return Record(number, problem=f"a JSON {type(value).__name__}; {each} must be one JSON object")


def _json_document(content: BinaryIO) -> Iterator[Record]:
    """Read a list of objects, or an object that holds one such list. Also reads JSON lines in a .json file."""
    raw = content.read()
    try:
        document = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        yield Record(0, problem=f"not UTF-8: {error.reason} at byte {error.start}")
        return
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            content.seek(0)
            yield from _json_lines(content)
        else:
            yield Record(0, problem=_problem(error, "the file must be one JSON list, or an object with one"))
        return
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) != 1:
            problem = f"a JSON object with {len(lists)} lists; the file must be one list, or an object with one"
            yield Record(0, problem=problem)
            return
        (document,) = lists
    if not isinstance(document, list):
        document = [document]
    for number, item in enumerate(document):
        yield _object(number, item, "each item")


def _separated(content: BinaryIO, delimiter: str) -> Iterator[Record]:
    """Read a header and rows; an empty cell is null. A row with more or fewer cells than the header has a problem."""
    csv.field_size_limit(LONGEST_LINE)
    texts = (  # Half surrogates stand for bytes that are not UTF-8 until the row is complete.
        "" if line is None else line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        for number, line in numbered_lines(content)
    )
    reader = csv.reader(texts, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(start, problem=f"not readable: {error}")
            continue
        if not cells:
            continue
        if header is not None:
            yield _cells(start, reader.line_num, header, cells)
        elif len(cells) == 1 and (sign := next((each for each in SEPARATORS if each in cells[0]), None)):
            told = f"the header is one column, {cells[0][:60]!r}: its cells are separated by {SEPARATORS[sign]}"
            yield Record(start, problem=f"{told}; write commas in a .csv file and tabs in a .tsv file, no row is read")
            return
        elif len(set(cells)) < len(cells):
            twice = next(name for name in cells if cells.count(name) > 1)
            yield Record(start, problem=f"the header has the column {twice!r} twice; rename one, no row is read")
            return
        else:
            header = cells


def _cells(number: int, last: int, header: list[str], cells: list[str]) -> Record:
    """Return the row of lines `number` to `last`."""
    if len(cells) != len(header):
        found = f"{many(len(cells), 'cell')}, and the header has {len(header)}"
        if last > number:
            return Record(number, problem=f"{found}: a quote that opens there may close only in line {last}; close it")
        return Record(number, problem=f"{found}; quote cells with commas")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        return Record(number, problem=f"not UTF-8 at character {error.start} of the row; save the file as UTF-8")
    return Record(number, {name: cell or None for name, cell in zip(header, cells, strict=True)})


_READERS = {
    ".jsonl": _json_lines,
    ".json": _json_document,
    ".csv": lambda content: _separated(content, ","),
    ".tsv": lambda content: _separated(content, "\t"),
}
