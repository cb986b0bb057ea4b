"""Mask secrets in output: values under a secret's name, text in a known key's shape, parts of a known key.

A second line of defence: settings take the NAME of an environment variable, never a key. Standard library only. The
shapes of keys are those that their services document (GitHub, GitLab, Hugging Face, OpenAI, Groq, AWS, Google, Slack,
Stripe, npm, PyPI, RFC 7519 for JWT, RFC 7468 for PEM).
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
SHORTEST_PART = 6
"""Shortest part of a known key that is masked, in characters."""

SHORTEST_KEY = 12
"""Shortest value of an environment variable that may be a key, in characters."""
LONG = 24
"""Shortest random text that counts as a key under any name, in characters."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRETS = {
    "apikey", "accesskey", "auth", "authorization", "bearer", "cookie", "credential", "credentials", "key", "keys",
    "passphrase", "passwd", "password", "passwords", "pat", "pwd", "secret", "secretkey", "secrets", "token", "tokens",
}  # fmt: skip
"""Words for secrets. `tokens` and `keys` count only beside a random value: `max_tokens` is no secret."""
_PLURAL = {"keys", "tokens"}
_SPECIAL_TOKENS = {
    "audio", "begin", "bos", "cls", "decoder", "end", "eos", "first", "image", "last", "mask", "new", "next", "pad",
    "per", "prompt", "sep", "sort", "special", "start", "stop", "unk", "video", "vision",
}  # fmt: skip
"""Words before `token` or `key` that make it a tokenizer's token or a table's key."""
_ABOUT = {
    "env", "file", "frames", "id", "ids", "length", "limit", "mode", "name", "names", "path", "size", "type", "url",
    "variable",
}  # fmt: skip
"""Last words of names of things that belong to a secret but are no secret."""
_RANDOM = {"adapter", "checksum", "digest", "hash", "id", "ids", "model", "name", "revision", "sha", "uuid", "version"}
"""Last words of names whose values look random but are no secrets."""
_ENVIRONMENT_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")

# Every repetition below is bounded or begins at the beginning of a word, so that no text takes long.
_NAMED = re.compile(
    r"(?<=--)(?P<option>[A-Za-z][\w.-]{0,63}+)[ =]+"
    r"|(?<![\w.])(?P<name>[A-Za-z_][\w.-]{0,63}+)(?P<sign>[\"']?\s{0,3}[:=]\s{0,3})"
)
_VALUE = re.compile(r"\"[^\"\n]{1,4096}\"|'[^'\n]{1,4096}'|[^\s\"',;&)}\]]{1,4096}")
_HEADER = re.compile(r"\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:[A-Za-z-]+ +)?[^\s\"',;}]+", re.IGNORECASE)
_USER_AND_PASSWORD = (
    r"(?!(?:localhost|[\w-]+(?:\.[\w-]+)+|\[[^\]\s]*\]):\d{1,5}/)"  # a port and a path are no password
    r"[^\s/@:]{0,256}:[^\s\"'<>]{0,256}"  # a password may hold / and @, so the last @ counts
)
_IN_TEXT = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(rf"(?<=://)(?:{_USER_AND_PASSWORD}|[^/\s@]{{1,256}})(?=@)"), MASK),
    (_HEADER, rf"\1{MASK}"),
    (re.compile(r"(?<=\bBearer )[^\s\"',;}]+", re.IGNORECASE), MASK),
    (re.compile(r"(?<![\w-])eyJ[\w-]{6,}+\.[\w-]{6,}+(?:\.[\w-]*+)?"), MASK),  # JWT
    (
        re.compile(
            r"\b(hf_|api_org_|gh[pousr]_|gsk_|xai-|nvapi-|pplx-|r8_|fw_|npm_|dop_v1_|glpat-|pypi-|xox[a-z]-|xapp-"
            r"|(?:sk|rk|pk)_(?:live|test)_|sk-(?=[\w-]{0,64}[0-9A-Z]))[A-Za-z0-9_-]{16,}"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(github_pat_|AIza|ya29\.|SG\.)[A-Za-z0-9._-]{16,}"), rf"\1{MASK}"),
    (re.compile(r"\b(AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}\b"), rf"\1{MASK}"),
)  # fmt: skip


def redact(value: Any, name: str = "") -> Any:
    """Return JSON-like `value` with every secret replaced by `***`.

    Secrets are values under a secret's name, keys of known services, and in text also users and passwords of URLs,
    `Authorization`, and values that are assigned to a secret's name.
    """
    if isinstance(value, Mapping):
        return {key: redact(below, str(key)) for key, below in value.items()}
    if isinstance(value, str):
        return MASK if value and _is_secret(name, value) else _without_known_shapes(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact(below, name) for below in value]
    return value


def secret_names(value: Any, path: str = "", *, unnamed: bool = False) -> Iterator[str]:
    """Yield the dotted names in `value` whose text is a secret; if `unnamed`, also long random text under any name."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from secret_names(below, f"{path}.{key}" if path else str(key), unnamed=unnamed)
    elif isinstance(value, str):
        random = unnamed and looks_random(value, LONG) and _RANDOM.isdisjoint(_words(path)[-1:])
        if random or redact(value, path.rpartition(".")[2]) != value:
            yield path
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for below in value:
            yield from secret_names(below, path, unnamed=unnamed)


def without_key(text: str, key: str, instead: str = MASK) -> str:
    """Replace a key in `text`, and every part of it of `SHORTEST_PART` characters or more.

    Servers repeat the beginning of a wrong key, or its end.
    """
    size = min(SHORTEST_PART, len(key))
    if not size:
        return text
    parts = {key[start : start + size] for start in range(len(key) - size + 1)}
    pieces: list[str] = []
    end = 0
    for start in range(len(text) - size + 1):
        if text[start : start + size] in parts:
            if start > end or not pieces:
                pieces += [text[end:start], instead]
            end = start + size
    return "".join([*pieces, text[end:]])


def environment_keys(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the values of environment variables that are keys, judging by name and look. Paths are never keys."""
    return [
        value
        for name, value in environ.items()
        if len(value) >= SHORTEST_KEY and value[0] != "/" and _is_secret(name, value) and looks_random(value, 8)
    ]


def looks_random(text: str, least: int = 12) -> bool:
    """Return whether a word of a text looks like a generated key: letters and digits without order."""
    return any(_is_random(word) for word in re.findall(rf"[A-Za-z0-9+]{{{least},}}", text))


def _is_random(word: str) -> bool:
    digits = sum(character.isdigit() for character in word)
    if not digits or digits == len(word):
        return False
    counts = Counter(word).values()
    entropy = -sum(count / len(word) * math.log2(count / len(word)) for count in counts)
    return entropy >= 2.8  # bits per character; 12 different characters have 3.6


def _words(name: str) -> list[str]:
    """Return the words of the last part of a dotted name, in any style, without a number at the end."""
    words = [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]
    while words and (words[-1].isdigit() or words[-1] == "v"):
        words.pop()  # api_key_2
    return words


def _is_secret(name: str, value: str) -> bool:
    """Return whether a value's name makes it a secret, either always or only because the value also looks random."""
    words = _words(name)
    if not words or words[-1] in _ABOUT:
        return False
    if words[-1] in ("key", "token") and words[-2:-1] and words[-2] in _SPECIAL_TOKENS:
        return False
    if words[-1] in _SECRETS - _PLURAL:
        return True
    named = _SECRETS.intersection(words) and not _ENVIRONMENT_VARIABLE.fullmatch(value)
    return bool(named) and " " not in value and looks_random(value[:256])


def _without_known_shapes(text: str) -> str:
    for pattern, mask in _IN_TEXT:
        text = pattern.sub(mask, text)
    pieces, end = [], 0
    for found in _NAMED.finditer(text):
        if found.start() < end or _SECRETS.isdisjoint(_words(found["option"] or found["name"])):
            continue
        value = _VALUE.match(text, found.end())
        if value is not None and _is_assignment(found, value[0].strip("\"'"), value[0]):
            quote = value[0][0] if value[0][0] in "\"'" else ""
            pieces += [text[end : value.start()], f"{quote}{MASK}{quote}"]
            end = value.end()
    return "".join([*pieces, text[end:]])


def _is_assignment(found: re.Match[str], value: str, written: str) -> bool:
    """Return whether a text assigns a value to a secret's name. `token: missing` and `key: 5` are prose."""
    option, name = found["option"], found["option"] or found["name"]
    if not _is_secret(name, value) or value.startswith(MASK) or _ENVIRONMENT_VARIABLE.fullmatch(value):
        return False
    if option:
        return True
    if _words(name) in (["key"], ["token"]):
        start = value[:64]
        return len(start) >= SHORTEST_PART and any(map(str.isalpha, start)) and any(map(str.isdigit, start))
    return "=" in found["sign"] or value != written or re.fullmatch(r"[A-Za-z]+[.:!?]*|`.*", value) is None
