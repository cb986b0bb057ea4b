"""Turn one batch of rows into prompts: parse and tokenise rows, report problems. Runs in any process.

Must not know other batches, files of tokens, or the order of prompts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow

from actors.data.batches import Row
from actors.data.config import PromptConfig
from actors.data.conversations import render
from actors.data.rows import MalformedRowError, Problem, column_of
from actors.data.text import (
    chat_or_value,
    checked_prompt,
    checked_text,
    holds_bos,
    in_template,
    prompt_token_ids,
    tools_of,
)
from actors.foreign.text import many

SCHEMA = pyarrow.schema(
    {
        "id": pyarrow.large_binary(),  # bytes, because names of files need not be Unicode
        "text": pyarrow.large_string(),
        "answer": pyarrow.large_string(),
        "metadata": pyarrow.large_string(),  # JSON; null if there is none, or JSON does not hold it
        "token_ids": pyarrow.large_list(pyarrow.uint32()),
    }
)
FILE_NAME_ERRORS = "surrogatepass"
_PLAIN = {str, int, float, bool, type(None)}


@dataclass(frozen=True, slots=True)
class Part:
    """Prompts of one batch. Made by `tokenise`; read by `table.py`."""

    prompts: Any  # pyarrow.RecordBatch of SCHEMA
    written: bytes
    """Texts, answers and columns in order, as bytes for the fingerprint."""
    problems: list[Problem]
    doubled_bos: int
    others: dict[int, Mapping[str, Any]]
    """Metadata that JSON does not hold, such as dates, by the number of the prompt in this part."""


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

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the future content of `Prompt.metadata`."""
        return (
            ({} if self.messages is None else {"messages": self.messages})
            | ({"columns": self.columns} if self.columns else {})
            | ({"tools": self.tools} if self.tools else {})
            | ({} if self.structure is None else {"answer": self.structure})
        )

    @property
    def written(self) -> bytes:
        """Return the row's part of the fingerprint's input, apart from token ids."""
        columns = repr(sorted(self.columns.items())).encode() if self.columns else b""
        return repr((self.text, self.answer)).encode() + columns


def tokenise(rows: Iterable[Row], config: PromptConfig, tokenizer: Any) -> Part:
    """Parse and tokenise rows. Raises UsageError if the tokenizer cannot read prompts of this kind at all."""
    parsed: list[tuple[int, Row, _Parsed]] = []
    problems: dict[int, Problem] = {}
    for number, row in enumerate(rows):
        try:
            parsed.append((number, row, _parse(row, config, tokenizer)))
        except MalformedRowError as error:
            problems[number] = Problem(row.place, str(error))
    texts, chats = [each.text for _, _, each in parsed], [each.messages is not None for _, _, each in parsed]
    limit = config.max_prompt_tokens
    good: list[_Parsed] = []
    all_ids: list[list[int]] = []
    for (number, row, each), ids in zip(parsed, prompt_token_ids(texts, chats, tokenizer), strict=True):
        if 0 < len(ids) <= limit:
            good.append(each)
            all_ids.append(ids)
        else:
            long = f"{many(len(ids), 'token')}, more than prompts.max_prompt_tokens {limit}"
            empty = "no tokens; the prompt must not be empty"
            problems[number] = Problem(row.place, long if ids else empty, tokens=len(ids))
    metadata = [_json(each.metadata) for each in good]
    return Part(
        _columns(good, metadata, all_ids),
        b"".join(each.written for each in good),
        [problems[number] for number in sorted(problems)],
        sum(holds_bos(each.text, tokenizer) for each in good if each.messages is None),
        {number: each.metadata for number, each in enumerate(good) if each.metadata and metadata[number] is None},
    )


def _columns(good: list[_Parsed], metadata: list[str | None], token_ids: list[list[int]]) -> Any:
    ends = np.cumsum([0, *map(len, token_ids)])
    flat = np.fromiter(chain.from_iterable(token_ids), dtype=np.uint32, count=int(ends[-1]))
    columns = {
        "id": [each.id.encode("utf-8", FILE_NAME_ERRORS) for each in good],
        "text": [each.text for each in good],
        "answer": [each.answer for each in good],
        "metadata": metadata,
    }
    arrays = [pyarrow.array(values, SCHEMA.field(name).type) for name, values in columns.items()]
    arrays.append(pyarrow.LargeListArray.from_arrays(ends, pyarrow.array(flat)))
    return pyarrow.record_batch(arrays, schema=SCHEMA)


def _json(metadata: Mapping[str, Any]) -> str | None:
    """Return metadata as JSON; None if there is none, or if it would not survive a round trip through JSON."""
    return json.dumps(metadata) if metadata and _is_plain(metadata) else None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and (type(each) in _PLAIN or _is_plain(each)) for key, each in value.items())
    if kind is list:
        return all(type(each) in _PLAIN or _is_plain(each) for each in value)
    return kind in _PLAIN


def _parse(row: Row, config: PromptConfig, tokenizer: Any) -> _Parsed:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    value = chat_or_value(column_of(row, config.prompt_field), f"field '{config.prompt_field}'")
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
    """Return an answer as text, and its structure. That is None for a text or number, else a list or dict, written as
    JSON."""
    value = column_of(row, field) if isinstance(field, str) else {name: column_of(row, name) for name in field}
    name = field if isinstance(field, str) else ", ".join(field)
    if isinstance(value, bool) or not isinstance(value, str | int | float | list | dict):
        raise MalformedRowError(
            f"field '{name}' is of type {type(value).__name__}; allowed are a string, a number, a list or a dict"
        )
    if value != value:
        raise MalformedRowError(f"field '{name}' is NaN, as pandas writes a missing value; leave the row out")
    if isinstance(value, str | int | float):
        return checked_text(str(value), name), None
    try:
        return checked_text(json.dumps(value, ensure_ascii=False), name), value
    except (TypeError, ValueError, RecursionError) as error:
        raise MalformedRowError(f"field '{name}' holds what is no JSON: {error}") from None
