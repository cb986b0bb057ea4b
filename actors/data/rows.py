"""Rows from files, saved data sets, hubs and the embedded world; which are malformed, which are held out.

Knows file formats and places in files. Must not import tokenizers or decide what makes a good row: `prompts.py`,
`demonstrations.py` and `preferences.py` do.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

from actors.data.config import PromptConfig
from actors.errors import UsageError
from actors.settings import WORLD

SUFFIXES = (".jsonl", ".parquet")
KNOWN_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
REPORTED_PROBLEMS = 5  # malformed rows that an error message lists


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source."""

    id: str
    """`<file or source name>:<row>`; JSONL lines count from 1 and table rows from 0, as their tools count them."""
    place: str
    """Its name in errors: path and line, or path and row."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why the row cannot be read; None if it can."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed row."""

    place: str  # path and line, or path and row
    message: str
    reason: str = ""  # the kind of problem, for reports that count

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class MalformedRowError(Exception):
    """One row cannot be used; the message says why. Readers turn it into a `Problem`."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows are, and the settings that say so."""

    source: str
    """A file, a directory or a hub data set."""
    split: str  # for sources with several
    section: str
    """Prefix of the names `source` and `split` in errors, such as `prompts.`."""
    choose: Callable[[Sequence[str], str], list[str]]
    """Picks the columns to read from a table's columns and its name in errors. Raises UsageError if one is missing."""


def columns_named(wanted: Mapping[str, str]) -> Callable[[Sequence[str], str], list[str]]:
    """Require the columns of `wanted`, which maps settings to column names."""
    return partial(_require_columns, wanted)


def suggestion(wanted: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the names nearest to `wanted`, and all of them."""
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}it has: {', '.join(map(repr, names)) or 'nothing'}"


def column_of(row: Row, name: str) -> Any:
    """Return a required column. Raises MalformedRowError if it is absent or null."""
    if name not in row.columns:
        raise MalformedRowError(f"no field '{name}'; {suggestion(name, list(row.columns))}")
    if row.columns[name] is None:
        raise MalformedRowError(f"field '{name}' is null")
    return row.columns[name]


def held_out(key: bytes, fraction: float, byteorder: Literal["big", "little"] = "big") -> bool:
    """Decide by the SHA-256 of `key` alone whether rows with that key are held out: no other row matters."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], byteorder) < fraction * 2**64


def check_problems(
    problems: Sequence[Problem], good: int, source: str, on_malformed: Literal["error", "skip"], section: str = ""
) -> None:
    """Raise UsageError if malformed rows may not be skipped, or none of the rows is good.

    Args:
        problems: malformed rows, in file order.
        good: rows that can be used.
        section: prefix of the names `source` and `on_malformed`, such as `prompts.`.
    """
    total = len(problems) + good
    first = f"the first {min(len(problems), REPORTED_PROBLEMS)}:"
    first += "".join(f"\n  {problem}" for problem in problems[:REPORTED_PROBLEMS])
    if problems and on_malformed == "error":
        raise UsageError(
            f"{len(problems)} of {total} rows of {section}source '{source}' are malformed; {first}\n"
            f"Correct them, or set {section}on_malformed to 'skip' to leave them out."
        )
    if problems and not good:
        raise UsageError(
            f"all {total} rows of {section}source '{source}' are malformed and none is left; give one with at least "
            f"one good row; {first}"
        )
    if not total:
        raise UsageError(f"{section}source '{source}' holds no rows; give one with at least one")


def check_training_rows(train: int, validation: int, malformed: int, source: str, fraction: float) -> None:
    """Raise UsageError if no row is left to train on because all good ones are held out."""
    if not train:
        skipped = f" and {malformed} rows are malformed" if malformed else ""
        raise UsageError(
            f"data.source '{source}' leaves nothing to train on: all {validation} examples are held out by "
            f"data.validation_fraction {fraction:g}{skipped}; give more rows, or hold out less"
        )


def read_prompt_rows(config: PromptConfig) -> Iterator[Row]:
    """Read all rows of prompts in file order. Raises UsageError as `rows_from`."""
    if config.source == WORLD:
        return _world_rows()
    fields = {"prompts.prompt_field": config.prompt_field, "prompts.answer_field": config.answer_field}
    wanted = {setting: column for setting, column in fields.items() if column}
    return rows_from(RowSource(config.source, config.split, "prompts.", columns_named(wanted)))


def rows_from(table: RowSource) -> Iterator[Row]:
    """Read all rows of `table` in file order.

    Raises UsageError if the source is missing, of an unknown format, unreadable, or lacks a column.
    """
    path, section = Path(table.source).expanduser(), table.section
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _table_rows(_load_saved(path, table), table)
        return _file_rows(_files_of_split(path, table), table)
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise UsageError(
                f"{section}source '{path}' ends in '{path.suffix}'; allowed are .jsonl (one JSON object per line) and "
                ".parquet, directories of them, and directories written by datasets.save_to_disk"
            )
        return _file_rows([path], table)
    if path.suffix in SUFFIXES or not HUB_NAME.fullmatch(table.source) or table.source.startswith("."):
        raise UsageError(f"{section}source '{path}' does not exist (looked in {Path.cwd()}); give an existing path")
    return _table_rows(_load_from_hub(table), table)


def _world_rows() -> Iterator[Row]:
    from actors import world

    for number, columns in enumerate(world.prompt_rows()):
        yield Row(id=f"world:{number}", place=f"world row {number}", columns=columns)


def _files_of_split(directory: Path, table: RowSource) -> list[Path]:
    """Return the data files of the split; all files if no file is named after a split."""

    def belongs(file: Path, split: str) -> bool:
        return re.match(rf"{re.escape(split)}([-_.]|$)", file.stem) is not None

    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise UsageError(
            f"{table.section}source '{directory}' holds no .jsonl or .parquet file and was not written by "
            "datasets.save_to_disk; give a directory that does"
        )
    wanted = [file for file in files if belongs(file, table.split)]
    split_named = any(belongs(file, split) for file in files for split in KNOWN_SPLITS)
    if not wanted and (split_named or table.split != "train"):
        choice = suggestion(table.split, [file.name for file in files])
        raise UsageError(
            f"{table.section}source '{directory}' has no file of {table.section}split '{table.split}'; {choice}"
        )
    return wanted or files


def _file_rows(files: Sequence[Path], table: RowSource) -> Iterator[Row]:
    for file in files:
        try:
            yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file, table)
        except OSError as error:
            raise UsageError(
                f"{table.section}source '{file}' cannot be read: {error}; give a file that this user may read"
            ) from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    """Decode line by line, so that an error names its line. Skip blank lines."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row_id, place = f"{file.name}:{number}", f"{file}:{number}"
            try:
                # Editors may put a byte-order mark at the start of the file.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                columns = json.loads(text) if text else None
            except UnicodeDecodeError as error:
                yield Row(row_id, place, problem=f"not UTF-8: {error.reason} at byte {error.start} of the line")
            except (json.JSONDecodeError, RecursionError) as error:
                yield Row(row_id, place, problem=f"not JSON: {error}; each line must be one JSON object")
            else:
                if isinstance(columns, dict):
                    yield Row(row_id, place, columns)
                elif text:
                    problem = f"a JSON {type(columns).__name__}; each line must be one JSON object"
                    yield Row(row_id, place, problem=problem)


def _require_columns(wanted: Mapping[str, str], names: Sequence[str], place: str) -> list[str]:
    for setting, column in wanted.items():
        if column not in names:
            raise UsageError(f"{place} has no column '{column}' ({setting}); {suggestion(column, names)}")
    return list(dict.fromkeys(wanted.values()))


def _parquet_rows(file: Path, table: RowSource) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.ParquetFile(file)
        names = table.choose(content.schema_arrow.names, f"{table.section}source '{file}'")
        number = 0
        for batch in content.iter_batches(columns=names):
            columns = [batch.column(name) for name in names]
            for scalars in zip(*columns, strict=True):
                yield _arrow_row(file, number, dict(zip(names, scalars, strict=True)))
                number += 1
    except pyarrow.ArrowException as error:
        raise UsageError(
            f"{table.section}source '{file}' is not a readable Parquet file: {error}; write it again"
        ) from error


def _arrow_row(file: Path, number: int, scalars: Mapping[str, Any]) -> Row:
    row_id, place = f"{file.name}:{number}", f"{file} row {number}"
    try:
        return Row(row_id, place, {name: scalar.as_py() for name, scalar in scalars.items()})
    except UnicodeDecodeError as error:
        return Row(row_id, place, problem=f"not UTF-8: {error.reason} at byte {error.start}")


def _load_saved(directory: Path, table: RowSource) -> Any:
    """Load a directory written by `datasets.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{table.section}source '{directory}' looks written by datasets.save_to_disk but cannot be loaded: "
            f"{error}; write it again, or give the files themselves"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if table.split not in loaded:
        choice = suggestion(table.split, list(loaded))
        raise UsageError(f"{table.section}source '{directory}' has no {table.section}split '{table.split}'; {choice}")
    return loaded[table.split]


def _load_from_hub(table: RowSource) -> Any:
    """Load `owner/name`, or `owner/name:configuration` of a data set with several configurations."""
    name, _, subset = table.source.partition(":")
    try:
        import datasets

        return datasets.load_dataset(name, subset or None, split=table.split)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{table.section}source '{table.source}' is not a file or directory (looked in {Path.cwd()}), and split "
            f"'{table.split}' of a hub data set of that name cannot be loaded: {error}; give an existing path, or "
            "`owner/name` or `owner/name:configuration` of a data set that this machine can reach or has cached"
        ) from error


def _table_rows(content: Any, table: RowSource) -> Iterator[Row]:
    columns = table.choose(content.column_names, f"{table.section}source '{table.source}'")
    name = Path(table.source).name
    for number, row in enumerate(content.select_columns(columns)):
        yield Row(id=f"{name}:{number}", place=f"{table.source} row {number}", columns=row)
