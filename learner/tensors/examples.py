"""Tokenised examples on disk, so that the driver reads data once and every rank finds the same. Plain Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from actors.files import atomic_file
from learner.tensors.batching import TokenSequence

TRAIN, VALIDATION = "train.parquet", "validation.parquet"
_SCHEMA = pyarrow.schema(
    [("prompt", pyarrow.list_(pyarrow.int32())), ("response", pyarrow.list_(pyarrow.int32()))],
)
_PAIR_SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.list_(pyarrow.int32())) for name in ("prompt", "chosen", "rejected")),
        ("probability", pyarrow.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference as token ids; responses end with end-of-sequence."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    probability: float
    """That `chosen` is preferred to `rejected`."""


def write_sequences(path: Path, sequences: Sequence[TokenSequence]) -> None:
    """Writes prompt and response tokens, whole or not at all. Raises OSError when the disk refuses."""
    columns = [[list(sequence[part]) for sequence in sequences] for part in (0, 1)]
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    write_table(path, pyarrow.Table.from_arrays(arrays, schema=_SCHEMA))


def read_sequences(path: Path) -> list[TokenSequence]:
    """What `write_sequences` wrote, in order."""
    table = pyarrow.parquet.read_table(path)
    prompts, responses = (table.column(name).to_pylist() for name in ("prompt", "response"))
    return [(tuple(prompt), tuple(response)) for prompt, response in zip(prompts, responses, strict=True)]


def write_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    """Writes preferences, whole or not at all. Raises OSError when the disk refuses."""
    arrays = [pyarrow.array([getattr(pair, field.name) for pair in pairs], field.type) for field in _PAIR_SCHEMA]
    write_table(path, pyarrow.Table.from_arrays(arrays, schema=_PAIR_SCHEMA))


def read_pairs(path: Path) -> list[TokenPair]:
    """What `write_pairs` wrote, in order."""
    table = pyarrow.parquet.read_table(path)
    *tokens, probabilities = (table.column(field.name).to_pylist() for field in _PAIR_SCHEMA)
    return [
        TokenPair(tuple(prompt), tuple(chosen), tuple(rejected), probability)
        for prompt, chosen, rejected, probability in zip(*tokens, probabilities, strict=True)
    ]


def write_table(path: Path, table: pyarrow.Table) -> None:
    """Write a Parquet file, whole or not at all. Raises OSError if the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
