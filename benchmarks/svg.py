"""Self-contained SVG figures of policies over three actions, drawn in triangles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

INK = "#222222"
Place = tuple[float, float]
"""x and y in pixels, y downwards."""


def height(side: float) -> float:
    """Return the height of an equilateral triangle."""
    return side * math.sqrt(3.0) / 2.0


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return a figure on white that loads nothing from elsewhere."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="Helvetica, Arial, sans-serif" '
    background = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([f'{head}font-size="14">', f"<title>{escape(title)}</title>", background, *parts, "</svg>", ""])


def text(place: Place, content: str, anchor: str = "start", **attributes: str) -> str:
    x, y = place
    more = "".join(f" {name.replace('_', '-')}={quoteattr(value)}" for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{more}>{escape(content)}</text>'


def outline(corners: Sequence[Place], colour: str = "#777777") -> str:
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
    return f'<polygon points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def trajectory(places: Sequence[Place], colour: str, width: float) -> str:
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    style = f'stroke-width="{width:g}" stroke-linejoin="round" stroke-linecap="round"'
    return f'<polyline points="{points}" fill="none" stroke="{colour}" {style}/>'


def circle(place: Place, radius: float, fill: str, stroke: str) -> str:
    x, y = place
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
