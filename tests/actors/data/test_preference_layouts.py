"""Every layout that preferences come in ends in one form, and what is none says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.preference_layouts import (
    MalformedPreferenceError,
    PreferenceRow,
    normalised,
    parse_preference,
    prompt_key,
)

USER = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "s"}


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a", "b", 1.0)),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, ([USER], "a", "b", 1.0)),
        ({"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]}, ([USER], "a", "b", 1.0)),
        ({"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]}, ([USER], "a", "b", 1.0)),
        ({"chosen": [SYSTEM, USER, said("a")], "rejected": [SYSTEM, USER, said("b")]}, ([SYSTEM, USER], "a", "b", 1.0)),
        (
            {"prompt": "q", "chosen": [SYSTEM, USER, said("a")], "rejected": [SYSTEM, USER, said("b")]},
            ([SYSTEM, USER], "a", "b", 1.0),
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            ([USER], "a", "b", 1.0),
        ),
        (
            {
                "chosen": "Human: x\ny\n\nAssistant: z\n\nHuman: q\n\nAssistant: same, a",
                "rejected": "Human: x\ny\n\nAssistant: z\n\nHuman: q\n\nAssistant: same, b",
            },
            ([{"role": "user", "content": "x\ny"}, said("z"), USER], "same, a", "same, b", 1.0),
        ),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preference": "A"}, ("q", "a", "b", 1.0)),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preference": "response_b"}, ("q", "b", "a", 1.0)),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "preference": "tie"}, ("q", "a", "b", 0.5)),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "probability": 0.75, "other": 3}, ("q", "a", "b", 0.75)),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "probability": None}, ("q", "a", "b", 1.0)),
    ],
)
def test_every_layout_is_read(columns: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert parse_preference(columns) == PreferenceRow(*expected)


def test_extra_keys_of_messages_are_left_out() -> None:
    row = parse_preference({"prompt": [{**USER, "name": None}], "chosen": "a", "rejected": "b"})
    assert row.prompt == [USER]


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        (
            {"prompt": "q", "better": "a"},
            "missing_column",
            "columns prompt, better form no preference; allowed are {prompt",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "missing_column", "columns prompt, chosen form no"),
        ({}, "missing_column", "columns none form no preference"),
        ({"chosen": "a", "rejected": "b"}, "missing_column", "columns chosen, rejected form no preference"),
        ({"prompt": "q", "response_a": "a", "preference": "a"}, "missing_column", "{prompt, response_a, response_b,"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong_type", "'prompt' is 3; allowed are a text or a list"),
        ({"prompt": "q", "chosen": {}, "rejected": "b"}, "wrong_type", "'chosen' is of type dict"),
        ({"prompt": "q", "chosen": "a", "rejected": [said("b")]}, "wrong_type", "'rejected' is of type list"),
        ({"prompt": ["q"], "chosen": "a", "rejected": "b"}, "wrong_type", "prompt[0] is not a chat message"),
        (
            {"chosen": [USER, {"role": "assistant"}], "rejected": [USER]},
            "wrong_type",
            "chosen[1] is not a chat message",
        ),
        (
            {"prompt": "q", "response_a": "a", "response_b": "b", "preference": 1},
            "wrong_type",
            "'preference' is 1; allowed are 'a', 'b' and 'tie'",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "probability": 1.5},
            "wrong_type",
            "'probability' is 1.5; allowed are numbers from 0 to 1",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "probability": True}, "wrong_type", "'probability' is True"),
        ({"chosen": [USER, said("a")], "rejected": [SYSTEM, said("b")]}, "bad_conversation", "the same chat up to"),
        ({"chosen": [USER, USER], "rejected": [USER, said("b")]}, "bad_conversation", "must end with an assistant"),
        ({"chosen": [], "rejected": []}, "bad_conversation", "the same chat up to"),
        (
            {"prompt": [{"role": "usr", "content": "q"}], "chosen": "a", "rejected": "b"},
            "bad_conversation",
            "prompt[0].role is 'usr'; write 'user'",
        ),
        ({"prompt": [said("x")], "chosen": "a", "rejected": "b"}, "bad_conversation", "ends with an assistant message"),
        (
            {"chosen": [USER, said("x"), said("a")], "rejected": [USER, said("x"), said("b")]},
            "bad_conversation",
            "ends with an assistant message",
        ),
        (
            {"prompt": "other", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            "bad_conversation",
            "'prompt' differs",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
            "bad_conversation",
            "share all up to their last",
        ),
        (
            {
                "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c",
                "rejected": "\n\nHuman: q\n\nAssistant: b",
            },
            "bad_conversation",
            "differ before their last",
        ),
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, "empty_prompt", "the prompt is empty"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty_prompt", "'prompt' is an empty list"),
        ({"chosen": [said("a")], "rejected": [said("b")]}, "empty_prompt", "no message before the response"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, "empty_prompt", "no turn before the response"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty_response", "the response in 'rejected' is empty"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "empty_response",
            "'chosen' is empty",
        ),
        ({"prompt": "q", "chosen": "a  b", "rejected": "a b\n"}, "identical_pair", "the same response"),
        ({"prompt": "q", "chosen": "a\ud800", "rejected": "b"}, "wrong_encoding", "surrogates not allowed"),
    ],
)
def test_what_is_no_preference_says_why(columns: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(MalformedPreferenceError) as caught:
        parse_preference(columns)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_a_probability_comes_from_margin_or_scores_where_that_is_asked_for() -> None:
    """sigmoid(log 3) = 3/4."""
    columns = {
        "prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.0986122886681098, "score_chosen": 2,
        "score_rejected": 2 + 1.0986122886681098, "probability": 0.5,
    }  # fmt: skip
    assert parse_preference(columns, "margin").probability == pytest.approx(0.75)
    assert parse_preference(columns, "scores").probability == pytest.approx(0.25)
    assert parse_preference(columns).probability == 0.5
    with pytest.raises(MalformedPreferenceError, match="no column 'margin'") as caught:
        parse_preference({"prompt": "q", "chosen": "a", "rejected": "b"}, "margin")
    assert caught.value.reason == "missing_column"


def test_ids_are_stable_and_blind_to_white_space_and_unicode_s_form() -> None:
    row = PreferenceRow("caf\u00e9 q", "a b", "c")
    assert row.id == PreferenceRow(" cafe\u0301  q\n", "a\tb", "c ", 0.5).id
    assert row.id == "1fd9e5c887f9fdc6", "a stored id must mean the same tomorrow"
    others = [PreferenceRow("caf\u00e9 q", "c", "a b"), PreferenceRow("caf\u00e9", "q a b", "c")]
    assert len({row.id, *(other.id for other in others)}) == 3


@given(st.text(max_size=20))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_a_text_and_a_chat_are_different_prompts() -> None:
    assert prompt_key("q") != prompt_key([USER])
    assert prompt_key([USER]) != prompt_key([SYSTEM, USER])
