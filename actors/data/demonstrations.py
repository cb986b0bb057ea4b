"""Demonstrations: rows become prompt and response tokens once. Must not know models or training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from actors.data.config import DemonstrationConfig
from actors.data.rows import (
    MalformedRowError,
    Problem,
    Row,
    RowSource,
    check_problems,
    check_training_rows,
    column_of,
    columns_named,
    held_out,
    rows_from,
)
from actors.data.text import (
    answered_chat,
    checked_messages,
    checked_prompt,
    checked_text,
    in_template,
    prompt_token_ids,
    response_token_ids,
)

TokenIds = tuple[int, ...]


@dataclass(slots=True)
class Demonstrations:
    """Sequences to imitate."""

    train: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Prompt and response tokens; a response ends with end-of-sequence."""
    validation: list[tuple[TokenIds, TokenIds]] = field(default_factory=list)
    """Held out: no prompt is in both."""
    skipped: list[str] = field(default_factory=list)
    """`place: problem` of each malformed row, in file order."""


def demonstration_rows(config: DemonstrationConfig) -> Iterator[Row]:
    """Read all rows of the source. Raises UsageError as `rows_from`."""
    wanted = columns_named({f"data.{setting}": name for setting, name in _fields(config).items()})
    return rows_from(RowSource(config.source, config.split, "data.", wanted))


def texts_of(config: DemonstrationConfig) -> Iterator[str]:
    """Return prompts, in their template, and responses: texts to train a tokenizer on.

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


def load_demonstrations(config: DemonstrationConfig, tokenizer: Any) -> Demonstrations:
    """Read, check, tokenise and split all demonstrations.

    `config.template` surrounds a string prompt, tokenised as `train` tokenises its prompts; its response ends with
    end-of-sequence. In a conversation every assistant message is one demonstration: everything before it is the prompt,
    in the tokenizer's chat template. Raises UsageError if the source cannot be read, rows are malformed (unless
    skipped), or none is left.
    """
    found, problems, good = Demonstrations(), [], 0
    for row in demonstration_rows(config):
        try:
            pairs = _of_row(row, config, tokenizer)
        except MalformedRowError as error:
            problems.append(Problem(row.place, str(error)))
            continue
        good += 1
        for prompt, response in pairs:
            key = b"".join(token.to_bytes(4, "little") for token in prompt)
            side = found.validation if held_out(key, config.validation_fraction, "little") else found.train
            side.append((prompt, response))
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
    prompt = checked_prompt(prompt, config.prompt_field)
    if isinstance(prompt, str):
        return _token_ids(in_template(prompt, config.template), response, tokenizer, chat=False)
    return _of_turn([*prompt, {"role": "assistant", "content": response}], config.prompt_field, config, tokenizer)


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
    before, answer = answered_chat(messages, tokenizer, f"field '{name}' of data.source '{config.source}'")
    return _token_ids(before, answer, tokenizer, chat=True)


def _token_ids(prompt: str, response: str, tokenizer: Any, *, chat: bool) -> tuple[TokenIds, TokenIds]:
    (prompt_ids,) = prompt_token_ids([prompt], [chat], tokenizer)
    (response_ids,) = response_token_ids([response], tokenizer)
    return tuple(prompt_ids), tuple(response_ids)
