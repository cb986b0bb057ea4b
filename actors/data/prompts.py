"""Prompts: rows become token ids once, and an endless seeded order offers them by position.

The order is a pure function of position, so one integer is a run's place in the data. Must not know leases or
generators.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from actors.data.config import PromptConfig
from actors.data.conversations import render
from actors.data.rows import MalformedRowError, Problem, Row, check_problems, column_of, read_prompt_rows
from actors.data.text import (
    ROWS_PER_TOKENIZER_CALL,
    checked_prompt,
    checked_text,
    holds_bos,
    in_template,
    prompt_token_ids,
    tools_of,
)
from actors.records import Prompt

EPOCH_STREAM, EVALUATION_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A well-formed row before tokenisation. Other columns are dropped: they could be large."""

    id: str
    text: str
    answer: str | None
    messages: Sequence[Mapping[str, Any]] | None
    structure: Any  # of an answer that is a list or several columns, else None
    columns: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Any] | None = None


class PromptSource:
    """All prompts of a source, in an endless seeded order.

    Position `p` is in epoch `p // len(self)`. Each epoch has its own permutation, drawn by `numpy.random.Generator`
    with the seed (seed, epoch). Positions can be read in any order.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any) -> None:
        """Read, check and tokenise every row.

        Args:
            config: the source, and whether malformed rows are skipped.
            tokenizer: the policy's transformers tokenizer.

        Raises UsageError if the source cannot be read, rows are malformed (unless skipped), or no row is left.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._prompts: list[_Parsed] = []
        self._orders: dict[int, np.ndarray] = {}
        token_ids: list[np.ndarray] = []
        problems: dict[int, Problem] = {}
        rows = enumerate(read_prompt_rows(config))
        while chunk := list(islice(rows, ROWS_PER_TOKENIZER_CALL)):
            self._add_rows(chunk, token_ids, problems)
        found = [problems[number] for number in sorted(problems)]
        check_problems(found, len(self._prompts), config.source, config.on_malformed, "prompts.")
        self.skipped = [str(problem) for problem in found]
        """`place: problem` of each malformed row, in file order."""
        self._token_ids = np.concatenate(token_ids)
        self.largest_token_id = int(self._token_ids.max())
        self.bos_token = tokenizer.bos_token
        self.doubled_bos = sum(holds_bos(each.text, tokenizer) for each in self._prompts if each.messages is None)
        """Texts with a beginning-of-sequence token, to which the tokenizer would have added a second one."""
        self._ends = np.cumsum([len(ids) for ids in token_ids])

    def __len__(self) -> int:
        """Return the number of prompts in one epoch."""
        return len(self._prompts)

    def prompt(self, position: int) -> Prompt:
        """Return the prompt at `position` (0, 1, 2, ...) of the global order."""
        if position < 0:
            raise ValueError(f"position {position} is negative; the order starts at 0")
        epoch, place = divmod(position, len(self))
        return self._make_prompt(int(self._order(epoch)[place]))

    def evaluation_prompts(self, n: int) -> list[Prompt]:
        """Return `n` prompts, the same at every call and after a resume; repeated only if `n` exceeds the epoch."""
        order = self._permutation(EVALUATION_STREAM)
        return [self._make_prompt(int(order[i % len(self)])) for i in range(n)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of texts, answers and token ids in file order: positions mean nothing on other data."""
        digest = hashlib.sha256()
        for parsed in self._prompts:
            digest.update(repr((parsed.text, parsed.answer)).encode())
            if parsed.columns:
                digest.update(repr(sorted(parsed.columns.items())).encode())
        digest.update(self._token_ids.astype("<u4").tobytes())
        digest.update(self._ends.astype("<i8").tobytes())
        return digest.hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) == 2:  # leases straddle at most the border between two epochs
                del self._orders[next(iter(self._orders))]
            shuffled = self._config.shuffle
            self._orders[epoch] = self._permutation(EPOCH_STREAM, epoch) if shuffled else np.arange(len(self))
        return self._orders[epoch]

    def _permutation(self, *stream: int) -> np.ndarray:
        seed = np.random.SeedSequence(self._config.seed, spawn_key=stream)
        return np.random.default_rng(seed).permutation(len(self))

    def _make_prompt(self, index: int) -> Prompt:
        parsed = self._prompts[index]
        start = self._ends[index - 1] if index else 0
        return Prompt(
            id=parsed.id,
            token_ids=tuple(self._token_ids[start : self._ends[index]].tolist()),
            text=parsed.text,
            answer=parsed.answer,
            metadata=({} if parsed.messages is None else {"messages": parsed.messages})
            | ({"columns": parsed.columns} if parsed.columns else {})
            | ({"tools": parsed.tools} if parsed.tools else {})
            | ({} if parsed.structure is None else {"answer": parsed.structure}),
        )

    def _add_rows(
        self, rows: Iterable[tuple[int, Row]], token_ids: list[np.ndarray], problems: dict[int, Problem]
    ) -> None:
        """Add good rows to the prompts and to `token_ids`, and the others to `problems` by their number."""
        parsed: list[tuple[int, Row, _Parsed]] = []
        for number, row in rows:
            try:
                parsed.append((number, row, _parse(row, self._config, self._tokenizer)))
            except MalformedRowError as error:
                problems[number] = Problem(row.place, str(error))
        texts, chats = [each.text for _, _, each in parsed], [each.messages is not None for _, _, each in parsed]
        limit = self._config.max_prompt_tokens
        for (number, row, each), ids in zip(parsed, prompt_token_ids(texts, chats, self._tokenizer), strict=True):
            if 0 < len(ids) <= limit:
                self._prompts.append(each)
                token_ids.append(np.asarray(ids, dtype=np.uint32))
            else:
                long = f"{len(ids)} tokens, more than prompts.max_prompt_tokens {limit}"
                problems[number] = Problem(row.place, long if ids else "no tokens; the prompt must not be empty")


def _parse(row: Row, config: PromptConfig, tokenizer: Any) -> _Parsed:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    value = column_of(row, config.prompt_field)
    columns = {name: _column(row, name) for name in config.columns}
    answer, structure = (None, None) if config.answer_field is None else _answer(row, config.answer_field)
    prompt = checked_prompt(value, config.prompt_field)
    tools = tools_of(row.columns, prompt)
    if isinstance(prompt, str):
        return _Parsed(row.id, in_template(prompt, config.template), answer, None, structure, columns)
    what = f"field '{config.prompt_field}' of prompts.source '{config.source}'"
    text = render(prompt, tokenizer, what, tools=tools)
    return _Parsed(row.id, text, answer, prompt, structure, columns, tools)


def _column(row: Row, name: str) -> Any:
    """Return a column that may be null. Raises MalformedRowError if it is absent."""
    return None if row.columns.get(name, name) is None else column_of(row, name)


def _answer(row: Row, field: str | tuple[str, ...]) -> tuple[str, Any]:
    """Return an answer as text, and its structure: None, a list, or a dict of columns; its text is then JSON."""
    value = column_of(row, field) if isinstance(field, str) else {name: column_of(row, name) for name in field}
    name = field if isinstance(field, str) else ", ".join(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float | list | dict):
        raise MalformedRowError(
            f"field '{name}' is of type {type(value).__name__}; allowed are a string, a number, a list or a dict"
        )
    if isinstance(value, str | int | float):
        return checked_text(str(value), name), None
    try:
        return checked_text(json.dumps(value, ensure_ascii=False), name), value
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedRowError(f"field '{name}' holds what is no JSON: {error}") from None
