"""Make text from outside safe to show: no terminal controls, no keys, a bounded length. Count failures by kind.

Every message passes through `shown` before it is printed, because its parts may come from outside: a server's body, a
judge's exception, a file's name.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from actors.redaction import environment_keys, redact, without_key

LONGEST = 4_000
"""Most characters of a message that are shown."""
WHOLE = 1_000_000  # most characters of long texts of our own: a traceback, a report
LONGEST_FAILURE = 1_000  # characters of one failure
LONGEST_REASON = 120  # characters of a kind of failure
MOST_KINDS = 64
"""Most kinds of failure that a ledger counts apart; further kinds are counted as `OTHER`."""
OTHER = "other reasons"

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: ESC, backspace, carriage return, CSI
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    "\u2028\u2029\ufeff\U000e0000-\U000e007f"  # other ends of lines, and characters without a width
    "\ud800-\udfff]"  # lone surrogates, which no encoding prints
)
_NAME = r"'[A-Za-z_]\w{0,39}'"
_UNIQUE = re.compile(
    r"(?P<kept>\bstatus \d{3}\b|\\x[0-9a-f]{2}|\\[uU][0-9a-f]{4,8}"
    rf"|\bKeyError: {_NAME}|\b(?:name|named|attribute|argument:?|column|field|key) {_NAME}|{_NAME} object\b)"
    r"|(?<!\w)(?:'[^']*'|\"[^\"]*\")(?!\w)"  # ids and excerpts are quoted
    r"|\b(?=[\w-]*\d)\w[\w-]{15,}\b"  # UUIDs, digests, object ids
    r"|\b0x[0-9a-fA-F]+\b|\d+(?:\.\d+)?(?:e[-+]?\d+)?"
)
_OF_ANOTHER_KIND = re.compile(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>")  # in transformers' words


def many(count: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: `1 file`, `2,000 files`. `nouns`: the plural, if it is irregular."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def suggestion(wanted: str, names: Sequence[str]) -> str:
    """Return the end of an error message: the names nearest to `wanted`, and all names."""
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}it has: {', '.join(map(repr, names)) or 'nothing'}"


def shown(text: object, limit: int = LONGEST, *, lines: bool = False) -> str:
    """Make `text` safe to print: escape control characters, mask keys, cut after `limit` characters.

    Keys are those that `redact` knows by their form, and those in this process's environment. With `lines`, line breaks
    and tabs are kept.
    """
    raw = str(text)
    cut = raw[: 4 * limit]  # masked before the last cut, so that no part of a key is left
    for key in environment_keys():
        cut = without_key(cut, key)
    kept = "\n\t" if lines else ""
    safe = _OBEYED.sub(lambda found: found[0] if found[0] in kept else _escaped(found[0]), redact(cut))
    return safe if len(safe) <= limit and len(raw) <= 4 * limit else f"{safe[: limit - 1]}…"


def first_line(error: Exception) -> str:
    """Return a library's error about a model in one line. A KeyError's text is the key alone, so it gets a sentence."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which Offbeat never runs (trust_remote_code)"
    line = next(iter(str(error).splitlines()), type(error).__name__)
    if other := _OF_ANOTHER_KIND.match(line):
        return f"{other[1]} is the configuration of another kind of model than is needed"
    return f"it has no {line}" if isinstance(error, KeyError) else line.removesuffix(".")


def kind_of(reason: str) -> str:
    """Return the kind of a failure: its reason without ids, numbers and quotations, cut after `LONGEST_REASON`.

    Keeps the status of an HTTP answer, and a name that Python reports as missing.
    """
    text = " ".join(shown(reason, LONGEST, lines=True).split())
    kind = _UNIQUE.sub(lambda found: found["kept"] or "#", text)
    return kind if len(kind) <= LONGEST_REASON else f"{kind[: LONGEST_REASON - 1]}…"


def count_reason(counts: Counter[str], reason: str, times: int = 1) -> None:
    """Count a failure under its kind, or under `OTHER` if `counts` holds `MOST_KINDS` others already."""
    kind = kind_of(reason)
    counts[kind if kind in counts or len(counts) < MOST_KINDS else OTHER] += times


def by_kind(counts: Mapping[str, int]) -> Counter[str]:
    """Return saved counts by kind; older versions saved whole reasons."""
    kinds = Counter[str]()
    for reason, times in counts.items():
        count_reason(kinds, reason, times)
    return kinds


def _escaped(character: str) -> str:
    """Return a character in Python's escaped notation: `\\n`, `\\x1b`, `\\u202e`."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
