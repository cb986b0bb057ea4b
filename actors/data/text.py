"""Turn text into the token ids that the policy sees: tokenizers, chat templates, special tokens, ends of sequences.

Prompts, demonstrations and preferences share it, so that training and sampling see the same tokens. Must not read
files of rows.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.data.config import ChatTemplateConfig
from actors.data.preference_forms import SPEAKERS, meant_role
from actors.data.rows import MalformedRowError, list_or_json
from actors.errors import UsageError, writing
from actors.files import atomic_write
from actors.foreign.documents import no_json, read_object, unique_keys, unreadable
from actors.foreign.model_place import hub_problem, missing_model_remedy, require_model_place
from actors.foreign.templates import check_chat_template
from actors.foreign.text import shown

ROWS_PER_TOKENIZER_CALL = 1024
LARGEST_TOKENIZER = 256 << 20
"""Most bytes of a tokenizer's file; the largest vocabularies take some 30 MB."""
_CHAT = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:\s*["']""")
_TURN = {"role", "from"}


def load_tokenizer(path: str, *, needs_eos: bool = True, chats: ChatTemplateConfig | None = None) -> Any:
    """Load the tokenizer of a directory or hub name. Never runs code from a model repository.

    Args:
        path: directory or hub name.
        needs_eos: True if completions will be written with it; they end with an end-of-sequence token.
        chats: the user's template and its variables; None for the tokenizer's.

    Raises UsageError if it cannot be loaded, lacks a needed end-of-sequence token, or has a chat template that does
    not end; also as `own_template`.
    """
    from transformers import AutoTokenizer

    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    local = Path(path).expanduser()
    if looks_local and not local.is_dir():
        raise UsageError(
            f"tokenizer directory '{path}' does not exist (looked in {Path.cwd()}); {missing_model_remedy(path)}"
        )
    require_model_place("the tokenizer", path, tokenizer=True)
    check_tokenizer_files(local)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(local) if local.is_dir() else path, trust_remote_code=False)
    except Exception as error:  # damaged tokenizer files raise bare Exception from the Rust library
        raise UsageError(
            f"no tokenizer can be loaded from '{path}': {_why_none(local, error)}; give a directory with "
            "tokenizer.json and tokenizer_config.json, or a hub name that this machine can reach or has cached. "
            "Tokenizers that need code of their own (trust_remote_code) are not run"
        ) from error
    if needs_eos and tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of '{path}' has no end-of-sequence token, so no completion could ever finish; "
            "set eos_token in its tokenizer_config.json"
        )
    template = None if chats is None else own_template(chats, tokenizer.chat_template)
    if template is not None:
        tokenizer.chat_template = template
    check_chat_template(tokenizer.chat_template, f"the chat template of '{path}'")
    if template is not None and (problem := template_problem(tokenizer)):
        raise UsageError(f"chat_template, with chat_template_kwargs if set, {problem}; correct it, or leave it out")
    return tokenizer


def template_problem(tokenizer: Any) -> str | None:
    """Say why the chat template cannot write a user's message; None if it can, or if there is no template.

    Call `check_chat_template` first: this function renders the template in this process.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    asked = [{"role": "user", "content": "Hello"}]
    try:
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is foreign code, which may raise anything
        line = f"line {number}: " if isinstance(number := getattr(error, "lineno", None), int) else ""
        return f"cannot write a user's message: {line}{shown(error, 300)}"
    return None if "Hello" in text else "leaves out a user's message"


def _why_none(directory: Path, error: Exception) -> str:
    """Say in one line why loading a tokenizer from a directory or the hub failed."""
    if not directory.is_dir():
        return hub_problem(error)
    if not (directory / "tokenizer.json").is_file():
        return "it has no tokenizer.json"
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not isinstance(error, OSError | ImportError):
        return f"its files are damaged or do not fit together: {shown(' '.join(said), 300)}"
    return shown(said[0], 300)


def check_tokenizer_files(directory: Path) -> None:
    """Raise UsageError, naming the file, if a local tokenizer's configuration is no JSON object or a file is huge."""
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
        if path.stat().st_size > LARGEST_TOKENIZER:
            raise unreadable(path, f"it has {path.stat().st_size:,} bytes, of at most {LARGEST_TOKENIZER:,}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"):
        if (directory / name).is_file():
            read_object(directory / name)


def own_template(chats: ChatTemplateConfig, default: Any = None) -> str | None:
    """Return the template of `chats` with its variables set in its first line; None if nothing is set.

    `default` is the tokenizer's own template, which is used if only variables are set. Raises UsageError if a file or a
    template is missing, or the template does not read a variable.
    """
    if chats.chat_template is None and not chats.chat_template_kwargs:
        return None
    template = default if chats.chat_template is None else _template_text(chats.chat_template)
    if not isinstance(template, str):
        raise UsageError(
            "chat_template_kwargs is set, and the tokenizer has no chat template, or several; set chat_template to one"
        )
    for name in chats.chat_template_kwargs:
        if not re.search(rf"\b{name}\b", template):
            raise UsageError(
                f"chat_template_kwargs sets {name!r}, which the chat template does not read; correct the name, or "
                "leave it out"
            )
    # As defaults, so that a model saved with variables still obeys variables that are set later.
    options = "".join(
        f"{{% set {name} = {name} | default({value!r}) %}}" for name, value in chats.chat_template_kwargs.items()
    )
    return f"{options}{{{{ '' }}}}{template}" if options else template  # a line break after a block would be lost


def save_template(chats: ChatTemplateConfig, directory: Path) -> None:
    """Write the template of `chats` into a saved model, so that it is prompted as in training. Raises RunError."""
    from transformers import AutoTokenizer

    if chats.chat_template is not None or chats.chat_template_kwargs:
        saved = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False).chat_template
        template = own_template(chats, saved)
        if template is not None:
            path = directory / "chat_template.jinja"
            with writing(path, "then use --resume"):
                atomic_write(path, template)


def _template_text(given: str) -> str:
    """Return `given` if it is Jinja text, or the text of the file that it names. Raises UsageError if it is neither."""
    if "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"chat_template {given!r} is neither Jinja text, which has {{{{ or {{%, nor a file that can be read: "
            f"{error}; correct the path (looked in {Path.cwd()})"
        ) from error


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
    """Return chat messages; a message with tool calls may lack `content`, which is then empty.

    Also reads ShareGPT's `from` and `value`. Raises MalformedRowError unless each message has the strings `role` and
    `content`.
    """
    if not messages:
        raise MalformedRowError(f"field '{name}' is an empty list; at least one chat message is needed")
    return [_checked_message(message, f"{name}[{index}]") for index, message in enumerate(messages)]


def _checked_message(message: Any, place: str) -> Mapping[str, Any]:
    needed = "a chat message is an object with the strings 'role' and 'content'"
    if not isinstance(message, dict):
        raise MalformedRowError(f"{place} is of type {type(message).__name__}; {needed}")
    if "from" in message and "role" not in message:
        others = {key: value for key, value in message.items() if key not in ("from", "value")}
        speaker = message["from"]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise MalformedRowError(f"{place} is from {str(speaker)[:30]!r}; allowed are {', '.join(SPEAKERS)}")
        message = {**others, "role": SPEAKERS[speaker], "content": message.get("value")}
    calls = list_or_json(message.get("tool_calls"), f"{place}.tool_calls", "calls")
    if calls:
        message = {**message, "tool_calls": calls, "content": message.get("content") or ""}
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise MalformedRowError(f"{place} has no string '{key}'; {needed}")
        if message[key] or not calls:
            checked_text(message[key], f"{place}.{key}")
    if meant := meant_role(message["role"]):
        raise MalformedRowError(f"{place}.role is {message['role'][:30]!r}; write {meant!r}")
    return message


def chat_or_value(value: Any, what: str) -> Any:
    """Decode a chat that a text holds as JSON, as in a CSV file's cell. Return anything else unchanged.

    Raises MalformedRowError for a chat in Python's notation.
    """
    if not isinstance(value, str) or not _CHAT.match(value) or not value.rstrip().endswith("]"):
        return value
    try:
        chat = json.loads(value, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise MalformedRowError(
            f"{what} looks like a chat and cannot be read as JSON: {no_json(error)}; write it with json.dumps, not "
            "as Python prints it"
        ) from error
    return chat if all(isinstance(turn, dict) and _TURN & turn.keys() for turn in chat) else value


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


def tools_of(columns: Mapping[str, Any], prompt: str | Sequence[Any]) -> list[Any] | None:
    """Return the column `tools`, a list or its JSON, for the chat template of `prompt`; None without it.

    Raises MalformedRowError if the column holds anything else, or the prompt is a text, which has no place for tools.
    """
    tools = list_or_json(columns.get("tools"), "field 'tools'", "tools")
    if tools and isinstance(prompt, str):
        raise MalformedRowError(
            "field 'tools' stands beside a text, and only a chat template shows tools; give the prompt as chat messages"
        )
    return tools


def in_template(prompt: str, template: str) -> str:
    """Put `prompt` in place of `{prompt}`; other braces are kept."""
    return template.replace("{prompt}", prompt)


def prompt_token_ids(all_texts: Sequence[str], chats: Sequence[bool], tokenizer: Any) -> list[list[int]]:
    """Tokenise prompts. A chat has its special tokens in the text. Plain text gets the tokenizer's special tokens, but
    no final end-of-sequence, because the policy continues it. No text gets a second beginning-of-sequence."""
    ids: list[list[int]] = [[] for _ in all_texts]
    for chat in (False, True):
        chosen = [index for index, is_chat in enumerate(chats) if is_chat == chat]
        if not chosen:
            continue
        sequences = encoded([all_texts[index] for index in chosen], tokenizer, add_special_tokens=not chat)
        for index, sequence in zip(chosen, sequences, strict=True):
            one = list(sequence) if chat else without_trailing(sequence, tokenizer.eos_token_id)
            while len(one) > 1 and one[0] == one[1] == getattr(tokenizer, "bos_token_id", None):
                del one[0]
            ids[index] = one
    return ids


def holds_bos(text: str, tokenizer: Any) -> bool:
    """Return whether a text begins with the beginning-of-sequence token that the tokenizer adds to texts itself."""
    bos = getattr(tokenizer, "bos_token", None)
    if bos is None or not text.lstrip().startswith(bos):
        return False
    rest = text.lstrip().removeprefix(bos)
    return encoded([rest], tokenizer, add_special_tokens=True)[0][:1] == [tokenizer.bos_token_id]


def response_token_ids(
    encodings: Sequence[Sequence[int]], tokenizer: Any, ends: Collection[int] = ()
) -> list[list[int]]:
    """Close the token ids of responses as a policy samples them: at the first token that ends an answer.

    `ends` are those of `answer_ends`; the tokenizer's end-of-sequence always counts. Chat templates write an end
    themselves; a response without an end gets end-of-sequence.
    """
    eos = tokenizer.eos_token_id
    return [closed(ids, {*ends, eos}) or [*ids, eos] for ids in encodings]


def closed(ids: Sequence[int], ends: Collection[int]) -> list[int] | None:
    """Return `ids` up to and including the first id in `ends`; None without one."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[: position + 1])
    return None


def without_trailing(sequence: Sequence[int], eos: int | None) -> list[int]:
    """Return `sequence` up to its last token that is not `eos`."""
    end = len(sequence)
    while end and sequence[end - 1] == eos:
        end -= 1
    return list(sequence[:end])


def encoded(texts: Sequence[str], tokenizer: Any, *, add_special_tokens: bool) -> list[list[int]]:
    """Tokenise texts. Raises UsageError if the tokenizer has no token for a word."""
    if not texts:
        return []
    options = {"add_special_tokens": add_special_tokens}
    whole = 1 if _only_passes_on(tokenizer) else len(texts)
    try:
        # The tokenizer's own call also applies its settings: truncation, padding, whether special tokens are split.
        ids = tokenizer(list(texts[:whole]), return_attention_mask=False, verbose=False, **options)["input_ids"]
        if whole == len(texts):
            return ids
        # Without the place of each token in the text: a quarter faster.
        return ids + [each.ids for each in tokenizer.backend_tokenizer.encode_batch_fast(list(texts[1:]), **options)]
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises the bare class
            raise
        raise UsageError(
            f"the tokenizer cannot read the data: {error}; use a tokenizer that knows every word or has an unknown "
            "token, such as the one the model was trained with"
        ) from error


def _only_passes_on(tokenizer: Any) -> bool:
    """Return whether a tokenizer passes texts to its backend unchanged, as plain wrappers of transformers do."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return False
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name, None) for name in ("__call__", "_encode_plus")
    )
