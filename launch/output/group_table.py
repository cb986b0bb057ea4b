"""Groups as an Arrow table, one row per group: as the journal keeps them, and as a checkpoint keeps its buffer.

Columns are made one by one, all tokens of a batch together: a row at a time takes twice as long.
"""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from actors.errors import UsageError
from actors.records import Completion, Group, Prompt
from actors.replay_buffer.buffer import group_from_dict

_INTS, _FLOATS = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float64())
_TOKENS = [("token_ids", _INTS), ("logprobs", _FLOATS), ("versions", _INTS)]
_ENDS = [
    ("finished", pyarrow.bool_()),
    ("opponent", pyarrow.bool_()),
    ("given", pyarrow.list_(_INTS)),
    ("reference_logprobs", _FLOATS),
]
GROUPS = pyarrow.schema(
    [
        ("lease_index", pyarrow.int64()),
        ("attempt", pyarrow.int32()),
        ("update", pyarrow.int64()),
        ("prompt_id", pyarrow.string()),
        ("prompt", pyarrow.string()),
        ("prompt_token_ids", _INTS),
        ("min_version", pyarrow.int32()),
        ("oldest_version", pyarrow.int32()),
        ("completions", pyarrow.list_(pyarrow.struct([*_TOKENS, ("text", pyarrow.string()), *_ENDS]))),
        ("scores", _FLOATS),
        ("preferences", pyarrow.list_(_FLOATS)),
    ]
)
"""Columns of a journal. `update` consumed the group first; the other columns are fields of `actors.records`."""
BUFFER = pyarrow.schema(
    [
        ("index", pyarrow.int64()),
        ("attempt", pyarrow.int32()),
        ("min_version", pyarrow.int32()),
        ("deadline", pyarrow.float64()),
        ("draw", pyarrow.string()),
        ("completions", pyarrow.list_(pyarrow.struct([*_TOKENS, *_ENDS]))),
        ("scores", _FLOATS),
        ("preferences", pyarrow.list_(_FLOATS)),
        ("texts", pyarrow.string()),
    ]
)
"""Columns of a checkpoint's buffer: a group without its prompt, which the prompts give again. `texts` is JSON, which
keeps strings that UTF-8 cannot: the prompt's id, and text and messages of each completion."""
BUFFER_FILE = "buffer.parquet"
_ROWS = 64
"""Groups encoded at a time: between two such parts other threads get their turn."""


def group_table(groups: Sequence[Group], update: int) -> pyarrow.Table:
    """Return judged groups as a table of `GROUPS`. Raises pyarrow.ArrowException for bad values."""
    leases = [group.lease for group in groups]
    own = {
        "lease_index": [lease.index for lease in leases],
        "update": [update] * len(groups),
        "prompt_id": [_text(lease.prompt.id) for lease in leases],
        "prompt": [_text(lease.prompt.text) for lease in leases],
        "prompt_token_ids": [lease.prompt.token_ids for lease in leases],
        "oldest_version": [group.oldest_version for group in groups],
    }
    return _table(groups, GROUPS, own)


def write_buffer(path: Path, groups: Sequence[Group]) -> None:
    """Write judged groups for `read_buffer`, part by part. Raises OSError and pyarrow.ArrowException."""
    with open(path, "wb") as file:
        writer = pyarrow.parquet.ParquetWriter(file, BUFFER, compression="zstd")
        try:
            for first in range(0, len(groups), _ROWS):
                writer.write_table(_buffer_table(groups[first : first + _ROWS]))
            writer.close()
        except BaseException:
            writer.is_open = False  # or it would be closed once more when it is collected
            raise


def read_buffer(path: Path, prompt: Callable[[int], Prompt]) -> list[Group]:
    """Read what `write_buffer` wrote, exactly. `prompt` returns the prompt at a position.

    Raises UsageError if the file cannot be read, or if the prompts are others.
    """
    groups = []
    try:
        for rows in pyarrow.parquet.ParquetFile(path).iter_batches(_ROWS):
            groups += [group_from_dict(_buffer_row(row), prompt(row["index"])) for row in rows.to_pylist()]
    except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}; use --resume=last-good, or restore it from a copy"
        ) from error
    return groups


def _buffer_table(groups: Sequence[Group]) -> pyarrow.Table:
    leases = [group.lease for group in groups]
    own = {
        "index": [lease.index for lease in leases],
        "deadline": [lease.deadline for lease in leases],
        "draw": [lease.draw for lease in leases],
        "texts": [json.dumps([group.lease.prompt.id, *map(_said, group.completions)]) for group in groups],
    }
    return _table(groups, BUFFER, own)


def _buffer_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as `group_to_dict` gives it."""
    prompt, *said = json.loads(row["texts"])
    lease = {name: row[name] for name in ("index", "attempt", "min_version", "deadline", "draw")}
    completions = [one | two for one, two in zip(row["completions"], said, strict=True)]
    judgement = {name: row[name] for name in ("scores", "preferences")}
    return {"lease": lease | {"prompt": prompt}, "completions": completions, "judgement": judgement}


def _said(completion: Completion) -> dict[str, Any]:
    return {"text": completion.text, "messages": completion.messages}


def _table(groups: Sequence[Group], schema: pyarrow.Schema, own: dict[str, Any]) -> pyarrow.Table:
    """Return a table of `schema`, whose columns are the common ones and those of its `own`."""
    leases = [group.lease for group in groups]
    completions = [completion for group in groups for completion in group.completions]
    columns = own | {
        "attempt": [lease.attempt for lease in leases],
        "min_version": [lease.min_version for lease in leases],
        "completions": pyarrow.ListArray.from_arrays(
            pyarrow.array(accumulate((len(group.completions) for group in groups), initial=0), type=pyarrow.int32()),
            _structs(completions, schema.field("completions").type.value_type),
        ),
        "scores": [group.judgement.scores if group.judgement else None for group in groups],
        "preferences": [group.judgement.preferences if group.judgement else None for group in groups],
    }
    arrays = [_array(columns[field.name], field.type) for field in schema]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _structs(completions: Sequence[Completion], kind: pyarrow.StructType) -> pyarrow.StructArray:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    columns = [
        pyarrow.array([_value(getattr(each, field.name)) for each in completions], type=field.type) for field in fields
    ]
    return pyarrow.StructArray.from_arrays(columns, fields=fields)


def _value(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


def _array(values: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    return values if isinstance(values, pyarrow.Array) else pyarrow.array(values, type=kind)


def _text(text: str) -> str:
    """Return text that UTF-8 can hold: JSON data may have half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
