"""Preferences as token ids: special tokens, templates, chats, and what is too long."""

from __future__ import annotations

from typing import Any

import pytest

from actors import world
from actors.data import preference_tokens as module
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.preference_tokens import PreferenceTokens, TokenLimits, preference_tokens
from actors.errors import UsageError
from actors.world import BOS, EOS, SEP

ROW = PreferenceRow("red north", "stone", "paper page")
CHAT = PreferenceRow([{"role": "user", "content": "red north"}], "stone", "paper page")
STONE, PAPER, PAGE, RED, NORTH = (world.VOCABULARY.index(word) for word in ("stone", "paper", "page", "red", "north"))
TEMPLATE = (
    "{% for m in messages %}{{ '<bos> ' if m.role == 'user' else '' }}{{ m.content }}"
    "{{ ' <sep> ' if m.role == 'user' else ' <eos> <pad>' }}{% endfor %}"
)


def tokenizer(template: str | None = None) -> Any:
    made = world.tokenizer()
    made.chat_template = template
    return made


def reasons(rows: list[PreferenceRow], **limits: int) -> list[str | None]:
    found = preference_tokens(rows, tokenizer(), limits=TokenLimits(**limits))
    return [each.reason if isinstance(each, MalformedPreferenceError) else None for each in found]


def test_a_text_has_the_tokenizer_s_special_tokens_and_its_responses_only_end_of_sequence() -> None:
    assert preference_tokens([ROW], tokenizer()) == [
        PreferenceTokens([BOS, RED, NORTH, SEP], [STONE, EOS], [PAPER, PAGE, EOS])
    ]


def test_a_text_is_written_in_the_template() -> None:
    (tokens,) = preference_tokens([ROW], tokenizer(), template="gold {prompt} gold")
    gold = world.VOCABULARY.index("gold")
    assert tokens.prompt == [BOS, gold, RED, NORTH, gold, SEP]


def test_a_chat_is_written_in_the_chat_template_and_its_response_ends_at_the_first_end_of_sequence() -> None:
    """The template writes padding after end-of-sequence, as others write a line break."""
    assert preference_tokens([CHAT], tokenizer(TEMPLATE), template="gold {prompt}") == [
        PreferenceTokens([BOS, RED, NORTH, SEP], [STONE, EOS], [PAPER, PAGE, EOS])
    ]


def test_a_chat_needs_a_chat_template() -> None:
    with pytest.raises(UsageError, match="a preference holds chat messages, but the policy's tokenizer has no chat"):
        preference_tokens([CHAT], tokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system') }}", "the tokenizer's chat template refuses the messages"),
        ("{{ messages|length }} {{ messages[0].content }}", "writes a prompt otherwise once it is answered"),
    ],
)
def test_a_chat_that_the_template_refuses_is_malformed(template: str, message: str) -> None:
    found = preference_tokens([ROW, CHAT, ROW], tokenizer(template))
    assert [type(each) for each in found] == [PreferenceTokens, MalformedPreferenceError, PreferenceTokens]
    assert found[1].reason == "bad_conversation"  # type: ignore[union-attr]
    assert message in str(found[1])


def test_what_is_too_long_says_by_which_limit() -> None:
    assert reasons([ROW], prompt=4, response=3, context=7) == [None]
    assert reasons([ROW], prompt=3) == ["long_prompt"]
    assert reasons([ROW], response=2) == ["long_response"]
    assert reasons([ROW], context=6) == ["long_response"]
    assert reasons([ROW], context=3) == ["long_prompt"]
    (error,) = preference_tokens([ROW], tokenizer(), limits=TokenLimits(prompt=3))
    assert str(error) == "4 prompt tokens, more than max_prompt_tokens 3"


def test_rows_keep_their_order_across_the_tokenizer_s_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_TOKENIZER_CALL", 2)
    rows = [PreferenceRow("red north", word, "red") for word in world.RESPONSE_WORDS[:5]]
    found = preference_tokens(rows, tokenizer())
    assert [each.chosen[0] for each in found if isinstance(each, PreferenceTokens)] == [4, 5, 6, 7, 8]
