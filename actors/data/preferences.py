"""Preferences: rows of any layout become one form and token ids, and go back to Parquet.

Knows files and what happens to malformed rows. Must not know models or which preferences are worth training on; that
is `preference_filters.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.data.config import ProbabilityFrom
from actors.data.preference_layouts import (
    COLUMNS,
    LAYOUTS,
    MalformedPreferenceError,
    Message,
    PreferenceRow,
    parse_preference,
)
from actors.data.rows import (
    MalformedRowError,
    Problem,
    Row,
    RowSource,
    check_problems,
    columns_named,
    rows_from,
)
from actors.data.text import (
    ROWS_PER_TOKENIZER_CALL,
    answered_chat,
    checked_messages,
    checked_text,
    in_template,
    prompt_token_ids,
    response_token_ids,
)
from actors.errors import UsageError
from actors.files import atomic_file


@dataclass(frozen=True, slots=True)
class Collected:
    """All rows of a source: `len(rows) + len(problems)` of them, blank lines not counted."""

    rows: list[PreferenceRow] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # the place of each of `rows`
    problems: list[Problem] = field(default_factory=list)  # malformed rows, in file order


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
    """Read preferences in file order, raw in one of `LAYOUTS` or as `write_preferences` writes them.

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
    source: str, split: str = "train", *, probability_from: ProbabilityFrom = "probability", section: str = ""
) -> Collected:
    """Read preferences and keep every malformed row as a `Problem`. Raises UsageError if the source is unreadable."""
    collected = Collected()
    for row in rows_from(RowSource(source, split, section, _known_columns)):
        try:
            if row.problem is not None:
                encoding = row.problem.startswith("not UTF-8")
                raise MalformedPreferenceError("wrong_encoding" if encoding else "not_json", row.problem)
            collected.rows.append(parse_preference(row.columns, probability_from))
            collected.places.append(row.place)
        except MalformedPreferenceError as error:
            collected.problems.append(Problem(row.place, str(error), error.reason))
    return collected


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


def check_one_kind(rows: Sequence[PreferenceRow]) -> None:
    """Raise UsageError if some prompts are texts and others chats: one column cannot hold both."""
    texts = sum(isinstance(row.prompt, str) for row in rows)
    if 0 < texts < len(rows):
        raise UsageError(
            f"{texts} prompts are texts and {len(rows) - texts} are chats, and one column holds only one kind; prepare "
            "them as two sources, or write the texts as chats of one user message"
        )


def write_preferences(path: Path, rows: Sequence[PreferenceRow]) -> None:
    """Write `rows` as Parquet with the columns prompt, chosen, rejected, probability and id; whole or not at all.

    Raises UsageError as `check_one_kind`; OSError if the disk refuses.
    """
    import pyarrow
    import pyarrow.parquet

    check_one_kind(rows)
    texts = any(isinstance(row.prompt, str) for row in rows)
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = {
        "prompt": pyarrow.string() if texts or not rows else pyarrow.list_(message),
        "chosen": pyarrow.string(),
        "rejected": pyarrow.string(),
        "probability": pyarrow.float64(),
        "id": pyarrow.string(),
    }
    arrays = [pyarrow.array([getattr(row, name) for row in rows], kind) for name, kind in columns.items()]
    with atomic_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays, names=list(columns)), temporary)


def preference_tokens(
    rows: Sequence[PreferenceRow], tokenizer: Any, *, template: str = "{prompt}", limits: TokenLimits = TokenLimits()
) -> list[PreferenceTokens | MalformedPreferenceError]:
    """Tokenise each row as the policy would sample it; an error for a row beyond `limits` or refused by the template.

    A text goes into `template` and gets the tokenizer's special tokens, without a final end-of-sequence; its responses
    get an end-of-sequence only. A chat goes into the chat template; its responses are what they add to it, up to the
    first end-of-sequence. Raises UsageError if there are chats, and the tokenizer has no chat template.
    """
    results: list[PreferenceTokens | MalformedPreferenceError] = []
    for start in range(0, len(rows), ROWS_PER_TOKENIZER_CALL):
        results += _tokens_of_chunk(rows[start : start + ROWS_PER_TOKENIZER_CALL], tokenizer, template, limits)
    return results


def _sample(row: Row) -> tuple[str | list[Message], str]:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    prompt, response = row.columns.get("prompt"), row.columns.get("response")
    if not isinstance(prompt, str | list) or not isinstance(response, str):
        raise MalformedRowError("'prompt' must be a text or a list of chat messages, and 'response' a text")
    response = checked_text(response, "response")
    if isinstance(prompt, str):
        return checked_text(prompt, "prompt"), response
    messages = checked_messages(prompt, "prompt")
    return [{"role": message["role"], "content": message["content"]} for message in messages], response


def _known_columns(names: Sequence[str], place: str) -> list[str]:
    """Return a table's columns that make preferences. Raises UsageError if they make none."""
    known = [name for name in COLUMNS if name in names]
    if not ({"chosen", "rejected"} <= set(known) or {"response_a", "response_b", "preference"} <= set(known)):
        raise UsageError(
            f"{place} has the columns {', '.join(names) or 'none'}, which form no preference; allowed are {LAYOUTS}"
        )
    return known


def _tokens_of_chunk(
    rows: Sequence[PreferenceRow], tokenizer: Any, template: str, limits: TokenLimits
) -> list[PreferenceTokens | MalformedPreferenceError]:
    texts: list[tuple[str, str, str]] = []
    refused: dict[int, MalformedPreferenceError] = {}
    for number, row in enumerate(rows):
        try:
            texts.append(_texts(row, tokenizer, template))
        except MalformedRowError as error:
            refused[number] = MalformedPreferenceError("bad_conversation", str(error))
            texts.append(("", "", ""))
    prompts, chosen, rejected = (list(column) for column in zip(*texts, strict=True))
    chats = [not isinstance(row.prompt, str) for row in rows]
    parts = zip(
        prompt_token_ids(prompts, chats, tokenizer),
        response_token_ids(chosen, tokenizer),
        response_token_ids(rejected, tokenizer),
        strict=True,
    )
    return [refused.get(number) or _within(PreferenceTokens(*part), limits) for number, part in enumerate(parts)]


def _texts(row: PreferenceRow, tokenizer: Any, template: str) -> tuple[str, str, str]:
    if isinstance(row.prompt, str):
        return in_template(row.prompt, template), row.chosen, row.rejected
    chats = [[*row.prompt, {"role": "assistant", "content": response}] for response in (row.chosen, row.rejected)]
    (before, chosen), (_, rejected) = (answered_chat(chat, tokenizer, "a preference") for chat in chats)
    return before, chosen, rejected


def _within(tokens: PreferenceTokens, limits: TokenLimits) -> PreferenceTokens | MalformedPreferenceError:
    prompt, response = len(tokens.prompt), max(len(tokens.chosen), len(tokens.rejected))
    if not prompt:
        return MalformedPreferenceError("empty_prompt", "the prompt has no tokens")
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
