"""Pieces of SVG and HTML. Colours and sizes of text come from the page's style sheet, by class. Pure functions."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.foreign.text import LONGEST, shown

SERIES = 6
"""Colours of lines; a seventh line has the first one's."""


def text(value: object, limit: int = LONGEST) -> str:
    """Return foreign text as HTML: nothing in it is markup, control characters are shown, keys masked."""
    return html.escape(shown(value, limit, lines=True))


def colour(index: int) -> str:
    """Return the class that gives an element the colour of a line."""
    return f"s{index % SERIES}"


def element(name: str, content: str = "", **attributes: object) -> str:
    """Return an element; `class_` is the attribute `class`, `_` in a name is `-`, numbers are rounded to 0.1."""
    written = "".join(f' {_name(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def label(x: float, y: float, content: object, kind: str = "", anchor: str = "start") -> str:
    """Return a text of a figure at (x, y)."""
    return element("text", text(content), x=x, y=y, class_=kind or None, text_anchor=anchor)


def path(places: Sequence[tuple[float, float]], kind: str) -> str:
    """Return a line through places (x, y)."""
    return element("path", d=_steps(places), class_=kind)


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], kind: str) -> str:
    """Return the area between two lines of the same length."""
    return element("path", d=f"{_steps([*upper, *reversed(lower)])}Z", class_=kind)


def drawing(width: float, height: float, title: str, parts: Iterable[str], **attributes: object) -> str:
    """Return a figure that scales to the width it gets; `title` is for readers who do not see it."""
    named = element("title", text(title))
    return element(
        "svg",
        named + "".join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        **attributes,
    )


def figure(title: str, note: str, content: str, legend: Sequence[tuple[int, str]] = (), kind: str = "") -> str:
    """Return a figure with its title, one line below it, and a legend of (colour, name)."""
    keys = "".join(f'<li class="{colour(index)}"><i></i>{text(name)}</li>' for index, name in legend)
    listed = f'<ul class="legend">{keys}</ul>' if keys else ""
    under = f"<span>{text(note)}</span>" if note else ""
    caption = f"<figcaption><b>{text(title)}</b>{under}</figcaption>"
    return f"<figure{_class(kind)}>{caption}{content}{listed}</figure>"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], numbers: bool = True) -> str:
    """Return a table that scrolls inside its box. With `numbers`, all columns but the first are aligned right."""
    first = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = _class("numbers" if numbers else "")
    top = f"<thead><tr>{first}</tr></thead>" if head else ""
    return f'<div class="scroll"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def details(summary: str, content: str) -> str:
    """Return something that is folded away until it is asked for; `content` is HTML."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def paragraph(content: object, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{text(content)}</p>"


def data(values: Sequence[Any] | Mapping[str, Any]) -> str:
    """Return values as JSON for an attribute that the page's script reads."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def _steps(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _name(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else html.escape(str(value))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
