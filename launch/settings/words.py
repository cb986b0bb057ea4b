"""What people type, and what it means here: `words.yaml` as settings of a verb, or as reasons why there is none."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launch.settings.fields import format_value
from launch.settings.yaml_text import read_yaml

TABLE = Path(__file__).with_suffix(".yaml")
LONGEST = 60  # characters of a value that an answer repeats


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a word means for a verb: a setting, maybe with its value, or why there is none."""

    setting: str = ""
    value: str | None = None
    reason: str = ""


def meaning(given: str, keys: Collection[str]) -> Meaning | None:
    """Return what an unknown key or option means for a verb with the settings `keys`; None if nothing is known of it.

    The end of a setting's name means the setting. Of a foreign path, as verl has them, the last words count.
    """
    name = given.strip().lstrip("-").replace("-", "_").lower()
    parts = name.split(".")
    if given.startswith("--") and name in keys:
        return Meaning(name)
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        longer = [each for each in keys if each.endswith(f".{end}")]
        one = Meaning(longer[0]) if len(longer) == 1 else None
        if found := (one if "." in end else None) or _listed(end.replace(".", "_"), keys) or one:
            return found
    return next((Meaning(reason=_reasons()[part]) for part in reversed(parts) if part in _reasons()), None)


def answer(given: str, value: Any, keys: Collection[str]) -> str | None:
    """Return what to write instead of an unknown key or option with a value, or why there is nothing; None if unknown.

    The value is shown, so secrets must be masked in it.
    """
    found = meaning(given, keys)
    if found is None:
        return None
    if found.reason:
        return found.reason
    text = found.value or ("" if value is None or isinstance(value, Mapping) else format_value(value))
    shown = text if 0 < len(text) <= LONGEST and "\n" not in text else "VALUE"
    return f"write {shlex.quote(f'{found.setting}={shown}')}"


def _listed(word: str, keys: Collection[str]) -> Meaning | None:
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
