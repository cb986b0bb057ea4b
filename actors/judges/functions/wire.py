"""Messages between a judge and the process of its function: msgpack with types, never pickles."""

import datetime
import decimal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from actors.records import Group, Judgement

LENGTH_BYTES = 4
LONGEST_ANSWER = 1 << 26
"""Most bytes of an answer; our processes never send more."""


class Request(msgspec.Struct):
    """Groups to judge. Made by the judge."""

    number: int
    groups: list[Group]


class Loaded(msgspec.Struct, tag=True):
    """The function is imported and can be called. The process's first message."""

    place: str  # file and line of the function
    signature: str  # how it is called
    number: int = 0


class Judged(msgspec.Struct, tag=True):
    """The judgements of a request. Made by the process."""

    number: int
    judgements: list[Judgement]


class Failed(msgspec.Struct, tag=True):
    """The reason why there are no judgements or, for `number` 0, why the function is unusable. Made by the process."""

    number: int
    usage: bool  # True if the request itself is wrong, so that a retry would not help
    message: str
    trace: str = ""  # of the user's error, from the user's file on


_STEP = datetime.timedelta.resolution
_EXTENSIONS: tuple[tuple[type, Callable[[Any], str], Callable[[str], Any]], ...] = (
    (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    (datetime.timedelta, lambda value: str(value // _STEP), lambda text: int(text) * _STEP),
    (decimal.Decimal, str, decimal.Decimal),
    (int, hex, lambda text: int(text, 16)),
    (str, str, str),
)
"""Types in a data set's columns that msgpack lacks or does not keep exactly: type, to text, from text."""
_LISTS = len(_EXTENSIONS)
"""Extension number of a tuple, which is written as the list of its items."""


def frame(message: msgspec.Struct) -> bytes:
    """Return the message with its length before it. Raises TypeError if a value has no form here."""
    content = msgspec.msgpack.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def request_frame(number: int, groups: Sequence[Group]) -> bytes:
    """Return the frame of a request; values of metadata keep their types."""
    return frame(Request(number, [_with_extensions(group) for group in groups]))


def read_request(content: bytes) -> Request:
    """Read a request without its length."""
    return _REQUESTS.decode(content)


def read_answer(content: bytes) -> Loaded | Judged | Failed:
    """Read an answer without its length. Raises msgspec.DecodeError if `content` is no answer."""
    return _ANSWERS.decode(content)


def _with_extensions(group: Group) -> Group:
    prompt = group.lease.prompt
    if not prompt.metadata:
        return group
    return replace(group, lease=replace(group.lease, prompt=replace(prompt, metadata=_extended(prompt.metadata))))


def _extended(value: Any) -> Any:
    """Replace values that msgpack cannot carry by extensions, in nested values too."""
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, str) and not _has_surrogates(value):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, Mapping):
        return {_extended(key): _extended(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_extended(each) for each in value]
    if isinstance(value, tuple):
        return msgspec.msgpack.Ext(_LISTS, msgspec.msgpack.encode([_extended(each) for each in value]))
    for code, (kind, to_text, _) in enumerate(_EXTENSIONS):
        if isinstance(value, kind):
            return msgspec.msgpack.Ext(code, to_text(value).encode(errors="surrogatepass"))
    return value  # refused by the encoder, with its type


def _restored(code: int, content: memoryview) -> Any:
    if code == _LISTS:
        return tuple(_ITEMS.decode(content))
    return _EXTENSIONS[code][2](bytes(content).decode(errors="surrogatepass"))


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


_REQUESTS = msgspec.msgpack.Decoder(Request, ext_hook=_restored)
_ITEMS = msgspec.msgpack.Decoder(list[Any], ext_hook=_restored)
_ANSWERS = msgspec.msgpack.Decoder(Loaded | Judged | Failed)
