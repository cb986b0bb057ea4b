"""Text to token ids as the policy sees it: tokenizers, chat templates, special tokens, ends of sequences.

Prompts, demonstrations and preferences share it, so that training and sampling see the same tokens. Must not read
files of rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.data.rows import MalformedRowError
from actors.errors import UsageError

ROWS_PER_TOKENIZER_CALL = 1024


def load_tokenizer(path: str, *, needs_eos: bool = True) -> Any:
    """Load the tokenizer of a directory or hub name. Never runs code from a model repository.

    Args:
        path: directory or hub name.
        needs_eos: True if completions will be written with it; they end with an end-of-sequence token.

    Raises UsageError if it cannot be loaded, or lacks the end-of-sequence token that it needs.
    """
    from transformers import AutoTokenizer

    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    local = Path(path).expanduser()
    if looks_local and not local.is_dir():
        raise UsageError(f"tokenizer directory '{path}' does not exist (looked in {Path.cwd()}); give an existing one")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(local) if local.is_dir() else path, trust_remote_code=False)
    except Exception as error:  # damaged tokenizer files raise bare Exception from the Rust library
        raise UsageError(
            f"no tokenizer can be loaded from '{path}': {error}; give a directory with tokenizer.json and "
            "tokenizer_config.json, or a hub name that this machine can reach or has cached. Tokenizers that need "
            "code of their own (trust_remote_code) are not run"
        ) from error
    if needs_eos and tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of '{path}' has no end-of-sequence token, so no completion could ever finish; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def checked_text(text: str, name: str) -> str:
    """Return `text`. Raises MalformedRowError if it is blank or not valid Unicode."""
    if not text.strip():
        raise MalformedRowError(f"field '{name}' is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedRowError(
            f"field '{name}' is not valid Unicode: {error.reason} at character {error.start}"
        ) from error
    return text


def checked_messages(messages: Sequence[Any], name: str) -> Sequence[Mapping[str, Any]]:
    """Return chat messages. Raises MalformedRowError unless each has the strings `role` and `content`."""
    if not messages:
        raise MalformedRowError(f"field '{name}' is an empty list; at least one chat message is needed")
    for index, message in enumerate(messages):
        place, needed = f"{name}[{index}]", "a chat message is an object with the strings 'role' and 'content'"
        if not isinstance(message, dict):
            raise MalformedRowError(f"{place} is of type {type(message).__name__}; {needed}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise MalformedRowError(f"{place} has no string '{key}'; {needed}")
            checked_text(message[key], f"{place}.{key}")
    return messages


def checked_prompt(value: Any, name: str) -> str | Sequence[Mapping[str, Any]]:
    """Return a prompt: a text, or chat messages that do not end with the assistant. Raises MalformedRowError."""
    if isinstance(value, str):
        return checked_text(value, name)
    if not isinstance(value, list):
        raise MalformedRowError(
            f"field '{name}' is of type {type(value).__name__}; allowed are a string or a list of chat messages"
        )
    messages = checked_messages(value, name)
    if messages[-1]["role"] == "assistant":
        raise MalformedRowError(f"{name} ends with an assistant message; the last one must be what is answered")
    return messages


def in_template(prompt: str, template: str) -> str:
    """Put `prompt` in place of `{prompt}`; other braces are kept."""
    return template.replace("{prompt}", prompt)


def render(messages: Sequence[Mapping[str, Any]], tokenizer: Any, what: str, *, answered: bool = False) -> str:
    """Render `messages` in the chat template up to the start of the answer, or whole if they are `answered`.

    Raises UsageError, naming `what`, if the tokenizer has no chat template; MalformedRowError if the template refuses
    them.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UsageError(
            f"{what} holds chat messages, but the policy's tokenizer has no chat template; give prompts as strings or "
            "a tokenizer with a chat_template"
        )
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise MalformedRowError(f"the tokenizer's chat template refuses the messages: {error}") from error


def answered_chat(messages: Sequence[Mapping[str, Any]], tokenizer: Any, what: str) -> tuple[str, str]:
    """Render a chat that ends with the answer; return the text before the answer, and the rest.

    Raises as `render`, and MalformedRowError if the template renders an answered prompt differently.
    """
    before = render(messages[:-1], tokenizer, what)
    whole = render(messages, tokenizer, what, answered=True)
    if not whole.startswith(before):
        raise MalformedRowError("the tokenizer's chat template renders an answered prompt differently")
    return before, whole[len(before) :]


def prompt_token_ids(all_texts: Sequence[str], chats: Sequence[bool], tokenizer: Any) -> list[list[int]]:
    """Tokenise prompts. A chat has its special tokens in the text; plain text gets the tokenizer's, without a final
    end-of-sequence, because the policy continues it."""
    ids: list[list[int]] = [[] for _ in all_texts]
    for chat in (False, True):
        chosen = [index for index, is_chat in enumerate(chats) if is_chat == chat]
        if not chosen:
            continue
        encoded = _encoded([all_texts[index] for index in chosen], tokenizer, add_special_tokens=not chat)
        for index, sequence in zip(chosen, encoded, strict=True):
            ids[index] = list(sequence) if chat else without_trailing(sequence, tokenizer.eos_token_id)
    return ids


def response_token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokenise responses apart from their prompts, as a policy samples them: up to the first end-of-sequence, which
    chat templates write themselves, and with one at the end."""
    eos = tokenizer.eos_token_id
    encoded = _encoded(texts, tokenizer, add_special_tokens=False)
    return [[*(ids[: ids.index(eos)] if eos in ids else ids), eos] for ids in encoded]


def without_trailing(sequence: Sequence[int], eos: int | None) -> list[int]:
    """Return `sequence` up to its last token that is not `eos`."""
    end = len(sequence)
    while end and sequence[end - 1] == eos:
        end -= 1
    return list(sequence[:end])


def _encoded(texts: Sequence[str], tokenizer: Any, *, add_special_tokens: bool) -> list[list[int]]:
    """Tokenise texts. Raises UsageError if the tokenizer has no token for a word."""
    try:
        return tokenizer(
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises the bare class
            raise
        raise UsageError(
            f"the tokenizer cannot read the data: {error}; use a tokenizer that knows every word or has an unknown "
            "token, such as the one the model was trained with"
        ) from error
