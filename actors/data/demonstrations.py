"""Demonstrations: rows become prompt and response tokens once. It must not know models or who learns from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.data.config import DemonstrationConfig
from actors.data.prompts import (
    REPORTED_PROBLEMS,
    MalformedRowError,
    answered_chat,
    checked_messages,
    checked_text,
    column_of,
    prompt_token_ids,
    response_token_ids,
)
from actors.data.rows import Row, RowSource, columns_named, rows_from
from actors.errors import UsageError

TokenIds = tuple[int, ...]


@dataclass(slots=True)
class Demonstrations:
    """Sequences to learn from, and what was left out of them."""

    train: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Prompt and response tokens; a response ends with end-of-sequence."""
    validation: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Held out: no prompt is in both."""
    skipped: list[str] = field(default_factory=list)
    """`place: problem` of each row left out, in file order."""


def demonstration_rows(config: DemonstrationConfig) -> Iterator[Row]:
    """All rows of the source. Raises UsageError as `prompt_files.rows_from`."""
    wanted = columns_named({f"data.{setting}": name for setting, name in _fields(config).items()})
    return rows_from(RowSource(config.source, config.split, "data.", wanted))


def texts_of(config: DemonstrationConfig) -> Iterator[str]:
    """Prompts, in their template, and responses, for a tokenizer to be trained on.

    Chats are left out, as they need a tokenizer that has a chat template, and so is what is malformed:
    `load_demonstrations` says so. Raises UsageError as `demonstration_rows`.
    """
    for row in demonstration_rows(config):
        for setting, name in _fields(config).items():
            value = row.columns.get(name)
            if isinstance(value, str):
                with suppress(MalformedRowError):
                    text = checked_text(value, name)
                    yield _in_template(text, config) if setting == "prompt_field" else text


def load_demonstrations(config: DemonstrationConfig, tokenizer: Any) -> Demonstrations:
    """Reads, checks, tokenises and splits all demonstrations.

    A string prompt is written in `config.template` and tokenised as `train` does with its prompts; its response ends
    with end-of-sequence. Of a conversation every assistant message is one demonstration, with all before it as prompt,
    in the tokenizer's chat template.

    Raises:
        UsageError: the source cannot be read, rows are malformed (unless skipped), or none is left.
    """
    found = Demonstrations()
    for row in demonstration_rows(config):
        try:
            pairs = _of_row(row, config, tokenizer)
        except MalformedRowError as error:
            found.skipped.append(f"{row.place}: {error}")
            continue
        for prompt, response in pairs:
            side = found.validation if _held_out(prompt, config.validation_fraction) else found.train
            side.append((prompt, response))
    _settle(found, config)
    return found


def _fields(config: DemonstrationConfig) -> dict[str, str]:
    """Columns that are read, by setting."""
    if config.messages_field is not None:
        return {"messages_field": config.messages_field}
    return {"prompt_field": config.prompt_field, "response_field": config.response_field}


def _in_template(prompt: str, config: DemonstrationConfig) -> str:
    return config.template.replace("{prompt}", prompt)


def _of_row(row: Row, config: DemonstrationConfig, tokenizer: Any) -> list[tuple[TokenIds, TokenIds]]:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    if config.messages_field is not None:
        pairs = _of_messages(column_of(row, config.messages_field), config.messages_field, config, tokenizer)
    else:
        pairs = [_of_texts(row, config, tokenizer)]
    for prompt, response in pairs:
        if not prompt:
            raise MalformedRowError("the prompt has no tokens")
        if len(prompt) + len(response) > config.max_tokens:
            raise MalformedRowError(
                f"{len(prompt)} prompt and {len(response)} response tokens, more than data.max_tokens "
                f"{config.max_tokens} together"
            )
    return pairs


def _of_texts(row: Row, config: DemonstrationConfig, tokenizer: Any) -> tuple[TokenIds, TokenIds]:
    prompt, response = column_of(row, config.prompt_field), column_of(row, config.response_field)
    if not isinstance(response, str):
        raise MalformedRowError(f"field '{config.response_field}' is of type {type(response).__name__}, not a string")
    checked_text(response, config.response_field)
    if isinstance(prompt, list):
        messages = checked_messages(prompt, config.prompt_field)
        if messages[-1]["role"] == "assistant":
            raise MalformedRowError(
                f"{config.prompt_field} ends with an assistant message; the last one must be what the response answers"
            )
        answered = [*messages, {"role": "assistant", "content": response}]
        return _of_turn(answered, config.prompt_field, config, tokenizer)
    if not isinstance(prompt, str):
        raise MalformedRowError(
            f"field '{config.prompt_field}' is of type {type(prompt).__name__}; allowed are a string or a list of chat "
            "messages"
        )
    text = _in_template(checked_text(prompt, config.prompt_field), config)
    return _token_ids(text, response, tokenizer, chat=False)


def _of_messages(value: Any, name: str, config: DemonstrationConfig, tokenizer: Any) -> list[tuple[TokenIds, TokenIds]]:
    if not isinstance(value, list):
        raise MalformedRowError(f"field '{name}' is of type {type(value).__name__}, not a list of chat messages")
    messages = checked_messages(value, name)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index > 0]
    if not turns:
        raise MalformedRowError(f"field '{name}' has no assistant message after another message: nothing to imitate")
    return [_of_turn(messages[: turn + 1], name, config, tokenizer) for turn in turns]


def _of_turn(
    messages: Sequence[Mapping[str, Any]], name: str, config: DemonstrationConfig, tokenizer: Any
) -> tuple[TokenIds, TokenIds]:
    what = f"field '{name}' of data.source '{config.source}'"
    before, answer = answered_chat(messages, tokenizer, what)
    return _token_ids(before, answer, tokenizer, chat=True)


def _token_ids(prompt: str, response: str, tokenizer: Any, *, chat: bool) -> tuple[TokenIds, TokenIds]:
    ((prompt_ids,), (response_ids,)) = (
        prompt_token_ids([prompt], [chat], tokenizer),
        response_token_ids([response], tokenizer),
    )
    return tuple(prompt_ids), tuple(response_ids)


def _held_out(prompt: TokenIds, fraction: float) -> bool:
    """By the prompt's own hash, so that a prompt is on one side and other rows do not matter."""
    digest = hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in prompt)).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def _settle(found: Demonstrations, config: DemonstrationConfig) -> None:
    """Refuses malformed rows where they are not to be skipped, and a source of which nothing is left to train on."""
    first = "".join(f"\n  {line}" for line in found.skipped[:REPORTED_PROBLEMS])
    if found.skipped and config.on_malformed == "error":
        raise UsageError(
            f"{len(found.skipped)} rows of data.source '{config.source}' are malformed; the first "
            f"{min(len(found.skipped), REPORTED_PROBLEMS)}:{first}\nCorrect them, or set data.on_malformed to 'skip' "
            "to leave them out."
        )
    if not found.train:
        raise UsageError(
            f"data.source '{config.source}' leaves no demonstration to train on ({len(found.validation)} held out, "
            f"{len(found.skipped)} malformed){':' if first else '; give more rows, or hold out less'}{first}"
        )
