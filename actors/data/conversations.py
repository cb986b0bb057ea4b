"""Conversations: one way to write a prompt with its answer, and to close it, for training, sampling and judges.

Pure: messages in, text and token ids out, or a reason why the tokens would differ from the text. Must not read files.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from actors.data.rows import MalformedRowError
from actors.data.text import encoded, in_template, prompt_token_ids, response_token_ids
from actors.errors import UsageError
from actors.foreign.text import many

Messages = Sequence[Mapping[str, Any]]
Reason = Literal["bad_conversation", "lost_text", "empty_prompt", "empty_response"]

THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
_PROBE = "\ue000"  # a private character: stands for an answer in a rendered chat


class BrokenConversationError(MalformedRowError):
    """The tokens of a conversation would differ from its text; `reason` says why."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt as the policy reads it, and the answer as the policy would write it. Made by `written`."""

    prompt: str
    answer: str
    is_chat: bool = False


def render(
    messages: Messages, tokenizer: Any, what: str, *, answered: bool = False, tools: Any = None, checked: bool = True
) -> str:
    """Render `messages` in the chat template up to the start of the answer, or whole if they are `answered`.

    Raises UsageError, naming `what`, if the tokenizer has no valid chat template; BrokenConversationError if the
    template refuses them or, if `checked`, leaves out the text of a user or the system.
    """
    from jinja2 import TemplateSyntaxError

    if not tokenizer.chat_template:
        raise UsageError(
            f"{what} holds chat messages, but the policy's tokenizer has no chat template; give prompts as strings or "
            "a tokenizer with a chat_template"
        )
    options = {} if tools is None else {"tools": tools}
    try:
        text = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=not answered, tokenize=False, **options
        )
    except TemplateSyntaxError as error:
        raise UsageError(f"the chat template is no valid Jinja: line {error.lineno}: {error}; correct it") from error
    except Exception as error:  # a template is foreign code, which may raise anything
        raise BrokenConversationError(
            "bad_conversation", f"the tokenizer's chat template refuses the messages: {error}"
        ) from error
    for message in messages if checked else ():
        if message["role"] in ("user", "system"):
            _check_kept(message["content"], text, f"of a {message['role']} message")
        _check_calls_kept(message, text, "of a message's tool call")
    return text


def written(
    prompt: str | Messages,
    answer: str | Mapping[str, Any],
    tokenizer: Any,
    what: str,
    *,
    template: str = "{prompt}",
    tools: Any = None,
    checked: bool = True,
) -> Conversation:
    """Write a prompt (a text or a chat) with its answer (a text or an assistant message).

    A text goes into `template`. Raises as `answered_chat`.
    """
    if isinstance(prompt, str):
        return Conversation(in_template(prompt, template), answer if isinstance(answer, str) else answer["content"])
    message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    before, after = answered_chat([*prompt, message], tokenizer, what, tools=tools, checked=checked)
    return Conversation(before, after, is_chat=True)


def answered_chat(
    messages: Messages, tokenizer: Any, what: str, *, tools: Any = None, checked: bool = True
) -> tuple[str, str]:
    """Render a chat that ends with the answer; return the text before it, and the text that the policy writes.

    Raises as `render`, and BrokenConversationError if the template renders an answered prompt differently or, if
    `checked`, loses a part of the answer.
    """
    before = render(messages[:-1], tokenizer, what, tools=tools, checked=checked)
    whole = render(messages, tokenizer, what, answered=True, tools=tools, checked=False)
    answer, opened = whole[len(before) :], ""
    if not whole.startswith(before):
        answer, opened = _answer_after_thought(before, messages, tokenizer, what, tools)
    if checked:
        for name in ("reasoning_content", "content"):
            _check_kept(messages[-1].get(name), opened + answer, f"of the answer's {name}")
        _check_calls_kept(messages[-1], answer, "of the answer's tool call")
    return before, answer


def conversation_tokens(
    conversations: Sequence[Conversation], tokenizer: Any, ends: Collection[int] = (), *, checked: bool = True
) -> list[tuple[list[int], list[int]] | BrokenConversationError]:
    """Tokenise each prompt and its answer, which ends with exactly one of `ends` or end-of-sequence.

    `ends` are those of `answer_ends`. If `checked`, an answer without tokens, or with an end inside it, is an error.
    """
    unique = list(dict.fromkeys((each.prompt, each.is_chat) for each in conversations))  # pairs share their prompt
    known = prompt_token_ids([text for text, _ in unique], [chat for _, chat in unique], tokenizer)
    prompt_ids = dict(zip(unique, known, strict=True))
    prompts = [prompt_ids[each.prompt, each.is_chat] for each in conversations]
    answers = _unclosed(conversations, tokenizer)
    closed = response_token_ids(answers, tokenizer, ends)
    results: list[tuple[list[int], list[int]] | BrokenConversationError] = []
    for prompt, all_ids, ids in zip(prompts, answers, closed, strict=True):
        problem = _problem(prompt, ids, all_ids[len(ids) :], tokenizer) if checked else None
        results.append(problem or (prompt, ids))
    return results


def closing(tokenizer: Any, ends: Collection[int] = (), *, chat: bool, whole: bool = False) -> list[int]:
    """Return the token ids after a finished answer: the end of `conversation_tokens`, or the template's `whole` end.

    Raises as `render`.
    """
    tail = ""
    if chat:
        probed = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
        tail = render(probed, tokenizer, "a chat", answered=True, checked=False).rpartition(_PROBE)[2]
    ids = continued(tail.lstrip(" "), tokenizer)
    if whole and ids:
        return ids
    return [] if tokenizer.eos_token_id is None else response_token_ids([ids], tokenizer, ends)[0][-1:]


def continued(text: str, tokenizer: Any) -> list[int]:
    """Tokenise a text that follows another one, without adding a space. Raises UsageError as `encoded`."""
    return _unclosed([Conversation("a", text)], tokenizer)[0]


def _answer_after_thought(before: str, messages: Messages, tokenizer: Any, what: str, tools: Any) -> tuple[str, str]:
    """Return the answer, and its opening tag in `before`, if a template opens a thought for the policy only.

    The policy writes the rest of the thought, its end, and the answer as the template renders it.
    """
    message = messages[-1]
    whole = render(
        [*messages[:-1], {"role": "assistant", "content": _PROBE}],
        tokenizer,
        what,
        answered=True,
        tools=tools,
        checked=False,
    )
    head, found, tail = whole.partition(_PROBE)
    if head.rstrip().endswith(END_OF_THOUGHT):
        head = head[: head.rindex(THOUGHT)] if THOUGHT in head else head
    opened = before[len(head) :].strip()
    if not found or not before.startswith(head) or not opened.startswith(THOUGHT) or message.get("tool_calls"):
        raise BrokenConversationError(
            "bad_conversation", "the tokenizer's chat template renders an answered prompt differently"
        )
    thought, _, said = (message.get("content") or "").rpartition(END_OF_THOUGHT)
    thought = (message.get("reasoning_content") or thought.strip().removeprefix(THOUGHT)).strip()
    if opened == THOUGHT:
        return f"{thought}\n{END_OF_THOUGHT}\n\n{said.strip()}{tail}", THOUGHT
    return f"{said.strip()}{tail}", ""  # the thought is closed already, and must be empty


def _unclosed(conversations: Sequence[Conversation], tokenizer: Any) -> list[list[int]]:
    """Tokenise answers as continuations of their prompts: without the space that some tokenizers put before a text."""
    if not _gains_space(tokenizer):
        return encoded([each.answer for each in conversations], tokenizer, add_special_tokens=False)
    texts = list(dict.fromkeys(each.prompt for each in conversations))
    prompts = dict(zip(texts, encoded(texts, tokenizer, add_special_tokens=False), strict=True))
    joined = encoded([each.prompt + each.answer for each in conversations], tokenizer, add_special_tokens=False)
    return [
        ids[len(before) :] if ids[: len(before)] == before else _after_line_break(each.answer, tokenizer)
        for each, ids in zip(conversations, joined, strict=True)
        for before in [prompts[each.prompt]]
    ]


def _after_line_break(text: str, tokenizer: Any) -> list[int]:
    """Tokenise a text whose first token would merge with the prompt's last. Adds no space if possible."""
    alone, line, after = encoded([text, "\n", f"\n{text}"], tokenizer, add_special_tokens=False)
    return after[len(line) :] if after[: len(line)] == line else alone


@lru_cache(maxsize=4)
def _gains_space(tokenizer: Any) -> bool:
    """Return whether the tokenizer puts a space before a separate text, but not after a line break (sentencepiece)."""
    try:
        start, alone, after = encoded(["\n", "a", "\na"], tokenizer, add_special_tokens=False)
    except UsageError:  # it knows whole words only
        return False
    rest = after[len(start) :]
    return after[: len(start)] == start and rest not in ([], alone)


def _problem(prompt: list[int], answer: list[int], rest: list[int], tokenizer: Any) -> BrokenConversationError | None:
    if not prompt:
        return BrokenConversationError("empty_prompt", "the prompt has no tokens")
    if len(answer) < 2:
        return BrokenConversationError("empty_response", "the response has no tokens before the one that ends it")
    if rest and tokenizer.decode(rest, skip_special_tokens=True).strip():
        end = tokenizer.convert_ids_to_tokens(answer[-1])
        return BrokenConversationError(
            "lost_text",
            f"the response has {end!r}, which ends an answer, before its last {many(len(rest), 'token')}; remove it",
        )
    return None


def _check_calls_kept(message: Mapping[str, Any], text: str, what: str) -> None:
    """Raise as `_check_kept` for the names of the calls. Templates are free in how they write arguments."""
    for call in message.get("tool_calls") or ():
        called = call.get("function") or call if isinstance(call, dict) else {}
        name = called.get("name") if isinstance(called, dict) else None
        _check_kept(name if isinstance(name, str) else None, text, what)


def _check_kept(wanted: str | None, text: str, what: str) -> None:
    """Raise BrokenConversationError if `text` lacks `wanted`, white space aside."""
    if wanted and wanted not in text and "".join(wanted.split()) not in "".join(text.split()):
        raise BrokenConversationError(
            "lost_text",
            f"the tokenizer's chat template leaves out text {what}, {wanted.strip()[:40]!r}; use a chat_template that "
            "keeps it",
        )
