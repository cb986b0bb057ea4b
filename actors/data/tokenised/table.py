"""All prompts of a source as Arrow columns, in memory or in a mapped file. Each `Prompt` is made on request.

Must not know rows, tokenizers, or the order of prompts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow

from actors.data.rows import Problem
from actors.data.tokenised.parsing import FILE_NAME_ERRORS, SCHEMA, Part
from actors.records import Prompt


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about all prompts of a source together."""

    fingerprint: str
    """SHA-256 of texts, answers, columns and token ids in file order."""
    largest_token_id: int  # -1 if there is no prompt
    doubled_bos: int
    problems: list[Problem]  # malformed rows, in file order


class PromptTable:
    """Prompts in file order."""

    def __init__(self, content: Any, facts: Facts, others: Mapping[int, Mapping[str, Any]], held: Any = None) -> None:
        """Take over columns.

        Args:
            content: pyarrow.Table of `SCHEMA`.
            facts: facts about the same prompts.
            others: metadata that is not in `content`, by the prompt's number.
            held: an object that must live as long as the columns, such as the locked file behind them.
        """
        self.facts = facts
        self._content, self._others, self._held = content, others, held
        self._columns = [content.column(name) for name in SCHEMA.names]

    def __len__(self) -> int:
        return int(self._content.num_rows)

    @property
    def complete(self) -> bool:
        """Return whether the columns hold all data of the prompts, so that no metadata is kept apart."""
        return not self._others

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the content of the columns, without their file."""
        return PromptTable, (self._content, self.facts, self._others)

    def texts(self) -> Iterator[str]:
        """Return the text of each prompt, in file order."""
        for chunk in self._content.column("text").chunks:
            yield from chunk.to_pylist()

    def prompt(self, number: int) -> Prompt:
        """Return one prompt."""
        row_id, text, answer, metadata, token_ids = (column[number] for column in self._columns)
        kept = self._others.get(number, {}) if metadata.as_py() is None else json.loads(metadata.as_py())
        return Prompt(
            id=row_id.as_py().decode("utf-8", FILE_NAME_ERRORS),
            token_ids=tuple(token_ids.values.to_numpy().tolist()),
            text=text.as_py(),
            answer=answer.as_py(),
            metadata=kept,
        )


class Gathering:
    """Facts collected from parts as they pass, until all have passed."""

    def __init__(self) -> None:
        self.prompts = 0
        self.others: dict[int, Mapping[str, Any]] = {}
        self._problems: list[Problem] = []
        self._doubled_bos = 0
        self._digest = hashlib.sha256()

    def note(self, parts: Iterable[Part]) -> Iterator[Any]:
        """Collect the facts of each part, then yield its columns."""
        for part in parts:
            self._digest.update(part.written)
            self._problems += part.problems
            self._doubled_bos += part.doubled_bos
            self.others |= {self.prompts + number: value for number, value in part.others.items()}
            self.prompts += part.prompts.num_rows
            yield part.prompts

    def facts(self, content: Any) -> Facts:
        """Return the facts about `content`, the columns of all parts in order."""
        digest, largest, tokens = self._digest.copy(), -1, 0
        ends: list[np.ndarray] = []
        for chunk in content.column("token_ids").chunks:
            ids = chunk.flatten().to_numpy()
            digest.update(ids.astype("<u4", copy=False).tobytes())
            largest = max(largest, int(ids.max(initial=0)) if len(ids) else -1)
            offsets = chunk.offsets.to_numpy()
            ends.append((offsets[1:] - offsets[0] + tokens).astype("<i8", copy=False))
            tokens += len(ids)
        for each in ends:
            digest.update(each.tobytes())
        return Facts(digest.hexdigest(), largest, self._doubled_bos, self._problems)


def in_memory(parts: Iterable[Part]) -> PromptTable:
    """Hold the prompts of all parts in memory."""
    gathering = Gathering()
    content = pyarrow.Table.from_batches(list(gathering.note(parts)), schema=SCHEMA)
    return PromptTable(content, gathering.facts(content), gathering.others)
