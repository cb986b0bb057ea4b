"""Groups as an Arrow table: one row per group, as the journal keeps them.

Columns are made one by one, all tokens of a batch together: a row at a time takes twice as long.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import pyarrow

from actors.records import Completion, Group

_INTS, _FLOATS = pyarrow.list_(pyarrow.int32()), pyarrow.list_(pyarrow.float64())
_COMPLETION = pyarrow.struct(
    [
        ("token_ids", _INTS),
        ("logprobs", _FLOATS),
        ("versions", _INTS),
        ("text", pyarrow.string()),
        ("finished", pyarrow.bool_()),
        ("opponent", pyarrow.bool_()),
        ("given", pyarrow.list_(_INTS)),
    ]
)
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
        ("completions", pyarrow.list_(_COMPLETION)),
        ("scores", _FLOATS),
        ("preferences", pyarrow.list_(_FLOATS)),
    ]
)
"""`update` consumed the group first; the other columns are fields of `actors.records`."""


def group_table(groups: Sequence[Group], update: int) -> pyarrow.Table:
    """Return judged groups as a table of `GROUPS`. Raises pyarrow.ArrowException for bad values."""
    leases = [group.lease for group in groups]
    completions = [completion for group in groups for completion in group.completions]
    columns: dict[str, Any] = {
        "lease_index": [lease.index for lease in leases],
        "attempt": [lease.attempt for lease in leases],
        "update": [update] * len(groups),
        "prompt_id": [_text(lease.prompt.id) for lease in leases],
        "prompt": [_text(lease.prompt.text) for lease in leases],
        "prompt_token_ids": [lease.prompt.token_ids for lease in leases],
        "min_version": [lease.min_version for lease in leases],
        "oldest_version": [group.oldest_version for group in groups],
        "completions": pyarrow.ListArray.from_arrays(
            _offsets(len(group.completions) for group in groups), _structs(completions)
        ),
        "scores": [group.judgement.scores if group.judgement else None for group in groups],
        "preferences": [group.judgement.preferences if group.judgement else None for group in groups],
    }
    arrays = [_array(columns[field.name], field.type) for field in GROUPS]
    return pyarrow.Table.from_arrays(arrays, schema=GROUPS)


def _structs(completions: Sequence[Completion]) -> pyarrow.StructArray:
    columns = {
        "token_ids": [each.token_ids for each in completions],
        "logprobs": [each.logprobs for each in completions],
        "versions": [each.versions for each in completions],
        "text": [_text(each.text) for each in completions],
        "finished": [each.finished for each in completions],
        "opponent": [each.opponent for each in completions],
        "given": [each.given for each in completions],
    }
    fields = [_COMPLETION.field(number) for number in range(_COMPLETION.num_fields)]
    return pyarrow.StructArray.from_arrays([_array(columns[each.name], each.type) for each in fields], fields=fields)


def _array(values: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    return values if isinstance(values, pyarrow.Array) else pyarrow.array(values, type=kind)


def _offsets(lengths: Iterable[int]) -> pyarrow.Array:
    return pyarrow.array(accumulate(lengths, initial=0), type=pyarrow.int32())


def _text(text: str) -> str:
    """Return text that UTF-8 can hold: JSON data may have half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
