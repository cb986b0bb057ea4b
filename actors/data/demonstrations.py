"""Demonstrations: rows become prompt and response tokens once. Must not know models or training."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.data.batches import Row
from actors.data.config import DemonstrationConfig
from actors.data.conversations import BrokenConversationError, Conversation, conversation_tokens, written
from actors.data.rows import (
    MalformedRowError,
    Problem,
    RowSource,
    check_problems,
    check_training_rows,
    column_of,
    columns_named,
    held_out,
    rows_from,
    splits_to_read,
)
from actors.data.text import (
    chat_or_value,
    checked_messages,
    checked_prompt,
    checked_text,
    in_template,
    tools_of,
)

TokenIds = tuple[int, ...]
Ends = Collection[int]


@dataclass(slots=True)
class Demonstrations:
    """Sequences to imitate."""

    train: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Prompt and response tokens; a response ends with end-of-sequence."""
    validation: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Held out: no prompt is in both."""
    skipped: list[str] = field(default_factory=list)
    """`place: problem` of each malformed row, in file order."""


def demonstration_rows(config: DemonstrationConfig, split: str | None = None) -> Iterator[Row]:
    """Read all rows of `split`; None is the training split. Raises UsageError as `rows_from`."""
    wanted = columns_named({f"data.{setting}": name for setting, name in _fields(config).items()})
    return rows_from(RowSource(config.source, split or config.split, "data.", wanted))


def texts_of(config: DemonstrationConfig) -> Iterator[str]:
    """Return the texts to train a tokenizer on: prompts in their template, and responses.

    Leaves out chats, which need a tokenizer with a chat template, and malformed rows, which `load_demonstrations`
    reports. Raises UsageError as `demonstration_rows`.
    """
    for row in demonstration_rows(config):
        for setting, name in _fields(config).items():
            value = row.columns.get(name)
            if isinstance(value, str):
                with suppress(MalformedRowError):
                    text = checked_text(value, name)
                    yield in_template(text, config.template) if setting == "prompt_field" else text


def load_demonstrations(config: DemonstrationConfig, tokenizer: Any, ends: Collection[int] = ()) -> Demonstrations:
    """Read, check, tokenise and split all demonstrations.

    `config.template` surrounds a string prompt, tokenised as `train` tokenises its prompts; its response ends with
    one of `ends`. In a conversation every assistant message is one demonstration: everything before it is the prompt,
    in the tokenizer's chat template. `ends` are as in `response_token_ids`.

    Raises UsageError if the source cannot be read, rows are malformed (unless skipped), or none is left.
    """
    found, problems, good = Demonstrations(), [], 0
    rows = ((row, side) for split, side in splits_to_read(config).items() for row in demonstration_rows(config, split))
    for row, given_side in rows:
        try:
            pairs = _of_row(row, config, tokenizer, ends)
        except MalformedRowError as error:
            problems.append(Problem(row.place, str(error)))
            continue
        good += 1
        for prompt, response in pairs:
            key = b"".join(token.to_bytes(4, "little") for token in prompt)
            held = given_side == "validation"
            if given_side is None:
                held = held_out(key, config.validation_fraction, "little")
            (found.validation if held else found.train).append((prompt, response))
    check_problems(problems, good, config.source, config.on_malformed, "data.")
    sides = len(found.train), len(found.validation)
    check_training_rows(*sides, len(problems), config.source, config.validation_fraction)
    found.skipped = [str(problem) for problem in problems]
    return found


def _fields(config: DemonstrationConfig) -> dict[str, str]:
    """Return the columns to read, by setting."""
    if config.messages_field is not None:
        return {"messages_field": config.messages_field}
    return {"prompt_field": config.prompt_field, "response_field": config.response_field}


def _of_row(row: Row, config: DemonstrationConfig, tokenizer: Any, ends: Ends) -> list[tuple[TokenIds, TokenIds]]:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    if config.messages_field is not None:
        conversations = _of_messages(row, config.messages_field, config, tokenizer)
    else:
        conversations = [_of_texts(row, config, tokenizer)]
    pairs: list[tuple[TokenIds, TokenIds]] = []
    for tokens in conversation_tokens(conversations, tokenizer, ends):
        if isinstance(tokens, BrokenConversationError):
            raise tokens
        prompt, response = tokens
        if len(prompt) + len(response) > config.max_tokens:
            raise MalformedRowError(
                f"{len(prompt)} prompt and {len(response)} response tokens, more than data.max_tokens "
                f"{config.max_tokens} together"
            )
        pairs.append((tuple(prompt), tuple(response)))
    return pairs


def _of_texts(row: Row, config: DemonstrationConfig, tokenizer: Any) -> Conversation:
    prompt, response = (_chat_or_value(row, name) for name in (config.prompt_field, config.response_field))
    if not isinstance(response, str):
        raise MalformedRowError(f"field '{config.response_field}' is of type {type(response).__name__}, not a string")
    checked_text(response, config.response_field)
    prompt = checked_prompt(prompt, config.prompt_field)
    what = _field(config.prompt_field, config)
    return written(prompt, response, tokenizer, what, template=config.template, tools=tools_of(row.columns, prompt))


def _of_messages(row: Row, name: str, config: DemonstrationConfig, tokenizer: Any) -> list[Conversation]:
    value = _chat_or_value(row, name)
    if not isinstance(value, list):
        raise MalformedRowError(f"field '{name}' is of type {type(value).__name__}, not a list of chat messages")
    messages = checked_messages(value, name)
    turns = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index > 0 and message.get("weight") != 0
    ]
    if not turns:
        raise MalformedRowError(f"field '{name}' has no assistant message after another message: nothing to imitate")
    what, tools = _field(name, config), tools_of(row.columns, messages)
    return [written(messages[:turn], messages[turn], tokenizer, what, tools=tools) for turn in turns]


def _chat_or_value(row: Row, name: str) -> Any:
    return chat_or_value(column_of(row, name), f"field '{name}'")


def _field(name: str, config: DemonstrationConfig) -> str:
    return f"field '{name}' of data.source '{config.source}'"
