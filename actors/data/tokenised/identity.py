"""Identify the inputs of tokenised prompts by content: files, settings, tokenizer and code.

Two identities are equal only if reading and tokenising again would give the same prompts, ids and problems.
"""

import json
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from actors.data.config import PromptConfig
from actors.data.rows import OpenedSource

BLOCK = 1 << 20
_ORDER = {"seed", "shuffle", "on_malformed", "validation_fraction", "validation_source", "validation_split"}
"""Settings that change no prompt."""
_CHANGING = re.compile(r"strftime_now|\brandom\b|\blipsum\b")
"""Names in a chat template whose text depends on the time or on chance."""
_PACKAGES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")


def identity(source: OpenedSource, config: PromptConfig, tokenizer: Any) -> str | None:
    """Return a hash of all inputs of the prompts of `source`; None if some input cannot be hashed. Raises OSError."""
    known = _tokenizer_content(tokenizer)
    if not source.files or known is None:
        return None
    parts = {
        "code": _code(),  # includes the code that reads and writes the cache file
        "versions": [sys.version_info[:2], *map(version, _PACKAGES)],
        # Their paths as well: messages name them.
        "files": [[str(file), _file_sum(file)] for file in source.files],
        "reading": source.reading,
        "settings": config.model_dump(mode="json", exclude=_ORDER),
        "tokenizer": known,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


def stamps(files: Iterable[Path]) -> list[tuple[int, ...]]:
    """Return figures of each file that change if somebody writes to it: inode, size and times. Raises OSError."""
    found = [file.stat() for file in files]
    return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]


def content_sum(file: BinaryIO, size: int = sys.maxsize) -> str:
    """Hash the rest of an open file, or its next `size` bytes. Raises OSError."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    while size and (read := file.readinto(buffer[: min(size, BLOCK)])):  # type: ignore[attr-defined]
        digest.update(buffer[:read])
        size -= read
    return digest.hexdigest()


def _file_sum(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return content_sum(file)


def _tokenizer_content(tokenizer: Any) -> str | None:
    """Hash all that turns a text or a chat into token ids; None if a part is unknown or varies by itself."""
    backend, template = getattr(tokenizer, "backend_tokenizer", None), tokenizer.chat_template
    if backend is None or _CHANGING.search(json.dumps(template)):
        return None
    parts = [
        f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        backend.to_str(),
        template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        [tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "split_special_tokens", None)],
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


@cache
def _code() -> str:
    """Hash the code that reads and tokenises rows."""
    folder = Path(__file__).parents[1]
    digest = xxhash.xxh3_128()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
