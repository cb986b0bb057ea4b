"""Read JSON files from outside, bounded in size and depth. Any fault becomes an error that names the file."""

import json
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.text import shown

LARGEST = 64 << 20
"""Most bytes of a model's configuration or index that are read; the largest known index has 10 MB."""
RESTORE = "restore it from its source"
LFS_POINTER = b"version https://git-lfs"
"""First bytes of the pointer that Git leaves in place of a large file that it has not fetched."""


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice, and Python would silently keep the last value. The message names the key."""


def read_json(path: str | Path, *, largest: int = LARGEST, remedy: str = RESTORE) -> Any:
    """Read a JSON file. Raises UsageError, naming it and `remedy`, if it is not JSON, too long or too deeply nested."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(largest + 1)
        return parse_json(content, path, largest=largest, remedy=remedy)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), remedy) from None


def read_object(path: str | Path, *, largest: int = LARGEST, remedy: str = RESTORE) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises UsageError as `read_json`, and for any other value."""
    value = read_json(path, largest=largest, remedy=remedy)
    if not isinstance(value, dict):
        raise unreadable(path, f"it holds {named(value)}, not an object", remedy)
    return value


def parse_json(content: bytes, path: str | Path, *, largest: int = LARGEST, remedy: str = RESTORE) -> Any:
    """Read the JSON of a file's `content`. Raises UsageError as `read_json`."""
    if len(content) > largest:
        raise unreadable(path, f"it has more than {largest:,} bytes", remedy)
    try:
        return json.loads(content)
    except RecursionError:
        raise unreadable(path, "its brackets are nested too deeply", remedy) from None
    except ValueError as error:
        if content.startswith(LFS_POINTER):
            raise unreadable(path, "it is a Git LFS pointer", "run `git lfs pull`") from None
        # not UTF-8, not JSON, or a number of too many digits
        raise unreadable(path, no_json(error), remedy) from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; use as `object_pairs_hook`. Raises RepeatedKeyError."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"key {shown(twice, 60)!r} is written twice in one object; keep one of them")
    return made


def no_json(error: ValueError | RecursionError) -> str:
    """Say why a text could not be read as JSON, without Python's advice to programmers."""
    return str(error).partition("; use sys.")[0]


def with_sizes(config: Any, path: str) -> Any:
    """Return a transformers configuration unchanged. Raises UsageError if its model has no layers or no tokens."""
    text = config.get_text_config()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if isinstance(size := getattr(text, name, None), int) and size < 1:
            raise UsageError(f"'{path}': config.json has {size} as {name}; allowed: integer >= 1; {RESTORE}")
    return config


def unreadable(path: str | Path, why: str, remedy: str = RESTORE) -> UsageError:
    """Return the error of a file from outside that cannot be used."""
    return UsageError(f"{shown(path)} cannot be read: {shown(why, 300)}; {remedy}")


def named(value: Any) -> str:
    """Name the type of a JSON value, as JSON does."""
    names = {type(None): "null", bool: "a truth value", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
