"""The settings of a verb as a flat list of dotted keys, read off the configuration models, and printed for `--help`.

Error messages take their wording from the same list. Must not know files or what a setting does.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from rich.table import Table

_NOUNS = {int: ("integer", "integers"), float: ("number", "numbers"), str: ("text", "texts")}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
WIDTH_WITHOUT_TERMINAL = 120
TEXTS = "mapping of names to texts"


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of the configuration."""

    key: str  # dotted, as in an override: `replay.max_staleness`
    section: str
    """The key without its last part; empty at the top."""
    title: str  # one line about the section
    allowed: str
    """Type, choices and bounds in words: `integer >= 0`, `lease | ready`."""
    default: str  # as printed; `required` if there is none
    description: str
    types: frozenset[type]
    """Plain Python types of allowed values, `NoneType` included; element types for lists."""
    only_for: tuple[str, ...] = ()
    """Kinds of the section that have this setting; empty if the section comes in one kind."""
    kinds_of: str = ""  # the section that comes in these kinds


@functools.cache
def settings(model: type[BaseModel], section: str = "", title: str = "") -> tuple[Setting, ...]:
    """Return every leaf below `model`, depth first in the order of declaration."""
    return tuple(_leaves(model, section, title or first_line(model.__doc__)))


def _leaves(model: type[BaseModel], section: str, title: str) -> Iterator[Setting]:
    for name, info in model.model_fields.items():
        key = f"{section}.{name}" if section else name
        variants = section_models(info)
        if not variants:
            yield _leaf(key, section, title, info)
        elif len(variants) == 1:
            yield from settings(next(iter(variants.values())), key)
        else:
            yield from _variants(key, info, variants)


def by_section(model: type[BaseModel]) -> dict[str, list[Setting]]:
    """Return the leaves of each section: a subsection may be declared between two of them."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings(model):
        sections.setdefault(setting.section, []).append(setting)
    return sections


def section_models(info: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the models a field may hold: none for a leaf, one for a plain section, else one for each kind."""
    members = _members(info.annotation)
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    tag_field = info.discriminator
    if not isinstance(tag_field, str):
        return {"": models[0]} if models else {}
    return {tag: model for model in models for tag in _tags(model, tag_field)}


def first_line(text: str | None) -> str:
    """Return the first line of a docstring without its full stop."""
    return (text or "").strip().partition("\n")[0].rstrip(".")


def _variants(key: str, info: FieldInfo, variants: dict[str, type[BaseModel]]) -> Iterator[Setting]:
    """Return the leaves of a section of several kinds: the kind first, then the settings of each kind."""
    tag_field = str(info.discriminator)
    title = info.description or ""
    default = info.get_default(call_default_factory=True, validated_data={})
    chosen = "required" if default in (None, PydanticUndefined) else str(getattr(default, tag_field))
    yield Setting(f"{key}.{tag_field}", key, title, " | ".join(variants), chosen, title, frozenset({str}))
    found: dict[Setting, tuple[Setting, tuple[str, ...]]] = {}
    for model in dict.fromkeys(variants.values()):
        tags = tuple(tag for tag, each in variants.items() if each is model)
        for setting in settings(model, key, title):
            if setting.key != f"{key}.{tag_field}":
                # Equal settings of several models are listed once.
                alike = replace(setting, title="")
                first, before = found.get(alike, (setting, ()))
                found[alike] = first, (*before, *tags)
    yield from (replace(setting, only_for=tags, kinds_of=key) for setting, tags in found.values())


def _leaf(key: str, section: str, title: str, info: FieldInfo) -> Setting:
    members = _members(info.annotation)
    default = info.get_default(call_default_factory=True, validated_data={})
    return Setting(
        key=key,
        section=section,
        title=title,
        allowed=describe_type(info),
        default="required" if info.is_required() else format_value(default),
        description=info.description or "",
        types=frozenset(plain for member in members for plain in _plain_types(member)),
    )


_PATTERNS = {r"^[A-Za-z0-9._-]+$": "of letters, digits and . _ -"}
"""Patterns in words."""


def describe_type(info: FieldInfo) -> str:
    """Return type, choices and bounds of a leaf in words."""
    words = [_describe(member) for member in _members(info.annotation) if member is not type(None)]
    bounds = [
        f"{sign} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for limits in info.metadata
        for name, sign in _BOUNDS
        if isinstance(limit := getattr(limits, name, None), int | float)
    ]
    patterns = [pattern for limits in info.metadata if (pattern := getattr(limits, "pattern", None))]
    text = " or ".join(words)
    if bounds:
        text += " " + " and ".join(bounds)
    if patterns:
        text += f" {_PATTERNS.get(patterns[0], f'matching {patterns[0]}')}"
    return text + (" or null" if type(None) in _members(info.annotation) else "")


def format_value(value: Any) -> str:
    """Return a value on one line, as written in YAML or in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def _members(annotation: Any) -> tuple[Any, ...]:
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(map(_plain, members))


def _tags(model: type[BaseModel], field: str) -> list[str]:
    return [str(tag) for tag in get_args(model.model_fields[field].annotation)]


def _describe(member: Any) -> str:
    if get_origin(member) is Literal:
        return " | ".join(format_value(choice) for choice in get_args(member))
    if get_origin(member) is tuple:
        items = tuple(_plain(item) for item in get_args(member))
        plural = _NOUNS.get(items[0], ("value", "values"))[1]
        return f"list of {plural}" if items[-1] is Ellipsis else f"list of {len(items)} {plural}"
    if get_origin(member) is dict:
        return TEXTS if get_args(member) == (str, str) else "mapping"
    if member is bool:
        return "true | false"
    return _NOUNS.get(member, (str(member), ""))[0]


def _plain(item: Any) -> Any:
    """Return a type without its bounds."""
    return get_args(item)[0] if get_origin(item) is Annotated else item


def _plain_types(member: Any) -> Iterator[type]:
    if get_origin(member) is Literal:
        yield from (type(choice) for choice in get_args(member))
    elif get_origin(member) is tuple:
        yield from (plain for item in get_args(member) if isinstance(plain := _plain(item), type))
    elif isinstance(member, type):
        yield member


# ---------------------------------------------------------------- help


def print_settings(model: type[BaseModel]) -> None:
    """Print one table for each section: key, allowed values, default, meaning."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    sections = by_section(model)
    console.print("\nSettings, in the YAML file as sections or on the command line as KEY=VALUE:")
    key_width = max(len(entry.key) for entries in sections.values() for entry in entries)
    for section, entries in sections.items():
        console.print()
        console.print(Text.assemble((section or "run", "bold"), "  ", (entries[0].title, "dim")))
        console.print(Padding(_table(entries, key_width), (0, 0, 0, 2)))


def _table(entries: list[Setting], key_width: int) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    columns = Column(no_wrap=True, min_width=key_width), Column(ratio=3), Column(ratio=2), Column(ratio=6)
    table = Table(*columns, box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for entry in entries:
        kinds = f"kind {', '.join(entry.only_for)}: " if entry.only_for else ""
        table.add_row(
            Text(entry.key, style="cyan"),
            Text(entry.allowed),
            Text(entry.default, style="bold red" if entry.default == "required" else "green"),
            Text(kinds + entry.description),
        )
    return table
