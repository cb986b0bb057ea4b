"""What a chat completion says, whatever a server sends."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.judges.http.answers import MOST_TOKENS, is_number, read_answer, read_probability, token_counts


def answer(content: Any, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, **choice}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("A", "A"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "A"}], "A"),
        ([{"type": "text", "text": "A is"}, {"type": "text", "text": " fine"}], "A is fine"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}, {"type": "text", "text": "A"}], "A"),
        ([{"type": "refusal", "refusal": "B"}], ""),
        ("<think>B</think>A", "A"),
        ("B\n</think>\nA", "\nA"),  # the template opened the thought
        (" <THINKING>B</THINKING> A", " A"),
        ("<think>B</think>hm<think>C</think>A", "A"),
        ("<think>so\nB", ""),
        ("<think>so</think>\n<think>B", ""),
        ("The tag <think> is odd.\nB", "The tag <think> is odd.\nB"),
    ],
)
def test_the_text_is_that_of_the_message_without_reasoning(content: Any, text: str) -> None:
    assert read_answer(answer(content)).text == text


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (None, "the answer is null, not an object"),
        ([1], "the answer is a list"),
        ("A", "the answer is text"),
        ({}, "the answer has no choices"),
        ({"choices": []}, "the answer has no choices"),
        ({"choices": None}, "the answer has no choices"),
        ({"choices": {"0": 1}}, "the answer has no choices"),
        ({"choices": ["A"]}, "the first choice is text"),
        ({"choices": [{"text": "A"}]}, "its message is null"),
        ({"choices": [{"message": "A"}]}, "its message is text"),
        ({"choices": [{"message": {"role": "assistant"}}]}, "its message has no content"),
        (answer(7), "its content is a number"),
        (answer(True), "its content is a truth value"),
        (answer({"type": "text", "text": "A"}), "its content is an object"),
        (answer(["A"]), "a part of its content is text"),
        (answer([{"type": "text", "text": 7}]), "a text part of its content has no text"),
        (answer("A", logprobs="abc"), "logprobs is text"),
    ],
)
def test_anything_else_is_refused_with_the_cause(body: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        read_answer(body)


@pytest.mark.parametrize("reason", ["stop", None, "tool_calls", 7, ["length"], "LENGTH OF DAY"])
def test_only_the_limit_and_the_filter_cut_an_answer_short(reason: Any) -> None:
    assert read_answer(answer("A", finish_reason=reason)).cut_short == ""


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 3}, (100, 3)),
        ({"prompt_tokens": 100}, (100, 0)),
        ({"prompt_tokens": 100, "completion_tokens": None}, (100, 0)),
        ({"prompt_tokens": 100.0, "completion_tokens": 3}, (100, 3)),
        ({"prompt_tokens": MOST_TOKENS, "completion_tokens": 0}, (MOST_TOKENS, 0)),
        ({"prompt_tokens": MOST_TOKENS + 1, "completion_tokens": 0}, None),
        ({"prompt_tokens": 99.5, "completion_tokens": 3}, None),
        ({"prompt_tokens": 100, "completion_tokens": "3"}, None),
        ({}, None),
        (None, None),
        ("many", None),
        ([100, 3], None),
        (7, None),
    ],
)
def test_tokens_are_counted_if_the_numbers_can_be_true(usage: Any, counts: Any) -> None:
    assert token_counts({"usage": usage}) == counts


def test_only_finite_numbers_are_numbers() -> None:
    assert all(map(is_number, (0, -1, 2.5, 10**300)))
    assert not any(map(is_number, (math.nan, math.inf, -math.inf, 10**400, -(10**400), True, "1", None, [1])))


def likely(token: Any, top: Any) -> dict[str, Any]:
    return {"token": token, "logprob": -0.1, "top_logprobs": top}


def shares(**top: float) -> list[dict[str, Any]]:
    """Likeliest tokens, by probability; `_A` stands for ` A`."""
    return [{"token": name.replace("_", " "), "logprob": math.log(p)} for name, p in top.items()]


def test_log_probs_give_the_probability_of_the_verdict() -> None:
    # First shown: (0.5 + 0.1 + 0.05 / 2) / (0.5 + 0.1 + 0.2 + 0.05) of what says A, B or C.
    top = shares(A=0.5, _A=0.1, B=0.2, C=0.05, The=0.1)
    tokens = [likely("So", shares(A=0.9)), likely(" A", top), likely(".", shares(A=1.0))]
    assert read_probability(tokens, "A") == pytest.approx(0.625 / 0.85)
    assert read_probability([likely("So", shares(A=0.9))], "A") is None


def test_an_article_after_the_verdict_is_not_its_token() -> None:
    tokens = [likely("B", shares(A=0.1, B=0.9)), likely("\n\n", []), likely("A", shares(A=1.0)), likely(" cat", [])]
    assert read_probability(tokens, "B") == pytest.approx(0.1)


def test_an_impossible_token_has_no_probability_and_rounding_above_0_is_1() -> None:
    top = [{"token": "A", "logprob": 1e-7}, {"token": "B", "logprob": -math.inf}, {"token": "C", "logprob": -9999.0}]
    assert read_probability([likely("A", top)], "A") == 1.0


def test_a_token_that_is_listed_twice_counts_once() -> None:
    assert read_probability([likely("A", [*shares(A=0.6, B=0.3), *shares(A=0.6)])], "A") == pytest.approx(0.6 / 0.9)


@pytest.mark.parametrize(
    ("tokens", "cause"),
    [
        ("abc", "the log-probs are text"),
        (["A"], "a token of the log-probs is text"),
        ([{"token": 7}], "a token of the log-probs is a number"),
        ([{"token": "A"}], "no top log-probs"),
        ([likely("A", [])], "no top log-probs"),
        ([likely("A", "B")], "no top log-probs"),
        ([likely("A", ["B"])], "a top log-prob is text"),
        ([likely("A", [{"token": None, "logprob": -1.0}])], "a token of the log-probs is null"),
        ([likely("A", [{"token": "A"}])], "log-prob of 'A' is None"),
        ([likely("A", [{"token": "The", "logprob": math.nan}])], "log-prob of 'The' is nan"),
        ([likely("A", [{"token": "A", "logprob": 10**400}])], "log-prob of 'A' is 1000"),
        ([likely("A", shares(A=0.9, B=0.9))], "add up to 1.8"),
        ([likely("A", shares(The=0.9))], "not among its own top log-probs"),
    ],
)
def test_log_probs_of_no_probability_are_refused_with_the_cause(tokens: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        read_probability(tokens, "A")
