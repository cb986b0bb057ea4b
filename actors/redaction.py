"""Masks secrets in what is shown or saved: by the name that they stand under, and by their own shape.

A second line of defence: settings ask for the NAME of an environment variable, never for a key. Light by law: settings
import it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"

SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)
"""Names whose text is a secret. `max_tokens` and `api_key_env` are none: they end otherwise."""

_IN_TEXT = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), MASK),  # user:password of a URL
    (re.compile(r"(?<=Bearer )\S+", re.IGNORECASE), MASK),
    (re.compile(r"\b(hf_|sk-|ghp_|xox[bp]-)[A-Za-z0-9_-]{16,}"), rf"\1{MASK}"),
)


def redact(value: Any, name: str = "") -> Any:
    """`value`, of JSON's types, with every secret replaced by `***`: text under a name that tells of one, users and
    passwords in URLs, and what has the shape of a known service's key."""
    if isinstance(value, Mapping):
        return {key: redact(below, str(key)) for key, below in value.items()}
    if isinstance(value, str):
        if value and SECRET_NAME.search(name):
            return MASK
        for pattern, mask in _IN_TEXT:
            value = pattern.sub(mask, value)
        return value
    if isinstance(value, Sequence):
        return [redact(below, name) for below in value]
    return value


def secret_names(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names in `value` that hold a secret's text."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            name = f"{path}.{key}" if path else str(key)
            if isinstance(below, str) and redact(below, str(key)) != below:
                yield name
            else:
                yield from secret_names(below, name)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for below in value:
            yield from secret_names(below, path)
