"""Read a chat completion: its text without reasoning, the reason of its end, its tokens, its log-probs.

Pure; must not know HTTP or the question. Anything that a server sends becomes a value or an error with the cause.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # preference for the answer shown first
MOST_TOKENS = 10**8  # in one request; a larger count is not believed
ROUNDING = 1e-3  # nats by which a log-prob may be above 0, and share by which probabilities may be above 1

_THOUGHT = re.compile(r"\s*<(?:think|thinking|reasoning)>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
CUT_SHORT = {
    "length": "stopped by the limit on tokens (raise judging.judge.max_tokens)",
    "content_filter": "stopped by the endpoint's content filter",
}
"""Reasons of an answer's end that are not the model's own, with their wording in messages."""
REASONS = CUT_SHORT | {"out_of_scale": "outside judging.judge.scale or without one of the criteria, in every try"}
"""Reasons of abstentions."""


@dataclass(frozen=True)
class Answer:
    """One chat completion. Made by `read_answer`, read by the judge."""

    text: str  # without reasoning; empty if there is nothing else
    cut_short: str = ""  # `length` or `content_filter`; empty if the model ended by itself
    logprobs: Any = None  # as the API gives them, unchecked


@dataclass(frozen=True)
class Abstention:
    """An answer without a verdict."""

    reason: str = ""  # one of `REASONS`, or empty if the model gave none


Verdict: TypeAlias = float | Abstention
"""A preference for the answer shown first, or a score, or neither."""


def told(abstentions: Sequence[Abstention]) -> str:
    """Count the reasons of abstentions, as text in parentheses after a space; empty without reasons."""
    reasons = Counter(each.reason for each in abstentions if each.reason)
    said = [f"{count:,} {REASONS[reason]}" for reason, count in reasons.items()]
    return f" ({', '.join(said)})" if said else ""


def read_answer(answer: Any) -> Answer:
    """Read a chat completion: its first choice. Raises ValueError, naming the cause, for anything else."""
    choices = _mapping(answer, "the answer").get("choices")
    if not isinstance(choices, list) or not choices:
        raise ValueError("the answer has no choices")
    choice = _mapping(choices[0], "the first choice")
    message = _mapping(choice.get("message"), "its message")
    if "content" not in message:
        raise ValueError("its message has no content")
    text, reason = without_reasoning(_text(message["content"])), choice.get("finish_reason")
    logprobs = None if choice.get("logprobs") is None else _mapping(choice["logprobs"], "logprobs").get("content")
    return Answer(text, reason if reason in tuple(CUT_SHORT) else "", logprobs)


def without_reasoning(text: str) -> str:
    """Return the text after the last `</think>`; empty if that text, or the whole, is an unfinished thought.

    If a template opens the thought itself, only the end of the thought is in the text.
    """
    *_, rest = _THOUGHT_END.split(text)
    return "" if _THOUGHT.match(rest) else rest


def token_counts(answer: Any) -> tuple[int, int] | None:
    """Return the endpoint's counts of tokens, in and out; None if they are missing or implausible.

    A missing or null count beside a number is 0.
    """
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict) or not usage:
        return None
    counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    if any(not is_number(count) or not 0 <= count <= MOST_TOKENS or count != int(count) for count in counts):
        return None
    return int(counts[0]), int(counts[1])


def read_probability(tokens: Any, verdict: str) -> float | None:
    """Return the preference for the answer shown first, by the last token that says `verdict`; None without one.

    (p_A + p_C / 2) / (p_A + p_B + p_C), where p_X is the sum over the top tokens that say X, with or without spaces and
    quotes. Raises ValueError, naming the cause, if `tokens` are not the API's log-probs, or not of probabilities.
    """
    if not isinstance(tokens, list):
        raise ValueError(f"the log-probs are {_kind(tokens)}, not a list")
    for token in reversed(tokens):
        if _letter(_word(_mapping(token, "a token of the log-probs"))) != verdict:
            continue
        listed = token.get("top_logprobs")
        if not isinstance(listed, list) or not listed:
            raise ValueError("the verdict token has no top log-probs")
        named = [_mapping(likely, "a top log-prob") for likely in listed]
        # Some servers list the sampled token twice.
        shares = dict.fromkeys((_word(likely), _probability(likely)) for likely in named)
        if (everything := sum(share for _, share in shares)) > 1.0 + ROUNDING:
            raise ValueError(f"the probabilities of the verdict token add up to {everything:.3g}")
        mass = dict.fromkeys(VERDICTS, 0.0)
        for word, share in shares:
            if (letter := _letter(word)) is not None:
                mass[letter] += share
        total = sum(mass.values())
        if not total > 0.0:
            raise ValueError("the verdict token is not among its own top log-probs")
        return sum(VERDICTS[letter] * share for letter, share in mass.items()) / total
    return None


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _probability(likely: dict[str, Any]) -> float:
    logprob: Any = likely.get("logprob")
    if logprob == -math.inf:
        return 0.0
    if not is_number(logprob) or logprob > ROUNDING:
        raise ValueError(f"the log-prob of {str(likely.get('token'))[:20]!r} is {str(logprob)[:20]}, not at most 0")
    return math.exp(min(0.0, float(logprob)))


def _word(token: dict[str, Any]) -> str:
    word = token.get("token")
    if not isinstance(word, str):
        raise ValueError(f"a token of the log-probs is {_kind(word)}, not text")
    return word


def _letter(word: str) -> str | None:
    letter = word.strip().strip("\"'`*_[]().:").upper()
    return letter if letter in VERDICTS else None


def _text(content: Any) -> str:
    """Return the text of a message's content: null, a string, or a list of parts. Only text parts count."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise ValueError(f"its content is {_kind(content)}, not text")
    parts = [_mapping(part, "a part of its content") for part in content]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text part of its content has no text")
    return "".join(text for text in texts if isinstance(text, str))


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_kind(value)}, not an object")
    return value


def _kind(value: Any) -> str:
    """Name a JSON value's type as JSON does."""
    names = {type(None): "null", bool: "a truth value", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
