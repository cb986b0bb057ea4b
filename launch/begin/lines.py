"""Settings with the reason for each, as a YAML file in sections. Pure; knows no setting."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launch.settings.yaml_text import dump

WIDTH = 110
"""Longest line that holds a setting and its comment; a longer comment stands above its setting."""


@dataclass(frozen=True, slots=True)
class Line:
    """One setting: its dotted key, its value, and why it has that; no reason for what the user gave."""

    key: str
    value: Any
    why: str = ""


def tree_of(lines: Iterable[Line]) -> dict[str, Any]:
    """Return lines as the sections of a configuration; a later line of a key takes the place of an earlier one."""
    tree: dict[str, Any] = {}
    for line in lines:
        *above, name = line.key.split(".")
        section = tree
        for part in above:
            section = section.setdefault(part, {})
        section[name] = line.value
    return tree


def written(head: str, lines: Iterable[Line]) -> str:
    """Return lines as YAML under a comment, each with its reason beside or above it."""
    nested = tree_of(Line(line.key, line) for line in lines)
    comments = (f"# {text}\n" for text in head.splitlines())
    return "".join([*comments, *(f"{text}\n" for text in _written(nested, ""))])


def _written(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in tree.items():
        if not isinstance(value, Line):
            yield f"{indent}{name}:"
            yield from _written(value, f"{indent}  ")
            continue
        setting = f"{indent}{name}: {scalar(value.value)}"
        comment = f"# {' '.join(value.why.split())}" if value.why else ""
        if comment and len(setting) + len(comment) + 2 > WIDTH:
            yield f"{indent}{comment}"
            comment = ""
        yield f"{setting}  {comment}" if comment else setting


def scalar(value: Any) -> str:
    """Return a value on one line of YAML."""
    broken = isinstance(value, str) and not re.fullmatch(r"[\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd]*", value)
    style = '"' if broken else None
    text = dump(value, default_flow_style=True, width=1 << 20, default_style=style)
    return text.removesuffix("\n").removesuffix("\n...")
