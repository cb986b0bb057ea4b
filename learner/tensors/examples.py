"""Tokenised examples on disk as Parquet: the driver reads the data once, and every rank reads the same examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from actors.files import atomic_file
from learner.tensors.batching import TokenSequence

TRAIN, VALIDATION = "train.parquet", "validation.parquet"
_TOKENS = pyarrow.list_(pyarrow.int32())
_SCHEMA = pyarrow.schema([("prompt", _TOKENS), ("response", _TOKENS)])
_PAIR_SCHEMA = pyarrow.schema(
    [("prompt", _TOKENS), ("chosen", _TOKENS), ("rejected", _TOKENS), ("probability", pyarrow.float64())]
)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference as token ids. Responses end with end-of-sequence."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    probability: float  # probability that `chosen` is preferred to `rejected`


def write_sequences(path: Path, sequences: Sequence[TokenSequence]) -> None:
    """Write prompt and response tokens, whole or not at all. Raises OSError."""
    _write(path, [[list(sequence[part]) for sequence in sequences] for part in (0, 1)], _SCHEMA)


def read_sequences(path: Path) -> list[TokenSequence]:
    """Read what `write_sequences` wrote, in order."""
    table = pyarrow.parquet.read_table(path)
    prompts, responses = (table.column(name).to_pylist() for name in ("prompt", "response"))
    return [(tuple(prompt), tuple(response)) for prompt, response in zip(prompts, responses, strict=True)]


def write_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    """Write preferences, whole or not at all. Raises OSError."""
    _write(path, [[getattr(pair, field.name) for pair in pairs] for field in _PAIR_SCHEMA], _PAIR_SCHEMA)


def read_pairs(path: Path) -> list[TokenPair]:
    """Read what `write_pairs` wrote, in order."""
    table = pyarrow.parquet.read_table(path)
    *tokens, probabilities = (table.column(field.name).to_pylist() for field in _PAIR_SCHEMA)
    return [
        TokenPair(tuple(prompt), tuple(chosen), tuple(rejected), probability)
        for prompt, chosen, rejected, probability in zip(*tokens, probabilities, strict=True)
    ]


def _write(path: Path, columns: Sequence[Sequence[Any]], schema: pyarrow.Schema) -> None:
    arrays = [pyarrow.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), temporary)
