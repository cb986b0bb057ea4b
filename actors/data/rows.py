"""Read rows from files, saved data sets, hubs and the embedded world; report malformed rows, hold rows out.

Knows file formats and places in files. Must not import tokenizers or decide what makes a good row: that is up to
`prompts.py`, `demonstrations.py` and `preferences.py`.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

from actors.data.batches import (
    ROWS_PER_BATCH,
    ArrowRows,
    Batch,
    Row,
    batches_of_lines,
    batches_of_rows,
    reading_parquet,
    row_of_record,
)
from actors.data.config import SHIPPED_PROMPTS, HeldOutConfig, PromptConfig
from actors.data.formats import ALLOWED, SUFFIXES, data_files, numbered_lines, records, suffix_of, wrong_content
from actors.errors import UsageError
from actors.foreign.documents import no_json, unique_keys
from actors.foreign.model_place import hub_name_of, hub_problem
from actors.foreign.text import many, suggestion
from actors.settings import WORLD

KNOWN_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
REPORTED_PROBLEMS = 5  # malformed rows that an error message lists


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed row."""

    place: str  # path and line, or path and row
    message: str
    reason: str = ""  # the kind of problem, for reports that count
    tokens: int = 0  # of a prompt that is too long

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class MalformedRowError(Exception):
    """One row cannot be used; the message says why. Readers turn it into a `Problem`."""


class MalformedRowsError(UsageError):
    """A source has rows that cannot be used and may not be skipped."""

    problems: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class RowSource:
    """The place of rows, and the settings that name it."""

    source: str
    """A file, a directory or a hub data set."""
    split: str  # for sources with several
    section: str
    """Prefix of the names `source` and `split` in errors, such as `prompts.`."""
    choose: Callable[[Sequence[str], str], list[str]]
    """Picks the columns to read from a table's columns and its name in errors. Raises UsageError if one is missing."""


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source whose rows can be read, once."""

    batches: Iterator[Batch]
    files: Sequence[Path] = ()
    """Files that hold all of the rows; empty if some rows, or all, are not in files."""
    reading: str = ""
    """Settings of the reading that the content of the files does not determine."""


def columns_named(wanted: Mapping[str, str]) -> Callable[[Sequence[str], str], list[str]]:
    """Return a `RowSource.choose` that requires the columns of `wanted`, which maps settings to column names."""
    return partial(_require_columns, wanted)


def column_of(row: Row, name: str) -> Any:
    """Return a required column. Raises MalformedRowError if it is absent or null."""
    if name not in row.columns:
        raise MalformedRowError(f"no field '{name}'; {suggestion(name, list(row.columns))}")
    if row.columns[name] is None:
        raise MalformedRowError(f"field '{name}' is null")
    return row.columns[name]


def held_out(key: bytes, fraction: float, byteorder: Literal["big", "little"] = "big") -> bool:
    """Decide whether rows with `key` are held out, by its SHA-256 alone: other rows do not matter."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], byteorder) < fraction * 2**64


def held_out_split(config: HeldOutConfig) -> str | None:
    """Return the split to hold out, or None if a share of the rows is held out instead. Reads no rows."""
    if config.validation_split != "auto":
        return None if config.validation_split == "none" else config.validation_split
    path = Path(config.source).expanduser()
    if config.split != "train" or not path.is_dir():
        return None
    saved = (path / "dataset_dict.json").exists()
    names = [file.name for file in (path.iterdir() if saved else data_files(path))]
    both = all(any(_belongs(name, split) for name in names) for split in ("train", "validation"))
    return "validation" if both else None


def splits_to_read(config: HeldOutConfig) -> dict[str, Literal["train", "validation"] | None]:
    """Return each split to read, with the side of its rows; None if a hash decides for each row."""
    held = held_out_split(config)
    return {config.split: None} if held is None else {config.split: "train", held: "validation"}


def held_out_notes(config: HeldOutConfig) -> list[str]:
    """Return the notes to print about a split that is held out."""
    held = held_out_split(config)
    if held is None:
        return []
    return [f"held out: split '{held}' of data.source '{config.source}'; data.validation_fraction is not used"]


def check_problems(
    problems: Sequence[Problem], good: int, source: str, on_malformed: Literal["error", "skip"], section: str = ""
) -> None:
    """Raise UsageError if no row is good, MalformedRowsError if there are malformed rows that may not be skipped.

    Args:
        problems: malformed rows, in file order.
        good: rows that can be used.
        section: prefix of the names `source` and `on_malformed`, such as `prompts.`.
    """
    total, be = len(problems) + good, "is" if len(problems) == 1 else "are"
    alike = len({problem.message for problem in problems}) == 1
    shown = problems[: 1 if alike else REPORTED_PROBLEMS]
    first = f"{'all alike, ' if alike and len(problems) > 1 else ''}the first{f' {len(shown)}' if shown[1:] else ''}:"
    first += "".join(f"\n  {problem}" for problem in shown)
    if problems and on_malformed == "error":
        steps = ["Correct them"]
        if not good and all(problem.message.startswith("no field") for problem in problems):
            named = "prompt_field" if section == "prompts." else "prompt_field and data.response_field"
            steps = [f"Name columns that are there with {section}{named}", "correct the rows"]
        if all(lengths := [problem.tokens for problem in problems]):
            steps = [f"Raise {section}max_prompt_tokens to {max(lengths)}", "shorten them"]
        steps += [f"set {section}on_malformed to 'skip' to leave them out"] if good else []
        error = MalformedRowsError(
            f"{len(problems)} of {many(total, 'row')} of {section}source '{source}' {be} malformed; {first}\n"
            f"{', or '.join(steps)}."
        )
        error.problems = problems
        raise error
    if problems and not good:
        raise UsageError(f"no good row among {many(total, 'row')} of {section}source '{source}'; give one; {first}")
    if not total:
        raise UsageError(f"{section}source '{source}' holds no rows; give one with at least one")


def check_training_rows(train: int, validation: int, malformed: int, source: str, fraction: float) -> None:
    """Raise UsageError if no row is left to train on because all good rows are held out."""
    if not train:
        skipped = f", {many(malformed, 'row')} malformed" if malformed else ""
        raise UsageError(
            f"data.source '{source}' leaves nothing to train on: what it has, {many(validation, 'example')}, is held "
            f"out by data.validation_fraction {fraction:g}{skipped}; give more rows, or hold out less"
        )


def read_prompt_rows(config: PromptConfig) -> Iterator[Row]:
    """Read all rows of prompts in file order. Raises UsageError as `rows_from`."""
    return _rows(open_prompts(config))


def open_prompts(config: PromptConfig) -> OpenedSource:
    """Open the source of prompts. Raises UsageError as `rows_from`."""
    if config.source == WORLD:
        _require_no_split(RowSource(WORLD, config.split, "prompts.", columns_named({})))
        return OpenedSource(batches_of_rows(_world_rows()))
    answers = [config.answer_field] if isinstance(config.answer_field, str) else config.answer_field or ()
    wanted = {f"prompts.answer_field {name}" if len(answers) > 1 else "prompts.answer_field": name for name in answers}
    wanted |= {"prompts.prompt_field": config.prompt_field}
    wanted |= {f"prompts.columns.{number}": column for number, column in enumerate(config.columns)}
    source = str(SHIPPED_PROMPTS.get(config.source, config.source))
    return _opened(RowSource(source, config.split, "prompts.", columns_named(wanted)))


def rows_from(table: RowSource) -> Iterator[Row]:
    """Read all rows of `table` in file order.

    Raises UsageError if the source is missing, of an unknown format, unreadable, or lacks a column.
    """
    return _rows(_opened(table))


def _rows(opened: OpenedSource) -> Iterator[Row]:
    return (row for batch in opened.batches for row in batch.rows())


def _opened(table: RowSource) -> OpenedSource:
    path, section = Path(table.source).expanduser(), table.section
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _opened_table(_load_saved(path, table), table)
        files = _files_of_split(path, table)
        return OpenedSource(_file_batches(files, table), files)
    if path.exists():
        if suffix_of(path) not in SUFFIXES:
            raise UsageError(
                f"{section}source '{path}' ends in '{suffix_of(path)}'; allowed are {ALLOWED}, "
                "directories of them, and directories written by datasets.save_to_disk"
            )
        _require_no_split(table)
        return OpenedSource(_file_batches([path], table), [path])
    local = path.is_symlink() or suffix_of(path) in SUFFIXES or table.source.startswith(".")
    if local or not HUB_NAME.fullmatch(table.source):
        raise _no_source(table, path)
    return _opened_table(_load_from_hub(table), table)


def _require_no_split(table: RowSource) -> None:
    """Raise UsageError if settings name a split of a source that has no splits. The default split is always allowed."""
    if table.split != "train":
        raise UsageError(
            f"{table.section}source '{table.source}' has no splits, and {table.section}split is '{table.split}'; leave "
            "that out, or give a source that has this split"
        )


def _world_rows() -> Iterator[Row]:
    from actors import world

    for number, columns in enumerate(world.prompt_rows()):
        yield Row(id=f"world:{number}", place=f"world row {number}", columns=columns)


def _belongs(name: str, split: str) -> bool:
    return re.match(rf"{re.escape(split)}([-_.]|$)", name) is not None


def _files_of_split(directory: Path, table: RowSource) -> list[Path]:
    """Return the data files of the split; all files if no file is named after a split."""
    files = data_files(directory)
    if not files:
        raise UsageError(
            f"{table.section}source '{directory}' holds no data: allowed are files that end in {ALLOWED}, and a "
            "directory that datasets.save_to_disk wrote; give one with such files"
        )
    wanted = [file for file in files if _belongs(file.name, table.split)]
    split_named = any(_belongs(file.name, split) for file in files for split in KNOWN_SPLITS)
    if not wanted and (split_named or table.split != "train"):
        choice = suggestion(table.split, [file.name for file in files])
        raise UsageError(
            f"{table.section}source '{directory}' has no file of {table.section}split '{table.split}'; {choice}"
        )
    return wanted or files


def _file_batches(files: Sequence[Path], table: RowSource) -> Iterator[Batch]:
    for file in files:
        try:
            _check_content(file, table)
            yield from _parquet_batches(file, table) if suffix_of(file) == ".parquet" else _text_batches(file)
        except OSError as error:
            raise UsageError(
                f"{table.section}source '{file}' cannot be read: {error}; give a file that this user may read"
            ) from error


def _check_content(file: Path, table: RowSource) -> None:
    """Raise UsageError unless the file is regular (a pipe would block) and its first bytes fit its suffix."""
    name = f"{table.section}source '{file}'"
    if not stat.S_ISREG(file.stat().st_mode):
        raise UsageError(f"{name} is a pipe or a device, which cannot be read twice; write the rows to a file")
    with file.open("rb") as content:
        problem = wrong_content(content.read(64), suffix_of(file))
    if problem is not None:
        raise UsageError(f"{name} {problem}")


def _no_source(table: RowSource, path: Path) -> UsageError:
    """Return the error for a source that does not exist, with the name that was probably meant."""
    given, section = table.source, table.section
    if "://" in given:
        name = hub_name_of(given)
        meant = f"write {name}, or {name}:CONFIGURATION" if name else "download it, and give the file"
        return UsageError(f"{section}source '{given}' is a URL; {meant}")
    if path.is_symlink():
        return UsageError(
            f"{section}source '{path}' is a link to {os.readlink(path)}, which leads nowhere; give an existing path"
        )
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, n=1)
    meant = f"give an existing path{f', such as {path.with_name(near[0])}' if near else ''}"
    several = "; one file or one directory can be given" if any(sign in given for sign in "*?,[") else ""
    return UsageError(f"{section}source '{path}' does not exist (looked in {Path.cwd()}){several}; {meant}")


def _text_batches(file: Path) -> Iterator[Batch]:
    if suffix_of(file) == ".jsonl":
        with file.open("rb") as content:
            yield from batches_of_lines(file, numbered_lines(content))
    else:
        read = (row_of_record(file, each.number, each.columns, each.problem) for each in records(file))
        yield from batches_of_rows(read)


def list_or_json(value: Any, what: str, of: str) -> list[Any] | None:
    """Return `value` as a list, decoded if it is JSON text; None if it is absent or empty. Raises MalformedRowError."""
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise MalformedRowError(f"{what} is a string that cannot be read as JSON: {no_json(error)}") from error
    if value is not None and not isinstance(value, list):
        raise MalformedRowError(f"{what} is of type {type(value).__name__}, not a list of {of}, or its JSON")
    return value or None


def _require_columns(wanted: Mapping[str, str], names: Sequence[str], place: str) -> list[str]:
    for setting, column in wanted.items():
        if column not in names:
            raise UsageError(f"{place} has no column '{column}' ({setting}); {suggestion(column, names)}")
    return list(dict.fromkeys([*wanted.values(), *(name for name in names if name == "tools")]))


def _parquet_batches(file: Path, table: RowSource) -> Iterator[Batch]:
    import pyarrow.parquet

    place = f"{table.section}source '{file}'"
    with reading_parquet(place):
        content = pyarrow.parquet.ParquetFile(file)
        names = table.choose(content.schema_arrow.names, place)
        for name in names:
            if content.schema_arrow.names.count(name) > 1:
                raise UsageError(f"{place} has several columns '{name}'; keep one of them, or rename the others")
        number = 0
        for batch in content.iter_batches(ROWS_PER_BATCH, columns=names):
            yield ArrowRows(file, place, number, batch.select(names))
            number += batch.num_rows


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
        _require_no_split(table)
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
            f"'{table.split}' of a hub data set of that name cannot be loaded: {hub_problem(error)}; give an existing "
            "path, or `owner/name` or `owner/name:configuration` of one that this machine can reach or has cached"
        ) from error


def _opened_table(content: Any, table: RowSource) -> OpenedSource:
    columns = table.choose(content.column_names, f"{table.section}source '{table.source}'")
    # Rows that were selected or mapped in memory exist in no file in this form.
    files = [] if content._indices is not None else [Path(each["filename"]) for each in content.cache_files]
    return OpenedSource(
        batches_of_rows(_table_rows(content.select_columns(columns), table)), files, repr(content.features)
    )


def _table_rows(content: Any, table: RowSource) -> Iterator[Row]:
    name = Path(table.source).name
    for number, row in enumerate(content):
        yield Row(id=f"{name}:{number}", place=f"{table.source} row {number}", columns=row)
