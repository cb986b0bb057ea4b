"""Well-formed pairs on disk while a source is read, so that memory holds what decides on them and not their texts."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from actors.data.preference_filters import Split, comparison_key, side_of
from actors.data.preference_layouts import Message, PreferenceRow, identity, text_of
from actors.data.preferences import COLUMN_TYPES, MESSAGES, ROWS_PER_GROUP, WHOLE_TYPES, whole_columns
from actors.errors import UsageError
from actors.files import atomic_file
from actors.foreign.text import many

_SCHEMA = pyarrow.schema(
    [("text", pyarrow.string()), ("chat", MESSAGES), *list(COLUMN_TYPES.items())[1:], ("whole", pyarrow.string())]
)
"""Columns as in the final file, except two: the prompt as a text or a chat, and JSON for rows that are not plain."""


class PairStore:
    """Rows in the order in which they were added. Its file has no name, and goes with the process."""

    def __init__(self, validation_fraction: float, seed: int) -> None:
        self._fraction, self._seed = validation_fraction, seed
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, closed with the store
        self._writer = pyarrow.ipc.new_file(self._file, _SCHEMA)
        self._reader: Any = None
        self._open: list[tuple[Any, ...]] = []
        self._held: tuple[int, list[PreferenceRow]] = (-1, [])
        self._is_text, self._is_plain = bytearray(), bytearray()
        self.keys: list[bytes] = []
        """`comparison_key` of each row."""
        self.sides: list[Split] = []
        self.lengths = array("q")
        """Characters of prompt, chosen and rejected, row by row."""

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, row: PreferenceRow) -> None:
        """Add a row. Raises OSError if the disk refuses."""
        keys = row.keys
        self.keys.append(comparison_key(*keys))
        self.sides.append(side_of(keys[0], self._fraction, self._seed))
        is_text = isinstance(row.prompt, str)
        self._is_text.append(is_text)
        self._is_plain.append(row.is_plain)
        characters = (
            len(row.prompt) if isinstance(row.prompt, str) else sum(len(message["content"]) for message in row.prompt)
        )
        chosen, rejected = text_of(row.chosen), text_of(row.rejected)
        self.lengths.extend((characters, len(chosen), len(rejected)))
        texts = (row.prompt, None) if is_text else (None, row.prompt)
        whole = None if row.is_plain else json.dumps((row.prompt, row.chosen, row.rejected, row.probability, row.tools))
        self._open.append((*texts, chosen, rejected, row.probability, identity(*keys), whole))
        if len(self._open) == ROWS_PER_GROUP:
            self._flush()

    def row(self, number: int) -> PreferenceRow:
        """Return a row. Neighbours are held, so that rows in order are read once."""
        group, place = divmod(number, ROWS_PER_GROUP)
        if self._held[0] != group:
            columns = self._groups().get_batch(group).to_pydict()
            prompts: list[str | list[Message]] = [
                text if text is not None else chat for text, chat in zip(columns["text"], columns["chat"], strict=True)
            ]
            parts = zip(prompts, columns["chosen"], columns["rejected"], columns["probability"], strict=True)
            self._held = (
                group,
                [
                    PreferenceRow(*(part if whole is None else json.loads(whole)))
                    for part, whole in zip(parts, columns["whole"], strict=True)
                ],
            )
        return self._held[1][place]

    def rows(self, numbers: Sequence[int]) -> Iterator[PreferenceRow]:
        """Return rows; `numbers` rise."""
        return map(self.row, numbers)

    def check_one_kind(self, numbers: Sequence[int]) -> None:
        """Raise UsageError if some prompts are texts and others chats: one column cannot hold both."""
        texts, count = sum(self._is_text[number] for number in numbers), len(numbers)
        if 0 < texts < count:
            raise UsageError(
                f"its prompts are {many(texts, 'text')} and {many(count - texts, 'chat')}, and one column holds "
                "one kind; prepare them as two sources, or write the texts as chats of one user message"
            )

    def write(self, path: Path, numbers: Sequence[int]) -> None:
        """Write these rows, all of one kind, as Parquet, whole or not at all. Raises OSError.

        The columns are those of `COLUMN_TYPES`, or of `WHOLE_TYPES` if a row is not plain.
        """
        if all(self._is_plain[number] for number in numbers):
            self._write_plain(path, numbers)
        else:
            self._write_whole(path, numbers)

    def _write_plain(self, path: Path, numbers: Sequence[int]) -> None:
        wanted: NDArray[np.bool_] = np.zeros(len(self), dtype=bool)
        wanted[list(numbers)] = True
        texts = not len(numbers) or bool(self._is_text[numbers[0]])
        types = {**COLUMN_TYPES, "prompt": COLUMN_TYPES["prompt"] if texts else MESSAGES}
        schema = pyarrow.schema(list(types.items()))
        reader = self._groups()
        with atomic_file(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for group in range(reader.num_record_batches):
                chosen = wanted[group * ROWS_PER_GROUP : (group + 1) * ROWS_PER_GROUP]
                if chosen.any():
                    batch = reader.get_batch(group).filter(pyarrow.array(chosen))
                    names = ["text" if texts else "chat", *list(types)[1:]]
                    columns = [batch.column(name) for name in names]
                    writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))

    def _write_whole(self, path: Path, numbers: Sequence[int]) -> None:
        schema = pyarrow.schema(list(WHOLE_TYPES.items()))
        with atomic_file(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(numbers), ROWS_PER_GROUP):
                columns = whole_columns([self.row(number) for number in numbers[start : start + ROWS_PER_GROUP]])
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))

    def _flush(self) -> None:
        if self._open:
            columns = zip(*self._open, strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._writer.write_batch(pyarrow.record_batch(arrays, schema=_SCHEMA))
            self._open = []

    def _groups(self) -> Any:
        if self._reader is None:
            self._flush()
            self._writer.close()
            self._reader = pyarrow.ipc.open_file(self._file)
        return self._reader
