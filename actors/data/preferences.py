"""Read preferences of any layout into one form, tokenise them, and give columns to write them to Parquet.

Knows files and the treatment of malformed rows. Must not know models or which preferences are worth training on:
`preference_filters.py` decides that.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow

from actors.data.batches import Row
from actors.data.config import ProbabilityFrom
from actors.data.conversations import BrokenConversationError, Conversation, conversation_tokens, written
from actors.data.preference_forms import FormError, Halves, RankedPairs, columns_for, pairs_of
from actors.data.preference_layouts import (
    COLUMNS,
    LAYOUTS,
    MESSAGE_PARTS,
    MalformedPreferenceError,
    Message,
    PreferenceRow,
    parse_preference,
)
from actors.data.rows import (
    MalformedRowError,
    Problem,
    RowSource,
    check_problems,
    columns_named,
    rows_from,
)
from actors.data.text import (
    ROWS_PER_TOKENIZER_CALL,
    chat_or_value,
    checked_messages,
    checked_text,
)
from actors.errors import UsageError
from actors.foreign.text import suggestion

Answered = tuple[list[int], list[int]] | BrokenConversationError
_TEXTS = {"role": pyarrow.string(), "content": pyarrow.string()}
MESSAGES = pyarrow.list_(pyarrow.struct(list(_TEXTS.items())))
WHOLE_MESSAGES = pyarrow.list_(pyarrow.struct(list((_TEXTS | dict.fromkeys(MESSAGE_PARTS, pyarrow.string())).items())))
"""Type of chats with more than roles and texts; `tool_calls` are JSON, because a column has one type only."""
COLUMN_TYPES = {
    "prompt": pyarrow.string(),
    "chosen": pyarrow.string(),
    "rejected": pyarrow.string(),
    "probability": pyarrow.float64(),
    "id": pyarrow.string(),
}
"""Types of the columns in files of preferences; a chat prompt has the type `MESSAGES`."""
WHOLE_TYPES = (
    COLUMN_TYPES | dict.fromkeys(("prompt", "chosen", "rejected"), WHOLE_MESSAGES) | {"tools": pyarrow.string()}
)
"""Types in files with a row that is not `is_plain`: responses are chats of one message, `tools` are JSON."""
TEXTS = ("prompt", "chosen", "rejected", "response_a", "response_b", "preference")
"""Columns that a row of their layout must have."""
ROWS_PER_GROUP = 20_000
"""Rows that are held in memory as one table while a file is written."""


@dataclass(frozen=True, slots=True)
class Collected:
    """All pairs of a source, and its malformed rows (not blank lines). A row of K responses may give several pairs."""

    rows: list[PreferenceRow] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # the place of each of `rows`
    problems: list[Problem] = field(default_factory=list)  # malformed rows, in file order


class PreferenceColumns:
    """The columns of a source, the names that they are read under, and which of them make preferences."""

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        """Take a mapping from the name that a column is read under to its name in the source."""
        self._ours = {theirs: ours for ours, theirs in (columns or {}).items()}
        self._read: dict[tuple[str, ...], set[str]] = {}  # the columns to read, by all columns of rows

    def choose(self, names: Sequence[str], place: str) -> list[str]:
        """Return a table's columns that make preferences. Raises UsageError if they make none."""
        for name in self._ours:
            if name not in names:
                raise UsageError(f"{place} has no column '{name}' (columns); {suggestion(name, names)}")
        back = {ours: theirs for theirs, ours in self._ours.items()}
        read = dict.fromkeys(self._ours.get(name, name) for name in names)
        chosen = [back.get(name, name) for name in _columns_of_layout(list(read), place)]
        self._read[tuple(names)] = set(chosen)
        return chosen

    def renamed(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rename columns to the names that they are read under. If a row has both names, the renamed column wins.

        Raises MalformedPreferenceError if a configured column of a text or a chat is missing.
        """
        for theirs, ours in self._ours.items():
            if theirs not in columns and ours in TEXTS:
                raise MalformedPreferenceError(
                    "missing_column", f"no column '{theirs}' (columns); {suggestion(theirs, list(columns))}"
                )
        names = tuple(name for name, value in columns.items() if value is not None)
        if names not in self._read:
            with suppress(UsageError):  # of no layout: the row is malformed
                self.choose(names, "")
        if not self._ours:
            return columns
        told = {self._ours[name]: value for name, value in columns.items() if name in self._ours}
        return {**{name: value for name, value in columns.items() if name not in self._ours}, **told}

    def layouts(self) -> list[str]:
        """Return the columns that were read in each layout, under the source's names."""
        return sorted({", ".join(name for name in names if name in read) for names, read in self._read.items()})

    def unread(self) -> list[str]:
        """Return the columns of well-formed rows that were not read."""
        return sorted({name for names, read in self._read.items() for name in names if name not in read})


@dataclass(frozen=True, slots=True)
class PreferenceTokens:
    """Token ids of one preference; responses end with end-of-sequence."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Limits of a sequence in tokens; None for no limit."""

    prompt: int | None = None
    response: int | None = None
    context: int | None = None  # prompt and response together, end-of-sequence included


def read_preferences(
    source: str,
    split: str = "train",
    *,
    on_malformed: Literal["error", "skip"] = "error",
    probability_from: ProbabilityFrom = "probability",
    section: str = "",
) -> list[PreferenceRow]:
    """Read preferences in file order, raw in one of `LAYOUTS` or as `offbeat data` writes them.

    Args:
        source: a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, or a hub name.
        split: for sources with several.
        on_malformed: `error` refuses a source with a malformed row, `skip` leaves the row out.
        probability_from: see `parse_preference`.
        section: prefix of the names `source`, `split` and `on_malformed` in errors, such as `preferences.`.

    Raises UsageError if the source cannot be read, rows are malformed (unless skipped), or no row is left.
    """
    collected = collect_preferences(source, split, probability_from=probability_from, section=section)
    check_problems(collected.problems, len(collected.rows), source, on_malformed, section)
    return collected.rows


def collect_preferences(
    source: str,
    split: str = "train",
    *,
    probability_from: ProbabilityFrom = "probability",
    columns: Mapping[str, str] | None = None,
    ranked_pairs: RankedPairs = "all",
    section: str = "",
) -> Collected:
    """Read preferences and keep every malformed row as a `Problem`; arguments and errors as in `each_preference`."""
    collected = Collected()
    for place, found in each_preference(
        source,
        split,
        probability_from=probability_from,
        columns=PreferenceColumns(columns),
        ranked_pairs=ranked_pairs,
        section=section,
    ):
        if isinstance(found, Problem):
            collected.problems.append(found)
        else:
            collected.rows.append(found)
            collected.places.append(place)
    return collected


def each_preference(
    source: str,
    split: str = "train",
    *,
    probability_from: ProbabilityFrom = "probability",
    columns: PreferenceColumns | None = None,
    ranked_pairs: RankedPairs = "all",
    section: str = "",
) -> Iterator[tuple[str, PreferenceRow | Problem]]:
    """Yield the place of each row with its pair, or with its `Problem`. A row of K responses may give several pairs.

    `columns` reports afterwards which columns were read; `ranked_pairs` is as in `pairs_of`. Raises UsageError if the
    source is unreadable.
    """
    halves, columns = Halves(), columns or PreferenceColumns()
    for row in rows_from(RowSource(source, split, section, columns.choose)):
        try:
            if row.problem is not None:
                encoding = row.problem.startswith("not UTF-8")
                raise MalformedPreferenceError("wrong_encoding" if encoding else "not_json", row.problem)
            given = _with_chats(columns.renamed(row.columns))
            pairs = halves.add(given, row.place) if halves.holds(given) else pairs_of(given, ranked_pairs)
        except MalformedPreferenceError as error:
            yield row.place, Problem(row.place, str(error), error.reason)
            continue
        except FormError as error:
            yield row.place, Problem(row.place, str(error), "wrong_type")
            continue
        for pair in pairs:
            try:
                yield row.place, parse_preference(pair, probability_from)
            except MalformedPreferenceError as error:
                yield row.place, Problem(row.place, str(error), error.reason)
    for place in halves.left():
        yield place, Problem(place, "no row of its prompt has the other label", "no_pair")


def read_samples(source: str, section: str = "") -> list[tuple[str | list[Message], str]]:
    """Read the columns `prompt` (texts or chats) and `response`.

    Raises UsageError if `source` cannot be read or any row is malformed.
    """
    columns = columns_named({"column of prompts": "prompt", "column of responses": "response"})
    samples: list[tuple[str | list[Message], str]] = []
    for row in rows_from(RowSource(source, "train", section, columns)):
        try:
            samples.append(_sample(row))
        except MalformedRowError as error:
            raise UsageError(f"{row.place}: {error}; correct it or remove it") from error
    check_problems([], len(samples), source, "error", section)
    return samples


def whole_columns(rows: Sequence[PreferenceRow]) -> list[pyarrow.Array]:
    """Return rows of chats as columns of `WHOLE_TYPES`."""

    def chat(messages: Sequence[Message]) -> list[Message]:
        return [
            {**message, "tool_calls": json.dumps(message["tool_calls"])} if "tool_calls" in message else message
            for message in messages
        ]

    def answer(response: str | Message) -> list[Message]:
        return chat([{"role": "assistant", "content": response} if isinstance(response, str) else response])

    columns = {
        "prompt": [chat(row.prompt) for row in rows if not isinstance(row.prompt, str)],
        "chosen": [answer(row.chosen) for row in rows],
        "rejected": [answer(row.rejected) for row in rows],
        "probability": [row.probability for row in rows],
        "id": [row.id for row in rows],
        "tools": [None if row.tools is None else json.dumps(row.tools) for row in rows],
    }
    return [pyarrow.array(columns[name], kind) for name, kind in WHOLE_TYPES.items()]


def preference_tokens(
    rows: Sequence[PreferenceRow],
    tokenizer: Any,
    ends: Collection[int] = (),
    *,
    template: str = "{prompt}",
    limits: TokenLimits = TokenLimits(),
) -> list[PreferenceTokens | MalformedPreferenceError]:
    """Tokenise each row as the policy would sample it. A row that exceeds `limits`, or whose chat the template refuses,
    gives an error.

    A text goes into `template` and gets the tokenizer's special tokens, without a final end-of-sequence; its responses
    get an end-of-sequence only. A chat goes into the chat template; its responses are what they add to it, up to the
    first token that ends an answer; `ends` are as in `response_token_ids`. Raises UsageError if there are chats, and
    the tokenizer has no chat template.
    """
    results: list[PreferenceTokens | MalformedPreferenceError] = []
    for start in range(0, len(rows), ROWS_PER_TOKENIZER_CALL):
        results += _tokens_of_chunk(rows[start : start + ROWS_PER_TOKENIZER_CALL], tokenizer, ends, template, limits)
    return results


def _with_chats(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Decode the chats that columns hold as JSON. Raises MalformedPreferenceError for an error of `chat_or_value`."""
    try:
        return {name: chat_or_value(value, f"'{name}'") for name, value in columns.items()}
    except MalformedRowError as error:
        raise MalformedPreferenceError("not_json", str(error)) from error


def _sample(row: Row) -> tuple[str | list[Message], str]:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    prompt, response = chat_or_value(row.columns.get("prompt"), "'prompt'"), row.columns.get("response")
    if not isinstance(prompt, str | list) or not isinstance(response, str):
        raise MalformedRowError("'prompt' must be a text or a list of chat messages, and 'response' a text")
    response = checked_text(response, "response")
    if isinstance(prompt, str):
        return checked_text(prompt, "prompt"), response
    messages = checked_messages(prompt, "prompt")
    return [{"role": message["role"], "content": message["content"]} for message in messages], response


def _columns_of_layout(names: Sequence[str], place: str) -> list[str]:
    known = [name for name in COLUMNS if name in names]
    form = columns_for(names)
    if form is not None and not {"prompt", "chosen", "rejected"} <= set(known):
        return form
    if not ({"chosen", "rejected"} <= set(known) or {"response_a", "response_b", "preference"} <= set(known)):
        raise UsageError(
            f"{place} has the columns {', '.join(names) or 'none'}, which form no preference; allowed are {LAYOUTS}"
        )
    return known


def _tokens_of_chunk(
    rows: Sequence[PreferenceRow], tokenizer: Any, ends: Collection[int], template: str, limits: TokenLimits
) -> list[PreferenceTokens | MalformedPreferenceError]:
    conversations: list[Conversation] = []
    results: list[PreferenceTokens | MalformedPreferenceError | None] = []
    for row in rows:
        try:
            both = [
                written(row.prompt, answer, tokenizer, "a preference", template=template, tools=row.tools)
                for answer in (row.chosen, row.rejected)
            ]
        except BrokenConversationError as error:
            results.append(MalformedPreferenceError(error.reason, str(error)))
        else:
            conversations += both
            results.append(None)
    tokens = iter(conversation_tokens(conversations, tokenizer, ends))
    return [result or _pair(row, next(tokens), next(tokens), limits) for row, result in zip(rows, results, strict=True)]


def _pair(
    row: PreferenceRow, chosen: Answered, rejected: Answered, limits: TokenLimits
) -> PreferenceTokens | MalformedPreferenceError:
    if isinstance(chosen, BrokenConversationError):
        return MalformedPreferenceError(chosen.reason, str(chosen))
    if isinstance(rejected, BrokenConversationError):
        return MalformedPreferenceError(rejected.reason, str(rejected))
    (prompt, one), (_, other) = chosen, rejected
    if one == other and row.chosen != row.rejected:  # samples are given with one response twice
        return MalformedPreferenceError("identical_pair", "chosen and rejected are the same tokens")
    return _within(PreferenceTokens(prompt, one, other), limits)


def _within(tokens: PreferenceTokens, limits: TokenLimits) -> PreferenceTokens | MalformedPreferenceError:
    prompt, response = len(tokens.prompt), max(len(tokens.chosen), len(tokens.rejected))
    for limit, words in ((limits.prompt, "max_prompt_tokens"), (limits.context, "the model's context of")):
        if limit is not None and prompt > limit:
            return MalformedPreferenceError("long_prompt", f"{prompt} prompt tokens, more than {words} {limit}")
    if limits.response is not None and response > limits.response:
        message = f"{response} response tokens, more than max_response_tokens {limits.response}"
        return MalformedPreferenceError("long_response", message)
    if limits.context is not None and prompt + response > limits.context:
        message = f"{prompt} prompt and {response} response tokens, more than the model's context of {limits.context}"
        return MalformedPreferenceError("long_response", message)
    return tokens
