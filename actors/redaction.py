"""Mask secrets in output: text under a secret's name, and text with the shape of a known key.

A second line of defence: settings take the NAME of an environment variable, never a key. Standard library only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"

SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)
"""Names of secrets. `max_tokens` and `api_key_env` do not match: only the last word counts."""

_IN_TEXT = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), MASK),  # user:password of a URL
    (re.compile(r"(?<=Bearer )\S+", re.IGNORECASE), MASK),
    (re.compile(r"\b(hf_|sk-|ghp_|xox[bp]-)[A-Za-z0-9_-]{16,}"), rf"\1{MASK}"),
)


def redact(value: Any, name: str = "") -> Any:
    """Return JSON-like `value` with every secret replaced by `***`.

    Secrets are text under a name like `SECRET_NAME`, users and passwords in URLs, and keys of known services.
    """
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
    """Yield the dotted names in `value` whose text is a secret."""
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
