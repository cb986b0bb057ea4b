"""Rows of data from files, saved data sets, hubs and the embedded world.

Knows file formats and where in a file a row stands. It must not know tokenizers, nor what makes a row a good one:
`prompts.py`, `demonstrations.py` and `preference_files.py` judge the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from actors.data.config import PromptConfig
from actors.errors import UsageError
from actors.settings import WORLD

SUFFIXES = (".jsonl", ".parquet")
KNOWN_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was found. Made here; read by `PromptSource` and its like."""

    id: str
    """`<file or source name>:<row>`; JSONL lines count from 1 and table rows from 0, as their tools count them."""
    place: str
    """How an error names it: path and line, or path and row."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why nothing could be read here; None for a readable row."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows are, in the words of the settings that say so."""

    source: str
    """A file, a directory or a hub data set."""
    split: str
    """For sources that have several."""
    section: str
    """What errors put before the names `source` and `split`, such as `prompts.`."""
    choose: Callable[[Sequence[str], str], list[str]]
    """Columns to read, of all that a table has and how an error names it. Raises UsageError where they will not do."""


def columns_named(wanted: Mapping[str, str]) -> Callable[[Sequence[str], str], list[str]]:
    """Chooses the columns of `wanted`, by the setting that names each, and insists on them."""
    return partial(_require_columns, wanted)


def suggestion(wanted: str, names: Sequence[str]) -> str:
    """Nearest names to `wanted` and the whole choice, as the end of an error message."""
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}it has: {', '.join(map(repr, names)) or 'nothing'}"


def read_rows(config: PromptConfig) -> Iterator[Row]:
    """All rows of prompts, in file order. Raises UsageError as `rows_from`."""
    if config.source == WORLD:
        return _world_rows()
    fields = {"prompts.prompt_field": config.prompt_field, "prompts.answer_field": config.answer_field}
    wanted = {setting: column for setting, column in fields.items() if column}
    return rows_from(RowSource(config.source, config.split, "prompts.", columns_named(wanted)))


def rows_from(table: RowSource) -> Iterator[Row]:
    """All rows of `table`, in file order.

    Raises:
        UsageError: the source is missing, of an unknown format, unreadable, or lacks a column.
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
    """Data files of the wanted split; every file where no file is named after a split."""

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
            raise UsageError(f"{table.section}source '{file}' cannot be read: {error}") from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    """Lines are decoded one by one, so that a wrongly encoded line is named. Blank lines are no rows."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row_id, place = f"{file.name}:{number}", f"{file}:{number}"
            try:
                # A byte-order mark is allowed where editors put it, at the start of the file.
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
                    yield Row(
                        row_id, place, problem=f"a JSON {type(columns).__name__}; each line must be one JSON object"
                    )


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
        columns = table.choose(content.schema_arrow.names, f"{table.section}source '{file}'")
        number = 0
        for batch in content.iter_batches(columns=columns):
            values = [batch.column(name) for name in columns]
            for offset in range(batch.num_rows):
                yield _arrow_row(
                    file, number, {name: column[offset] for name, column in zip(columns, values, strict=True)}
                )
                number += 1
    except pyarrow.ArrowException as error:
        raise UsageError(f"{table.section}source '{file}' is not a readable Parquet file: {error}") from error


def _arrow_row(file: Path, number: int, scalars: Mapping[str, Any]) -> Row:
    row_id, place = f"{file.name}:{number}", f"{file} row {number}"
    try:
        return Row(row_id, place, {name: scalar.as_py() for name, scalar in scalars.items()})
    except UnicodeDecodeError as error:
        return Row(row_id, place, problem=f"not UTF-8: {error.reason} at byte {error.start}")


def _load_saved(directory: Path, table: RowSource) -> Any:
    """A directory written by `datasets.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{table.section}source '{directory}' looks written by datasets.save_to_disk but cannot be loaded: {error}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if table.split not in loaded:
        choice = suggestion(table.split, list(loaded))
        raise UsageError(f"{table.section}source '{directory}' has no {table.section}split '{table.split}'; {choice}")
    return loaded[table.split]


def _load_from_hub(table: RowSource) -> Any:
    """`owner/name` or, for a data set with several configurations, `owner/name:configuration`."""
    name, _, subset = table.source.partition(":")
    try:
        import datasets

        return datasets.load_dataset(name, subset or None, split=table.split)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{table.section}source '{table.source}' is no file or directory here (looked in {Path.cwd()}), and split "
            f"'{table.split}' of a hub data set of that name cannot be had: {error}; give an existing path, or "
            "`owner/name` or `owner/name:configuration` of a data set that this machine can reach or has cached"
        ) from error


def _table_rows(content: Any, table: RowSource) -> Iterator[Row]:
    columns = table.choose(content.column_names, f"{table.section}source '{table.source}'")
    name = Path(table.source).name
    for number, row in enumerate(content.select_columns(columns)):
        yield Row(id=f"{name}:{number}", place=f"{table.source} row {number}", columns=row)
