"""Translate the words of other programs in `words.yaml` into settings of a verb, or into reasons why there is none.

Also writes the messages about wrong values and names. Must not know files of configurations.
"""

import datetime
import difflib
import math
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from actors.redaction import redact
from launch.settings.fields import Setting, format_value
from launch.settings.renamed import new_value
from launch.settings.yaml_text import read_yaml

TABLE = Path(__file__).with_suffix(".yaml")
LONGEST = 60  # characters of a value that an answer repeats
_VARIABLE = re.compile(r"\$(\{[^}]*\}|[A-Za-z_]\w*)(/|$)")
_FILL_IN = 'write the value, or on the command line KEY="$NAME", which the shell fills in'
_QUOTED = re.compile("[\u2018\u201c\u201e][^\\s{}]*[\u2018\u2019\u201c\u201d]")  # a word, no prompt's template


@dataclass(frozen=True, slots=True)
class Meaning:
    """Meaning of a word for a verb: a setting, maybe with its value, or the reason why there is none."""

    setting: str = ""
    value: str | None = None
    reason: str = ""


def meaning(given: str, keys: Collection[str]) -> Meaning | None:
    """Return what an unknown key or option means for a verb with the settings `keys`; None if nothing is known of it.

    The end of a setting's name means the setting. Of a foreign path, as verl has them, the last words count.
    """
    name = given.strip().lstrip("-").replace("-", "_").lower()
    parts = name.split(".")
    if name in keys:
        return Meaning(name)
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        longer = [each for each in keys if each.endswith(f".{end}")]
        one = Meaning(longer[0]) if len(longer) == 1 else None
        if found := (one if "." in end else None) or _in_table(end.replace(".", "_"), keys) or one:
            return found
    return next((Meaning(reason=_reasons()[part]) for part in reversed(parts) if part in _reasons()), None)


def answer(given: str, value: Any, known: Sequence[Setting]) -> str | None:
    """Return what to write instead of an unknown key or option with a value, or why there is nothing; None if unknown.

    The value is shown, so secrets must be masked in it.
    """
    if given == "judging.judge" and isinstance(value, str) and ":" in value:
        return f"write {shlex.quote(f'judging.judge={{kind: function, path: {value!r}}}')}"
    if given == "judging.judge" and isinstance(value, list):
        return "several judges are one of kind ensemble: write {kind: ensemble, members: [{judge: {...}}, ...]}"
    if isinstance(value, Mapping) and (place := _place_of_section(given, {each.section for each in known})):
        return place
    found = meaning(given, {setting.key for setting in known})
    if found is None:
        return None
    if found.reason:
        return found.reason
    setting = next((each for each in known if each.key == found.setting), None)
    text = found.value or ("" if value is None or isinstance(value, Mapping) else format_value(value))
    fits = found.value is not None or setting is None or _may_hold(setting, value)
    if not fits and setting is not None:
        return f"write {found.setting}=VALUE; allowed: {setting.allowed}"
    shown = text if 0 < len(text) <= LONGEST and "\n" not in text else "VALUE"
    return f"write {shlex.quote(f'{found.setting}={shown}')}"


def _place_of_section(given: str, sections: Collection[str]) -> str | None:
    """Say where a section belongs that stands in another place; None if the name is no section's, or several ones'."""
    name = given.rpartition(".")[2]
    found = [each for each in sections if f".{each}".endswith(f".{name}")]
    if len(found) != 1 or found[0] == given:
        return None
    above = found[0].rpartition(".")[0]
    return f"indent `{name}` as a part of `{above}`" if above else f"write `{name}:` at the start of a line, on its own"


def mistyped(setting: Setting, value: Any) -> str | None:
    """Refuse a text that begins with a shell's variable or is in typographic quotes, which would be taken as it is."""
    if not isinstance(value, str) or not (_VARIABLE.match(value) or _QUOTED.fullmatch(value)):
        return None
    given = one_line(redact(value, setting.key))
    if _VARIABLE.match(value):
        return f"{setting.key}: given {given}, and variables are not filled in; {_FILL_IN}"
    return f"{setting.key}: given {given}, in typographic quotes; write plain ones, ' or \""


def _may_hold(setting: Setting, value: Any) -> bool:
    """Return whether a value, or the text of one, may be of a setting's type; bounds are not compared."""
    if value is None or isinstance(value, Mapping) or (" | " not in setting.allowed and str in setting.types):
        return True
    text = format_value(value)
    if setting.types & {int, float} and re.fullmatch(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?", text):
        return True
    if bool in setting.types:
        return text.lower() in ("true", "false", "yes", "no", "on", "off")
    if not setting.types & {int, float, str}:
        return "mapping" not in setting.allowed
    return text in setting.allowed.split(" | ") or "list of" in setting.allowed


def _in_table(word: str, keys: Collection[str]) -> Meaning | None:
    for target in _targets().get(word, ()):
        setting, equals, value = target.partition("=")
        if setting in keys:
            return Meaning(setting, value if equals else None)
    return Meaning(reason=_reasons()[word]) if word in _reasons() else None


@cache
def _targets() -> Mapping[str, list[str]]:
    """Return the settings that each word may mean, in the order of the table."""
    found: dict[str, list[str]] = {}
    for target, word in _pairs(read_yaml(TABLE)["settings"].items()):
        found.setdefault(word, []).append(target)
    return found


@cache
def _reasons() -> Mapping[str, str]:
    listed = ((entry["say"], entry["words"]) for entry in read_yaml(TABLE)["reasons"])
    return {word: reason for reason, word in _pairs(listed)}


def _pairs(entries: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return ((target, word) for target, words in entries for word in words.split())


# ---------------------------------------------------------------- wording


def refusal(setting: Setting, value: Any) -> str:
    """Say that a setting cannot have a value, what it can have, and what was probably meant."""
    free_text = str in setting.types and "|" not in setting.allowed
    hint = ""
    if free_text and isinstance(value, bool | int | float | datetime.date):
        hint = "; put it in quotes"
    elif isinstance(value, float) and not math.isfinite(value):
        hint = ", finite"
    elif setting.key == "name" and isinstance(value, str) and value:
        hint = f"; write name={re.sub('[^A-Za-z0-9._-]+', '-', value)[:LONGEST]}, or a directory with --output DIR"
    renamed = new_value(setting.key, value)
    near = difflib.get_close_matches(_DTYPES.get(str(value), str(value)), setting.allowed.split(" | "), n=1)
    near = near if renamed == value else [renamed]
    if near and not hint:
        hint = f"; nearest: {near[0]}"
    elif setting.types & {int, float} and isinstance(value, str) and (number := number_meant(setting.key, value)):
        hint = f"; write {setting.key}={number}"
    return f"{setting.key}: given {one_line(redact(value, setting.key))}; allowed: {setting.allowed}{hint}"


_DTYPES = {"bf16": "bfloat16", "half": "bfloat16", "fp16": "bfloat16", "float": "float32", "fp32": "float32"}
_UNITS = {
    "seconds": {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400},
    "mib": {"k": 2**-10, "m": 1, "g": 2**10, "t": 2**20},
}


def number_meant(key: str, text: str) -> str | None:
    """Return the number that a text with a unit, a percent sign or commas means for a setting; None if it is none.

    Times are in seconds and sizes in MiB, as the last word of `key` says.
    """
    parts = re.fullmatch(r"\s*([0-9][0-9,_]*(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*", text)
    if parts is None:
        return None
    unit = parts[2].lower()
    units = _UNITS.get(key.rpartition("_")[2], {})
    unit = re.sub(r"i?b(ytes)?$", "", unit) if "g" in units else unit
    factor = 0.01 if unit == "%" else 1 if not unit else units.get(unit)
    return None if factor is None else f"{float(re.sub('[,_]', '', parts[1])) * factor:.12g}"


def one_line(value: Any) -> str:
    """Format a value as one short line."""
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, str):
        value = repr(value)
    text = " ".join(format_value(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(key: str, known: Sequence[Setting]) -> str | None:
    """Return the key whose last part is most like that of an unknown one; prefer keys of its section."""
    section, _, name = key.rpartition(".")

    def likeness(candidate: str) -> float:
        its_section, _, its_name = candidate.rpartition(".")
        ratio = difflib.SequenceMatcher(None, name, its_name).ratio()
        return ratio + (0.15 if its_section == section else 0.0)

    keys = list(dict.fromkeys([entry.key for entry in known] + [entry.section for entry in known if entry.section]))
    best = max(keys, key=likeness)
    return best if likeness(best) >= 0.7 else None


def name_of(setting: Setting) -> str:
    """Return the last part of a setting's key."""
    return setting.key.rpartition(".")[2]


def listed(names: Sequence[str]) -> str:
    """Join names with commas and a last `and`."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
