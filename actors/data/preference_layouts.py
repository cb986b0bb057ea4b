"""Preferences of any layout in one form: a prompt, a chosen and a rejected response, a probability.

Pure: columns in, a row or a reason out. Must not know files, tokenizers or models.
"""

import hashlib
import json
import math
import os.path
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

from actors.data.config import ProbabilityFrom
from actors.data.rows import MalformedRowError

Message = dict[str, str]  # A chat message: the strings `role` and `content`
Reason = Literal[
    "not_json",
    "wrong_encoding",
    "missing_column",
    "wrong_type",
    "bad_conversation",
    "empty_prompt",
    "empty_response",
    "identical_pair",
    "long_prompt",
    "long_response",
]
"""Why a row is malformed."""
REASONS: tuple[Reason, ...] = get_args(Reason)

COLUMNS = (
    "prompt", "chosen", "rejected", "response_a", "response_b", "preference",
    "probability", "margin", "score_chosen", "score_rejected",
)  # fmt: skip
"""The columns to read; others are ignored."""
LAYOUTS = (
    "{prompt, chosen, rejected} (texts or chat messages), {chosen, rejected} (chats with a shared beginning, or "
    "transcripts of 'Human:' and 'Assistant:' turns), {prompt, response_a, response_b, preference}"
)
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One preference."""

    prompt: str | list[Message]
    """A text that the response continues, or a chat whose next message is the response."""
    chosen: str
    rejected: str
    probability: float = 1.0
    """That `chosen` is preferred to `rejected`; 1 if the source does not say."""

    @property
    def id(self) -> str:
        """Return 16 hexadecimal digits, the same for rows that are equal after `normalised`."""
        key = json.dumps([prompt_key(self.prompt), normalised(self.chosen), normalised(self.rejected)])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


class MalformedPreferenceError(MalformedRowError):
    """One row cannot be read as a preference; `reason` says what kind of problem it has."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


_bad_conversation = partial(MalformedPreferenceError, "bad_conversation")


def normalised(text: str) -> str:
    """Return `text` in Unicode's normal form C, with single spaces and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_key(prompt: str | Sequence[Message]) -> str:
    """Return a key that is equal for prompts equal after `normalised`; a text never equals a chat."""
    if isinstance(prompt, str):
        return json.dumps(normalised(prompt))
    return json.dumps([[message["role"], normalised(message["content"])] for message in prompt])


def parse_preference(columns: Mapping[str, Any], probability_from: ProbabilityFrom = "probability") -> PreferenceRow:
    """Parse a row of any layout in `LAYOUTS`; a null column counts as absent.

    `probability_from` names the source of the probability: the column `probability` (1 without it), the sigmoid of
    `margin`, or the sigmoid of `score_chosen - score_rejected` (Bradley and Terry's model). Raises
    MalformedPreferenceError with the reason.
    """
    given = {name: columns[name] for name in COLUMNS if columns.get(name) is not None}
    if "preference" in given and "chosen" not in given:
        given = _ranked(given, columns)
    if not {"chosen", "rejected"} <= given.keys():
        raise _missing_columns(columns)
    prompt, chosen, rejected = _parts(given, columns)
    _check_unicode(prompt, chosen, rejected)
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            raise MalformedPreferenceError("empty_response", f"the response in '{name}' is empty")
    if not (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip():
        raise MalformedPreferenceError("empty_prompt", "the prompt is empty")
    if normalised(chosen) == normalised(rejected):
        raise MalformedPreferenceError("identical_pair", "chosen and rejected are the same response")
    return PreferenceRow(prompt, chosen, rejected, _probability(given, probability_from))


def _missing_columns(columns: Mapping[str, Any]) -> MalformedPreferenceError:
    found = ", ".join(name for name, value in columns.items() if value is not None) or "none"
    return MalformedPreferenceError("missing_column", f"columns {found} form no preference; allowed are {LAYOUTS}")


def _wrong_type(name: str, value: Any, allowed: str) -> MalformedPreferenceError:
    shown = f"{value!r}" if isinstance(value, int | float) else f"of type {type(value).__name__}"
    return MalformedPreferenceError("wrong_type", f"'{name}' is {shown}; allowed are {allowed}")


def _ranked(given: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Turn response_a, response_b and preference into chosen and rejected; a tie has probability 1/2."""
    if not {"response_a", "response_b"} <= given.keys():
        raise _missing_columns(columns)
    choice = given["preference"]
    choice = choice.strip().lower().removeprefix("response_") if isinstance(choice, str) else choice
    if choice not in ("a", "b", "tie"):
        raise MalformedPreferenceError("wrong_type", f"'preference' is {choice!r}; allowed are 'a', 'b' and 'tie'")
    a, b = given["response_a"], given["response_b"]
    ranked = {**given, "chosen": b if choice == "b" else a, "rejected": a if choice == "b" else b}
    return {**ranked, "probability": 0.5} if choice == "tie" else ranked


def _parts(given: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[str | list[Message], str, str]:
    """Return prompt, chosen and rejected of a row with at least the last two."""
    chosen, rejected, prompt = given["chosen"], given["rejected"], given.get("prompt")
    for name in ("chosen", "rejected", *(["prompt"] if prompt is not None else [])):
        if not isinstance(given[name], str | list):
            raise _wrong_type(name, given[name], "a text or a list of chat messages")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _wrong_type("rejected", rejected, f"the type of 'chosen', {type(chosen).__name__}")
    if isinstance(prompt, list):
        prompt = _messages("prompt", prompt)
        if prompt and prompt[-1]["role"] == "assistant":
            raise _bad_conversation("the prompt ends with an assistant message")
        if not prompt:
            raise MalformedPreferenceError("empty_prompt", "'prompt' is an empty list")
    if isinstance(chosen, list):
        return _conversation(prompt, _messages("chosen", chosen), _messages("rejected", rejected))
    if prompt is not None:
        return prompt, chosen, rejected
    if not _TURN.search(f"\n\n{chosen}"):
        raise _missing_columns(columns)
    return _transcript(f"\n\n{chosen.lstrip()}", f"\n\n{rejected.lstrip()}")


def _messages(name: str, value: Sequence[Any]) -> list[Message]:
    for number, message in enumerate(value):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise MalformedPreferenceError(
                "wrong_type", f"{name}[{number}] is not a chat message: an object with the strings 'role' and 'content'"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _conversation(
    prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    """Split chats that end in one assistant message each; the shared beginning is the prompt."""
    shared = chosen[:-1]
    if not chosen or not rejected or shared != rejected[:-1]:
        raise _bad_conversation("chosen and rejected must be the same chat up to their last message")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise _bad_conversation("chosen and rejected must end with an assistant message")
    if not shared and prompt is None:
        raise MalformedPreferenceError("empty_prompt", "there is no message before the response, and no prompt column")
    if not shared:
        shared = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    elif shared[-1]["role"] == "assistant":
        raise _bad_conversation("the prompt ends with an assistant message")
    elif prompt is not None and prompt not in (shared, shared[-1]["content"]):
        raise _bad_conversation("'prompt' differs from what comes before the response in 'chosen'")
    return shared, chosen[-1]["content"], rejected[-1]["content"]


def _transcript(chosen: str, rejected: str) -> tuple[list[Message], str, str]:
    """Split transcripts of turns: the shared text up to its last 'Assistant:' is the prompt, as chat messages."""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (characters are meant)
    turns = list(_TURN.finditer(common))
    while turns and turns[-1][1] != "Assistant":
        turns.pop()
    if not turns or turns[0].start():
        raise _bad_conversation("the transcripts must begin with a turn and share all up to their last 'Assistant:'")
    end = turns[-1].end()
    if _TURN.search(chosen, end) or _TURN.search(rejected, end):
        raise _bad_conversation("the transcripts differ before their last 'Assistant:'")
    prompt = [
        {"role": _ROLES[turn[1]], "content": common[turn.end() : following.start()].strip()}
        for turn, following in pairwise(turns)
    ]
    if not prompt:
        raise MalformedPreferenceError("empty_prompt", "there is no turn before the response")
    if prompt[-1]["role"] == "assistant":
        raise _bad_conversation("two turns of 'Assistant:' follow each other")
    return prompt, chosen[end:].strip(), rejected[end:].strip()


def _check_unicode(prompt: str | list[Message], chosen: str, rejected: str) -> None:
    """Refuse half a surrogate pair: valid in JSON, but not in files or tokenizers."""
    texts = [prompt] if isinstance(prompt, str) else [text for message in prompt for text in message.values()]
    for text in (*texts, chosen, rejected):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MalformedPreferenceError(
                "wrong_encoding", f"not valid Unicode: {error.reason} at character {error.start} of a text"
            ) from error


def _probability(given: Mapping[str, Any], probability_from: ProbabilityFrom) -> float:
    if probability_from == "probability" or given.get("preference") == "tie":
        probability = _number(given, "probability") if "probability" in given else 1.0
        if not 0.0 <= probability <= 1.0:
            raise _wrong_type("probability", probability, "numbers from 0 to 1")
        return probability
    if probability_from == "margin":
        difference = _number(given, "margin")
    else:
        difference = _number(given, "score_chosen") - _number(given, "score_rejected")
    return 0.5 * (1.0 + math.tanh(0.5 * difference))


def _number(given: Mapping[str, Any], name: str) -> float:
    if name not in given:
        raise MalformedPreferenceError("missing_column", f"no column '{name}'; probability_from needs it")
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong_type(name, value, "finite numbers")
    return float(value)
