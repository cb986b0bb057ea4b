"""The family triangle: where policies of a rock-paper-scissors task stand between three pure families, and their way.

Data in, text out: an SVG that needs nothing else, and a plain-text drawing for terminals. Knows neither runs nor how
shares are computed (`learner.world.exact.relative_family_shares`).

A point is three shares, the probabilities of the reference's favourite family, of the family that beats it and of the
one that beats that. It stands at the shares' weighted mean of the corners, so a pure policy is in a corner, and the
policy of a third each, which no family beats, in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from actors.errors import UsageError

CORNERS = ("reference's favourite", "beats it", "beats that")
"""Top, lower right, lower left: what beats a corner is the next one clockwise."""
COLOURS = ("#d55e00", "#0072b2", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
MARKS = "abcdefghijklmnopqrstuvwxyz"

SIDE = 400.0
LEFT, TOP = 110.0, 56.0
HEIGHT = SIDE * math.sqrt(3.0) / 2.0
LEGEND_LINE = 22.0


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn under one label: a policy's way in order, or a single policy."""

    label: str
    points: Sequence[Sequence[float]]
    """[n][3] shares, n >= 1; not negative. They are divided by their sum, so that a rest without family is left out."""


def triangle_svg(curves: Sequence[Curve], corners: Sequence[str] = CORNERS) -> str:
    """A self-contained SVG on white: ways as lines from a ring to a dot, single policies as diamonds, with a legend.

    Raises UsageError for no curves, a curve without points, or points that are not three shares.
    """
    drawn = [(curve, COLOURS[i % len(COLOURS)], _places(curve)) for i, curve in enumerate(_checked(curves))]
    width, height = SIDE + 2 * LEFT, TOP + HEIGHT + 48.0 + LEGEND_LINE * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="Helvetica, Arial, sans-serif" font-size="14">',
        f"<title>Family shares: {escape(', '.join(curve.label for curve in curves))}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_frame(corners),
    ]
    for _, colour, places in drawn:
        parts += _svg_way(places, colour)
    # Ends last: another curve's line must not cover them.
    for _, colour, places in drawn:
        parts += _svg_ends(places, colour)
    for number, (curve, colour, places) in enumerate(drawn):
        y = TOP + HEIGHT + 52.0 + LEGEND_LINE * number
        parts += _svg_way([(LEFT, y), (LEFT + 34.0, y)], colour) if len(places) > 1 else []
        parts += _svg_ends([(LEFT, y), (LEFT + 34.0, y)] if len(places) > 1 else [(LEFT + 17.0, y)], colour)
        parts.append(f'<text x="{LEFT + 48:.0f}" y="{y + 5:.1f}" fill="#222222">{escape(curve.label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def triangle_text(curves: Sequence[Curve], width: int = 60, height: int = 20, corners: Sequence[str] = CORNERS) -> str:
    """The same in characters, `width` x `height` and a legend below; no line is longer than `width`.

    Each curve has a letter: small on its way, capital where it ends or is alone; `*` where several end.

    Raises UsageError as `triangle_svg`, and for fewer than 40 x 10 characters.
    """
    if width < 40 or height < 10:
        raise UsageError(f"a triangle of {width} x {height} characters cannot be read; it takes 40 x 10 or more")
    drawn = [(curve, MARKS[i % len(MARKS)], _shares(curve)) for i, curve in enumerate(_checked(curves))]
    canvas = [[" "] * width for _ in range(height)]
    first, last = 1, height - 2
    middle, half = width // 2, (width - 8) // 2

    def cell(shares: Sequence[float]) -> tuple[int, int]:
        x, y = _weighted(shares, ((middle, first), (middle + half, last), (middle - half, last)))
        return round(y), round(x)

    for start, end in ((0, 1), (1, 2), (2, 0)):
        for row, column in _steps(cell(_corner(start)), cell(_corner(end))):
            canvas[row][column] = "."
    row, column = cell((1.0, 1.0, 1.0))
    canvas[row][column] = "+"
    for _, mark, points in drawn:
        for here, there in pairwise(map(cell, points)):
            for row, column in _steps(here, there):
                canvas[row][column] = mark
    ends = [cell(points[-1]) for _, _, points in drawn]
    for (_, mark, _), place in zip(drawn, ends, strict=True):
        canvas[place[0]][place[1]] = "*" if ends.count(place) > 1 else mark.upper()

    top, right, left = corners
    canvas[0] = list(top.center(width))
    canvas[-1] = list(left + right.rjust(width - len(left)))
    legend = [f"  {_key(mark, points)}  {curve.label}" for curve, mark, points in drawn]
    legend += ["  *     several end here"] if len(set(ends)) < len(ends) else []
    return "\n".join(line.rstrip()[:width] for line in [*map("".join, canvas), *legend])


def _key(mark: str, points: Sequence[Sequence[float]]) -> str:
    return f"{mark}..{mark.upper()}" if len(points) > 1 else f"{mark.upper()}   "


def _checked(curves: Sequence[Curve]) -> Sequence[Curve]:
    if not curves:
        raise UsageError("a triangle of no curves was asked for; give it at least one")
    for curve in curves:
        if not len(curve.points):
            raise UsageError(f"curve '{curve.label}' has no points; give it at least one, three shares each")
        for point in curve.points:
            if len(point) != 3 or not all(math.isfinite(share) and share >= 0.0 for share in point) or not sum(point):
                raise UsageError(
                    f"curve '{curve.label}' has the point {[float(share) for share in point]}; a point is three "
                    "shares, none negative and not all of them 0"
                )
    return curves


def _shares(curve: Curve) -> list[tuple[float, ...]]:
    return [tuple(float(share) for share in point) for point in curve.points]


def _corner(number: int) -> tuple[float, ...]:
    return tuple(float(i == number) for i in range(3))


def _weighted(shares: Sequence[float], corners: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of the corners (x, y), weighted by shares."""
    total = sum(shares)
    x, y = (sum(s * corner[axis] for s, corner in zip(shares, corners, strict=True)) / total for axis in range(2))
    return x, y


def _place(shares: Sequence[float]) -> tuple[float, float]:
    """SVG coordinates of a point."""
    return _weighted(shares, ((LEFT + SIDE / 2, TOP), (LEFT + SIDE, TOP + HEIGHT), (LEFT, TOP + HEIGHT)))


def _places(curve: Curve) -> list[tuple[float, float]]:
    return [_place(point) for point in _shares(curve)]


def _frame(corners: Sequence[str]) -> Iterator[str]:
    """Triangle, grid at quarters, middle and corner labels."""
    for quarter in (0.25, 0.5, 0.75):
        rest = 1.0 - quarter
        for line in (
            ((quarter, rest, 0.0), (quarter, 0.0, rest)),
            ((rest, quarter, 0.0), (0.0, quarter, rest)),
            ((rest, 0.0, quarter), (0.0, rest, quarter)),
        ):
            (x1, y1), (x2, y2) = map(_place, line)
            yield f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#e4e4e4" fill="none"/>'
    outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(_place, map(_corner, range(3))))
    yield f'<path d="M{outline}Z" stroke="#777777" stroke-width="1.5" fill="none"/>'
    x, y = _place((1.0, 1.0, 1.0))
    yield f'<path d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10" stroke="#777777" fill="none"/>'
    for number, (label, shift) in enumerate(zip(corners, (-14.0, 22.0, 22.0), strict=True)):
        x, y = _place(_corner(number))
        yield f'<text x="{x:.1f}" y="{y + shift:.1f}" text-anchor="middle" fill="#222222">{escape(label)}</text>'


def _svg_way(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    if len(places) < 2:
        return []
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.2" stroke-linejoin="round" '
        'stroke-linecap="round"/>'
    ]


def _svg_ends(places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    x, y = places[-1]
    if len(places) < 2:
        return [f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7Z" fill="{colour}" stroke="#ffffff"/>']
    start_x, start_y = places[0]
    return [
        f'<circle cx="{start_x:.1f}" cy="{start_y:.1f}" r="4.5" fill="#ffffff" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{colour}" stroke="#ffffff"/>',
    ]


def _steps(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The cells of a straight line, both ends included."""
    (row, column), (last_row, last_column) = start, end
    count = max(abs(last_row - row), abs(last_column - column), 1)
    for step in range(count + 1):
        share = step / count
        yield round(row + share * (last_row - row)), round(column + share * (last_column - column))
