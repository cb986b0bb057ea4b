"""Prompts: rows become token ids once, and an endless seeded order offers them by position.

The order is a pure function of position, so that a run's place in the data is one integer. It must not know leases,
generators or who asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.config import PromptConfig
from actors.data.rows import Row, read_rows, suggestion
from actors.errors import UsageError
from actors.records import Prompt

ROWS_PER_TOKENIZER_CALL = 1024
REPORTED_PROBLEMS = 5
EPOCH_STREAM, EVALUATION_STREAM = 0, 1


def load_tokenizer(path: str, *, needs_eos: bool = True) -> Any:
    """The tokenizer of a Hugging Face directory or hub name; code from model repositories is never run.

    Args:
        path: directory or hub name.
        needs_eos: whether it will write completions, which end with an end-of-sequence token.

    Raises:
        UsageError: it cannot be loaded, or has no end-of-sequence token and needs one.
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


class MalformedRowError(Exception):
    """One row cannot be a prompt; the message says why. Collected by `PromptSource`, never seen outside."""


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A row with the right shape, not yet tokenised."""

    row: Row
    number: int
    text: str
    answer: str | None
    messages: Sequence[Mapping[str, Any]] | None


class PromptSource:
    """All prompts of a source, offered in a seeded order without end.

    Position `p` belongs to epoch `p // len(self)`; each epoch is a permutation of its own, drawn from
    `numpy.random.Generator` seeded with (seed, epoch). Any position can be asked for at any time.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any) -> None:
        """Reads, checks and tokenises every row.

        Args:
            config: where rows come from, and what is done with malformed ones.
            tokenizer: a transformers tokenizer, the policy's own.

        Raises:
            UsageError: the source cannot be read, rows are malformed (unless skipped), or no row is left.
        """
        self.skipped: list[str] = []
        """`place: problem` of each row left out, in file order."""
        self._config = config
        self._tokenizer = tokenizer
        self._prompts: list[_Parsed] = []
        self._orders: dict[int, np.ndarray] = {}
        token_ids: list[np.ndarray] = []
        problems: list[tuple[int, str]] = []
        rows = enumerate(read_rows(config))
        while chunk := list(islice(rows, ROWS_PER_TOKENIZER_CALL)):
            self._add_rows(chunk, token_ids, problems)
        self._settle(problems)
        self._token_ids = np.concatenate(token_ids)
        self._ends = np.cumsum([len(ids) for ids in token_ids])

    def __len__(self) -> int:
        """Prompts in one epoch."""
        return len(self._prompts)

    def prompt(self, position: int) -> Prompt:
        """The prompt at `position` (0, 1, 2, ...) of the global offer order."""
        if position < 0:
            raise ValueError(f"position {position} is negative; the offer order starts at 0")
        epoch, place = divmod(position, len(self))
        return self._make_prompt(int(self._order(epoch)[place]))

    def evaluation_prompts(self, n: int) -> list[Prompt]:
        """`n` prompts, the same at every call and after a resume; repeated only when `n` exceeds the epoch."""
        order = self._permutation(EVALUATION_STREAM)
        return [self._make_prompt(int(order[i % len(self)])) for i in range(n)]

    def fingerprint(self) -> str:
        """SHA-256 over texts, answers and token ids in file order: a position means something on the same data only."""
        digest = hashlib.sha256()
        for parsed in self._prompts:
            digest.update(repr((parsed.text, parsed.answer)).encode())
        digest.update(self._token_ids.astype("<u4").tobytes())
        digest.update(self._ends.astype("<i8").tobytes())
        return digest.hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) == 2:  # leases straddle at most the border between two epochs
                del self._orders[next(iter(self._orders))]
            shuffled = self._config.shuffle
            self._orders[epoch] = self._permutation(EPOCH_STREAM, epoch) if shuffled else np.arange(len(self))
        return self._orders[epoch]

    def _permutation(self, *stream: int) -> np.ndarray:
        seed = np.random.SeedSequence(self._config.seed, spawn_key=stream)
        return np.random.default_rng(seed).permutation(len(self))

    def _make_prompt(self, index: int) -> Prompt:
        parsed = self._prompts[index]
        start = self._ends[index - 1] if index else 0
        return Prompt(
            id=parsed.row.id,
            token_ids=tuple(self._token_ids[start : self._ends[index]].tolist()),
            text=parsed.text,
            answer=parsed.answer,
            metadata={} if parsed.messages is None else {"messages": parsed.messages},
        )

    def _add_rows(
        self, rows: Iterable[tuple[int, Row]], token_ids: list[np.ndarray], problems: list[tuple[int, str]]
    ) -> None:
        """Appends the good rows to the prompts and to `token_ids`, and the others to `problems`."""
        candidates = []
        for number, row in rows:
            try:
                candidates.append(_parse(number, row, self._config, self._tokenizer))
            except MalformedRowError as error:
                problems.append((number, f"{row.place}: {error}"))
        texts, chats = [each.text for each in candidates], [each.messages is not None for each in candidates]
        for parsed, ids in zip(candidates, prompt_token_ids(texts, chats, self._tokenizer), strict=True):
            limit = self._config.max_prompt_tokens
            if 0 < len(ids) <= limit:
                # Rows are not kept whole: other columns could be large.
                row = Row(parsed.row.id, parsed.row.place)
                self._prompts.append(_Parsed(row, parsed.number, parsed.text, parsed.answer, parsed.messages))
                token_ids.append(np.asarray(ids, dtype=np.uint32))
            elif ids:
                reason = f"{len(ids)} tokens, more than prompts.max_prompt_tokens {limit}"
                problems.append((parsed.number, f"{parsed.row.place}: {reason}"))
            else:
                problems.append((parsed.number, f"{parsed.row.place}: no tokens; the prompt must not be empty"))

    def _settle(self, problems: list[tuple[int, str]]) -> None:
        """Refuses or records malformed rows, and refuses a source without prompts."""
        source = self._config.source
        messages = [message for _, message in sorted(problems)]
        first = "".join(f"\n  {message}" for message in messages[:REPORTED_PROBLEMS])
        total = len(messages) + len(self._prompts)
        if not self._prompts and messages and self._config.on_malformed == "skip":
            raise UsageError(
                f"all {total} rows of prompts.source '{source}' are malformed and none is left to train on; "
                f"the first {min(len(messages), REPORTED_PROBLEMS)}:{first}"
            )
        if messages and self._config.on_malformed == "error":
            raise UsageError(
                f"{len(messages)} of {total} rows of prompts.source '{source}' are malformed; "
                f"the first {min(len(messages), REPORTED_PROBLEMS)}:{first}\n"
                "Correct them, or set prompts.on_malformed to 'skip' to leave them out."
            )
        if not self._prompts:
            raise UsageError(f"prompts.source '{source}' holds no rows; give one with at least one prompt")
        self.skipped = messages


def _parse(number: int, row: Row, config: PromptConfig, tokenizer: Any) -> _Parsed:
    if row.problem is not None:
        raise MalformedRowError(row.problem)
    value = column_of(row, config.prompt_field)
    answer = None if config.answer_field is None else _answer(row, config.answer_field)
    if isinstance(value, str):
        text = config.template.replace("{prompt}", checked_text(value, config.prompt_field))
        return _Parsed(row, number, text, answer, None)
    if isinstance(value, list):
        messages = checked_messages(value, config.prompt_field)
        if messages[-1]["role"] == "assistant":
            raise MalformedRowError(
                f"{config.prompt_field} ends with an assistant message; the last one must be what the policy answers"
            )
        text = render(messages, tokenizer, f"field '{config.prompt_field}' of prompts.source '{config.source}'")
        return _Parsed(row, number, text, answer, messages)
    raise MalformedRowError(
        f"field '{config.prompt_field}' is of type {type(value).__name__}; "
        "allowed are a string or a list of chat messages"
    )


def column_of(row: Row, name: str) -> Any:
    """The value of a column that must be there. Raises MalformedRowError where it is absent or null."""
    if name not in row.columns:
        raise MalformedRowError(f"no field '{name}'; {suggestion(name, list(row.columns))}")
    if row.columns[name] is None:
        raise MalformedRowError(f"field '{name}' is null")
    return row.columns[name]


def _answer(row: Row, name: str) -> str:
    value = column_of(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedRowError(f"field '{name}' is of type {type(value).__name__}; allowed are a string or a number")
    return checked_text(str(value), name)


def checked_text(text: str, name: str) -> str:
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
    if not messages:
        raise MalformedRowError(f"field '{name}' is an empty list; at least one chat message is needed")
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise MalformedRowError(
                f"{place} is of type {type(message).__name__}; a chat message is an object with "
                "the strings 'role' and 'content'"
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise MalformedRowError(
                    f"{place} has no string '{key}'; a chat message is an object with the strings 'role' and 'content'"
                )
            checked_text(message[key], f"{place}.{key}")
    return messages


def render(messages: Sequence[Mapping[str, Any]], tokenizer: Any, what: str, *, answered: bool = False) -> str:
    """`messages` in the tokenizer's chat template, up to where the answer begins; or whole, when they are `answered`.

    Raises UsageError, saying `what` holds them, where there is no template; MalformedRowError where it refuses them.
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
    """A chat that ends in the answer, in the tokenizer's template: up to where the answer begins, and the rest.

    Raises as `render`; MalformedRowError also where the template writes the prompt otherwise once it is answered.
    """
    before = render(messages[:-1], tokenizer, what)
    whole = render(messages, tokenizer, what, answered=True)
    if not whole.startswith(before):
        raise MalformedRowError("the tokenizer's chat template writes a prompt otherwise once it is answered")
    return before, whole[len(before) :]


def prompt_token_ids(all_texts: Sequence[str], chats: Sequence[bool], tokenizer: Any) -> list[list[int]]:
    """Token ids of each text. A chat template writes its own special tokens; plain text gets the tokenizer's, but
    no end-of-sequence, after which a policy has nothing to say."""
    ids: list[list[int]] = [[] for _ in all_texts]
    for chat in (False, True):
        chosen = [index for index, is_chat in enumerate(chats) if is_chat == chat]
        if not chosen:
            continue
        texts = [all_texts[index] for index in chosen]
        encoded = _encoded(texts, tokenizer, add_special_tokens=not chat)
        for index, sequence in zip(chosen, encoded, strict=True):
            ids[index] = list(sequence) if chat else without_trailing(sequence, tokenizer.eos_token_id)
    return ids


def response_token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each response, apart from its prompt as a policy samples it: up to the first end-of-sequence, which
    chat templates write themselves, and one at the end."""
    eos = tokenizer.eos_token_id
    encoded = _encoded(texts, tokenizer, add_special_tokens=False)
    return [[*(ids[: ids.index(eos)] if eos in ids else ids), eos] for ids in encoded]


def _encoded(texts: Sequence[str], tokenizer: Any, *, add_special_tokens: bool) -> list[list[int]]:
    """Token ids of each text. Raises UsageError when the tokenizer has none for a word."""
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


def without_trailing(sequence: Sequence[int], eos: int | None) -> list[int]:
    """`sequence` up to its last token that is not `eos`."""
    end = len(sequence)
    while end and sequence[end - 1] == eos:
        end -= 1
    return list(sequence[:end])
