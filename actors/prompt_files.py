"""Rows of prompt data from files, saved data sets, hubs and the embedded world.

Knows file formats and where in a file a row stands. It must not know tokenizers, nor what makes a prompt a good one:
`prompts.py` judges the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from actors.config import WORLD, PromptConfig
from actors.errors import UsageError

SUFFIXES = (".jsonl", ".parquet")
KNOWN_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was found. Made here; read by `PromptSource`."""

    id: str
    """`<file or source name>:<row>`; JSONL lines count from 1 and table rows from 0, as their tools count them."""
    place: str
    """How an error names it: path and line, or path and row."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why nothing could be read here; None for a readable row."""


def suggestion(wanted: str, names: Sequence[str]) -> str:
    """Nearest names to `wanted` and the whole choice, as the end of an error message."""
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}it has: {', '.join(map(repr, names)) or 'nothing'}"


def read_rows(config: PromptConfig) -> Iterator[Row]:
    """All rows of `config.source`, in file order.

    Raises:
        UsageError: the source is missing, of an unknown format, unreadable, or lacks a configured column.
    """
    if config.source == WORLD:
        return _world_rows()
    path = Path(config.source).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _table_rows(_load_saved(path, config), config)
        return _file_rows(_files_of_split(path, config), config)
    if path.exists():
        if path.suffix not in SUFFIXES:
            raise UsageError(
                f"prompts.source '{path}' ends in '{path.suffix}'; allowed are .jsonl (one JSON object per line) and "
                ".parquet, directories of them, and directories written by datasets.save_to_disk"
            )
        return _file_rows([path], config)
    if path.suffix in SUFFIXES or not HUB_NAME.fullmatch(config.source) or config.source.startswith("."):
        raise UsageError(f"prompts.source '{path}' does not exist (looked in {Path.cwd()}); give an existing path")
    return _table_rows(_load_from_hub(config), config)


def _world_rows() -> Iterator[Row]:
    from actors import world

    for number, columns in enumerate(world.prompt_rows()):
        yield Row(id=f"world:{number}", place=f"world row {number}", columns=columns)


def _files_of_split(directory: Path, config: PromptConfig) -> list[Path]:
    """Data files of the wanted split; every file where no file is named after a split."""

    def belongs(file: Path, split: str) -> bool:
        return re.match(rf"{re.escape(split)}([-_.]|$)", file.stem) is not None

    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise UsageError(
            f"prompts.source '{directory}' holds no .jsonl or .parquet file and was not written by "
            "datasets.save_to_disk; give a directory that does"
        )
    wanted = [file for file in files if belongs(file, config.split)]
    split_named = any(belongs(file, split) for file in files for split in KNOWN_SPLITS)
    if not wanted and (split_named or config.split != "train"):
        choice = suggestion(config.split, [file.name for file in files])
        raise UsageError(f"prompts.source '{directory}' has no file of prompts.split '{config.split}'; {choice}")
    return wanted or files


def _file_rows(files: Sequence[Path], config: PromptConfig) -> Iterator[Row]:
    for file in files:
        try:
            yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file, config)
        except OSError as error:
            raise UsageError(f"prompts.source '{file}' cannot be read: {error}") from error


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


def _wanted_columns(config: PromptConfig) -> list[str]:
    return [config.prompt_field] + ([config.answer_field] if config.answer_field else [])


def _require_columns(config: PromptConfig, names: Sequence[str], place: str) -> list[str]:
    wanted = _wanted_columns(config)
    for setting, column in zip(("prompt_field", "answer_field"), wanted, strict=False):
        if column not in names:
            raise UsageError(f"{place} has no column '{column}' (prompts.{setting}); {suggestion(column, names)}")
    return list(dict.fromkeys(wanted))


def _parquet_rows(file: Path, config: PromptConfig) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = _require_columns(config, table.schema_arrow.names, str(file))
        number = 0
        for batch in table.iter_batches(columns=columns):
            values = [batch.column(name) for name in columns]
            for offset in range(batch.num_rows):
                yield _arrow_row(
                    file, number, {name: column[offset] for name, column in zip(columns, values, strict=True)}
                )
                number += 1
    except pyarrow.ArrowException as error:
        raise UsageError(f"prompts.source '{file}' is not a readable Parquet file: {error}") from error


def _arrow_row(file: Path, number: int, scalars: Mapping[str, Any]) -> Row:
    row_id, place = f"{file.name}:{number}", f"{file} row {number}"
    try:
        return Row(row_id, place, {name: scalar.as_py() for name, scalar in scalars.items()})
    except UnicodeDecodeError as error:
        return Row(row_id, place, problem=f"not UTF-8: {error.reason} at byte {error.start}")


def _load_saved(directory: Path, config: PromptConfig) -> Any:
    """A directory written by `datasets.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"prompts.source '{directory}' looks written by datasets.save_to_disk but cannot be loaded: {error}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if config.split not in loaded:
        choice = suggestion(config.split, list(loaded))
        raise UsageError(f"prompts.source '{directory}' has no prompts.split '{config.split}'; {choice}")
    return loaded[config.split]


def _load_from_hub(config: PromptConfig) -> Any:
    """`owner/name` or, for a data set with several configurations, `owner/name:configuration`."""
    name, _, subset = config.source.partition(":")
    try:
        import datasets

        return datasets.load_dataset(name, subset or None, split=config.split)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"prompts.source '{config.source}' is no file or directory here (looked in {Path.cwd()}), and split "
            f"'{config.split}' of a hub data set of that name cannot be had: {error}; give an existing path, or "
            "`owner/name` or `owner/name:configuration` of a data set that this machine can reach or has cached"
        ) from error


def _table_rows(table: Any, config: PromptConfig) -> Iterator[Row]:
    columns = _require_columns(config, table.column_names, f"prompts.source '{config.source}'")
    name = Path(config.source).name
    for number, row in enumerate(table.select_columns(columns)):
        yield Row(id=f"{name}:{number}", place=f"{config.source} row {number}", columns=row)
