"""Preferences as token ids, as the policy would have sampled them. It must not know models or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.prompts import (
    ROWS_PER_TOKENIZER_CALL,
    MalformedRowError,
    answered_chat,
    prompt_token_ids,
    response_token_ids,
)


@dataclass(frozen=True, slots=True)
class PreferenceTokens:
    """Token ids of one preference; responses end with end-of-sequence."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What a sequence may hold, in tokens; None for no limit."""

    prompt: int | None = None
    response: int | None = None
    context: int | None = None
    """Prompt and response together, end-of-sequence included."""


def preference_tokens(
    rows: Sequence[PreferenceRow], tokenizer: Any, *, template: str = "{prompt}", limits: TokenLimits = TokenLimits()
) -> list[PreferenceTokens | MalformedPreferenceError]:
    """Token ids of each row, or why it has none: too many for `limits`, or a chat that the chat template refuses.

    A text is written in `template` and gets the special tokens that the tokenizer puts around a text, without a final
    end-of-sequence; its responses get none but an end-of-sequence. A chat is written in the tokenizer's chat template,
    and its responses are what that adds to it up to its first end-of-sequence.

    Raises:
        UsageError: there are chats, and the tokenizer has no chat template.
    """
    results: list[PreferenceTokens | MalformedPreferenceError] = []
    for start in range(0, len(rows), ROWS_PER_TOKENIZER_CALL):
        results += _of_chunk(rows[start : start + ROWS_PER_TOKENIZER_CALL], tokenizer, template, limits)
    return results


def _of_chunk(
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
    prompts = prompt_token_ids(
        [text[0] for text in texts], [not isinstance(row.prompt, str) for row in rows], tokenizer
    )
    chosen, rejected = (response_token_ids([text[part] for text in texts], tokenizer) for part in (1, 2))
    parts = zip(prompts, chosen, rejected, strict=True)
    return [refused.get(number) or _within(PreferenceTokens(*part), limits) for number, part in enumerate(parts)]


def _texts(row: PreferenceRow, tokenizer: Any, template: str) -> tuple[str, str, str]:
    if isinstance(row.prompt, str):
        return template.replace("{prompt}", row.prompt), row.chosen, row.rejected
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
