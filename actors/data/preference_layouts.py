"""Bring preferences of any layout into one form: a prompt, a chosen and a rejected response, a probability.

Pure: columns in, a row or a reason out. Must not know files, tokenizers or models.
"""

import hashlib
import json
import math
import os.path
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

from actors.data.config import ProbabilityFrom
from actors.data.preference_forms import meant_role
from actors.data.rows import MalformedRowError, list_or_json

Message = dict[str, Any]  # a chat message: the strings `role` and `content`, and any of `MESSAGE_PARTS`
MESSAGE_PARTS = ("reasoning_content", "tool_calls", "tool_call_id", "name")
Reason = Literal[
    "not_json",
    "wrong_encoding",
    "missing_column",
    "wrong_type",
    "bad_conversation",
    "lost_text",
    "empty_prompt",
    "empty_response",
    "identical_pair",
    "unread_content",
    "contrary_scores",
    "no_pair",
    "long_prompt",
    "long_response",
]
"""Reasons why a row is malformed."""
REASONS: tuple[Reason, ...] = get_args(Reason)

COLUMNS = (
    "prompt", "system", "tools", "chosen", "rejected", "response_a", "response_b", "preference",
    "probability", "margin", "score_chosen", "score_rejected",
)  # fmt: skip
"""The columns to read; others are ignored."""
LAYOUTS = (
    "{prompt, chosen, rejected} (texts or chat messages), {chosen, rejected} (chats with a shared beginning, or "
    "transcripts of 'Human:' and 'Assistant:' turns), {prompt, response_a, response_b, preference}, and those of "
    "ShareGPT, PKU-SafeRLHF, SHP, Chatbot Arena, Nectar, UltraFeedback and KTO (docs/data.md)"
)
_SHOWN = 10**20  # Python refuses to print integers of thousands of digits
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One preference."""

    prompt: str | list[Message]
    """A text that the response continues, or a chat whose next message is the response."""
    chosen: str | Message
    """An assistant's message if it has more than a content, such as tool calls."""
    rejected: str | Message
    probability: float = 1.0
    """Probability that `chosen` is preferred to `rejected`; 1 if the source does not say."""
    tools: list[Any] | None = None
    """Tools that the chat template shows to the policy beside the chat."""

    @property
    def keys(self) -> tuple[str, str, str]:
        """Return the texts that represent prompt, chosen and rejected in comparisons."""
        return prompt_key(self.prompt, self.tools), response_key(self.chosen), response_key(self.rejected)

    @property
    def id(self) -> str:
        """Return 16 hexadecimal digits, the same for rows that are equal after `normalised`."""
        return identity(*self.keys)

    @property
    def is_plain(self) -> bool:
        """Return whether roles and texts hold the whole row: no tools, no other parts of messages."""
        prompt = [] if isinstance(self.prompt, str) else self.prompt
        texts = isinstance(self.chosen, str) and isinstance(self.rejected, str)
        return texts and not self.tools and all(len(message) == 2 for message in prompt)


class MalformedPreferenceError(MalformedRowError):
    """One row cannot be read as a preference; `reason` is the kind of problem."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


_Parts = tuple[str | list[Message], str | Message, str | Message]  # prompt, chosen and rejected
_bad_conversation = partial(MalformedPreferenceError, "bad_conversation")


def identity(prompt: str, chosen: str, rejected: str) -> str:
    """Return `PreferenceRow.id` of a row with these `keys`."""
    parts = ", ".join(map(json.dumps, (prompt, chosen, rejected)))  # as a list would be written, in half the time
    return hashlib.sha256(f"[{parts}]".encode()).hexdigest()[:16]


def normalised(text: str) -> str:
    """Return `text` in Unicode's normal form C, with single spaces and none at the ends."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def prompt_key(prompt: str | Sequence[Message], tools: Sequence[Any] | None = None) -> str:
    """Return a key that is equal for prompts equal after `normalised`; a text never equals a chat."""
    if isinstance(prompt, str):
        return json.dumps(normalised(prompt))
    key = [[message["role"], normalised(message["content"]), *_rest(message)] for message in prompt]
    return json.dumps([*key, {"tools": tools}] if tools else key, sort_keys=True)


def response_key(response: str | Message) -> str:
    """Return a key that is equal for responses equal after `normalised`."""
    if isinstance(response, str):
        return normalised(response)
    rest = "\n".join(json.dumps(part, sort_keys=True) for part in _rest(response))
    return f"{normalised(response['content'])}\n{rest}"  # a normalised text has no line break


def text_of(response: str | Message) -> str:
    """Return the text of a response, without its tool calls."""
    return response if isinstance(response, str) else response["content"]


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
    prompt = _with_system(prompt, given.get("system"))
    tools = _tools(given.get("tools"), prompt)
    _check_unicode([prompt, chosen, rejected, tools])
    for name, response in (("chosen", chosen), ("rejected", rejected)):
        if not (text_of(response).strip() or (isinstance(response, dict) and response.get("tool_calls"))):
            raise MalformedPreferenceError("empty_response", f"the response in '{name}' is empty")
    if not (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip():
        raise MalformedPreferenceError("empty_prompt", "the prompt is empty")
    if response_key(chosen) == response_key(rejected):
        raise MalformedPreferenceError("identical_pair", "chosen and rejected are the same response")
    if probability_from == "probability" and "probability" not in given:
        _check_scores(given)
    return PreferenceRow(prompt, chosen, rejected, _probability(given, probability_from), tools)


def _tools(value: Any, prompt: str | list[Message]) -> list[Any] | None:
    """Return the column `tools`. Raises MalformedPreferenceError for a text prompt, which has no place for tools."""
    tools = _list(value, "'tools'", "tools")
    if tools and isinstance(prompt, str):
        raise MalformedPreferenceError(
            "unread_content", "'tools' stands beside a text prompt, and only a chat template shows tools"
        )
    return tools


def _list(value: Any, what: str, of: str) -> list[Any] | None:
    try:
        return list_or_json(value, what, of)
    except MalformedRowError as error:
        raise MalformedPreferenceError("wrong_type", str(error)) from error


def _rest(message: Message) -> list[dict[str, Any]]:
    """Return a list of one dict: the parts of a message beside role and content. Empty without any."""
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    return [rest] if rest else []


def _with_system(prompt: str | list[Message], system: Any) -> str | list[Message]:
    """Put the column `system` before a chat; a text prompt becomes the user's message after it."""
    if system is None or (isinstance(system, str) and not system.strip()):
        return prompt
    if not isinstance(system, str):
        raise _wrong_type("system", system, "texts")
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    first = {"role": "system", "content": system}
    if chat[0]["role"] == "system" and chat[0] != first:
        raise _bad_conversation("'system' differs from the chat's own system message")
    return chat if chat[0] == first else [first, *chat]


def _check_scores(given: Mapping[str, Any]) -> None:
    """Refuse a pair whose scores say that the rejected response is the better one."""
    chosen, rejected = given.get("score_chosen"), given.get("score_rejected")
    if isinstance(chosen, int | float) and isinstance(rejected, int | float) and chosen < rejected:
        raise MalformedPreferenceError(
            "contrary_scores", "'score_chosen' is below 'score_rejected'; swap them, or set probability_from to scores"
        )


def _missing_columns(columns: Mapping[str, Any]) -> MalformedPreferenceError:
    found = ", ".join(name for name, value in columns.items() if value is not None) or "none"
    return MalformedPreferenceError("missing_column", f"columns {found} form no preference; allowed are {LAYOUTS}")


def _wrong_type(name: str, value: Any, allowed: str) -> MalformedPreferenceError:
    shown = f"of type {type(value).__name__}"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < _SHOWN):
        shown = repr(value)
    elif isinstance(value, int):
        shown = "an integer of more than 20 digits"
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


def _parts(given: Mapping[str, Any], columns: Mapping[str, Any]) -> _Parts:
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
    if prompt is not None and not (isinstance(prompt, str) and _whole(chosen) and _whole(rejected)):
        return prompt, chosen, rejected
    if not _TURN.search(f"\n\n{chosen}"):
        raise _missing_columns(columns)
    parts = _transcript(f"\n\n{chosen.lstrip()}", f"\n\n{rejected.lstrip()}")
    if (
        prompt is not None
        and prompt.strip() != parts[0][-1]["content"]
        and not chosen.strip().startswith(prompt.strip())
    ):
        raise _bad_conversation("'prompt' differs from what comes before the response in 'chosen'")
    return parts


def _whole(text: str) -> bool:
    """Return whether a response is a transcript that begins with the prompt."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _messages(name: str, value: Sequence[Any]) -> list[Message]:
    return [_message(f"{name}[{number}]", message) for number, message in enumerate(value)]


def _message(place: str, message: Any) -> Message:
    """Return role, content and the `MESSAGE_PARTS` of a message. A message with tool calls may lack `content`."""
    if not isinstance(message, dict):
        message = {}
    if message.get("function_call"):
        raise MalformedPreferenceError("unread_content", f"{place} has 'function_call'; write it as 'tool_calls'")
    calls = _list(message.get("tool_calls"), f"{place}.tool_calls", "calls")
    if calls and not all(isinstance(call, dict) for call in calls):
        raise MalformedPreferenceError("wrong_type", f"{place}.tool_calls holds something that is no object")
    content = "" if calls and message.get("content") is None else message.get("content")
    parts = {"role": message.get("role"), "content": content}
    parts |= {name: message[name] for name in MESSAGE_PARTS if name != "tool_calls" and message.get(name)}
    if not all(isinstance(part, str) for part in parts.values()):
        wrong = next(name for name, part in parts.items() if not isinstance(part, str))
        raise MalformedPreferenceError(
            "wrong_type",
            f"{place} is not a chat message: an object with the strings 'role' and 'content'"
            if wrong in ("role", "content")
            else f"{place}.{wrong} is of type {type(parts[wrong]).__name__}, not a text",
        )
    if meant := meant_role(parts["role"]):
        raise _bad_conversation(f"{place}.role is {parts['role'][:30]!r}; write {meant!r}")
    return {**parts, "tool_calls": calls} if calls else parts


def _answer(message: Message) -> str | Message:
    """Return the last message of a chat: only its content if it has no other parts, else the whole message."""
    return message if _rest(message) else message["content"]


def _conversation(prompt: str | list[Message] | None, chosen: list[Message], rejected: list[Message]) -> _Parts:
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
    return shared, _answer(chosen[-1]), _answer(rejected[-1])


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


def _check_unicode(parts: Sequence[Any]) -> None:
    """Refuse half a surrogate pair, which is valid in JSON but not in files or tokenizers, and values outside JSON."""
    for part in filter(None, parts):
        try:
            text = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            text.encode("utf-8")
        except (TypeError, RecursionError) as error:
            raise MalformedPreferenceError("wrong_type", f"a message or tool holds what is no JSON: {error}") from error
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
    if isinstance(value, str):  # of a file whose cells are all texts
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "finite numbers")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong_type(name, value, "finite numbers")
    return number
