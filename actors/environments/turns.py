"""Tokens between two turns of the policy. Tokens that were sampled are never tokenised again."""

from collections.abc import Collection
from typing import Any

from actors.data.conversations import continued, render
from actors.data.rows import MalformedRowError
from actors.environments.protocol import Message
from actors.errors import RunError, UsageError

_ANSWER = "QXZ0QXZ"  # stands for the policy's turn; no template writes it


def tokens_between(reply: Message, tokenizer: Any, ends: Collection[int], *, closed: bool) -> list[int]:
    """Return the tokens that the chat template writes from the policy's last token to the start of its next turn.

    `closed`: True if the last token is in `ends`, so that the template's own end of turn is already there. Without a
    chat template the reply follows as plain text.

    Raises RunError if the template refuses the reply's role or loses the policy's turn.
    """
    if not tokenizer.chat_template:
        text = reply["content"]
    else:
        messages = [{"role": "user", "content": "0"}, {"role": "assistant", "content": _ANSWER}, dict(reply)]
        try:
            whole = render(messages, tokenizer, "an environment's answer")
        except (MalformedRowError, UsageError) as error:
            raise RunError(
                f"the chat template has no place for a message of role '{reply['role']}' after the policy's: {error}; "
                "answer with another role, such as 'user'"
            ) from error
        _, found, text = whole.rpartition(_ANSWER)
        if not found:
            raise RunError("the chat template leaves out what the policy said before; use a template that keeps it")
        if closed:
            text = _after_end(text, tokenizer, ends)
    return continued(text, tokenizer)


def _after_end(text: str, tokenizer: Any, ends: Collection[int]) -> str:
    """Remove an end of turn from the start of `text`, if there is one."""
    for end in tokenizer.convert_ids_to_tokens(sorted(ends)):
        if end and text.lstrip().startswith(end):
            return text.lstrip()[len(end) :]
    return text
