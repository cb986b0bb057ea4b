"""Histograms before and after a filter, as numbers and as one self-contained SVG of small multiples.

Data in, text out. Knows nothing of what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

BINS = 40
COLUMNS = 3
WIDTH, HEIGHT = 250.0, 150.0
"""Of a panel's plot, in SVG units."""
GAP_X, GAP_Y = 56.0, 84.0
LEFT, TOP = 52.0, 84.0
BEFORE, AFTER, MARK = "#c4c4c4", "#0072b2", "#d55e00"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of what there was and of what is left of it, in the same bins."""

    title: str
    unit: str
    logarithmic: bool
    """Whether the bins are of equal ratio, and the axis is logarithmic."""
    edges: list[float]
    """[bins + 1], rising; a bin holds its left edge, the last one both."""
    before: list[int]
    """[bins]"""
    after: list[int]
    """[bins]; never more than `before`."""
    marks: tuple[float, ...] = ()
    """Values to be marked, such as a filter's threshold."""


def histogram(
    title: str,
    unit: str,
    before: Sequence[float],
    after: Sequence[float],
    *,
    lengths: bool = False,
    marks: Sequence[float] = (),
) -> Histogram:
    """Counts `before`, which holds at least one value, and `after`, a part of it.

    `lengths` are whole numbers from 1: a bin for each where they are few, else bins of equal ratio. Other values get
    bins of equal width.
    """
    low, high = float(min(before)), float(max(before))
    logarithmic = lengths and high - low >= BINS
    if logarithmic:
        edges = np.geomspace(low, high, BINS + 1).tolist()
    elif lengths:
        edges = np.arange(low - 0.5, high + 1.0).tolist()
    else:
        edges = np.linspace(low, high, BINS + 1).tolist() if high > low else [low - 0.5, low + 0.5]
    # geomspace and linspace round: the extremes must not fall out.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts = [np.histogram(values, edges)[0].tolist() for values in (before, after)]
    return Histogram(title, unit, logarithmic, edges, counts[0], counts[1], tuple(marks))


def histograms_svg(panels: Sequence[Histogram], before: str = "before", after: str = "after") -> str:
    """All `panels`, three in a row, on white: counts before in grey, after in blue over them, marks dashed."""
    rows = math.ceil(len(panels) / COLUMNS)
    width = LEFT + min(len(panels), COLUMNS) * (WIDTH + GAP_X)
    height = TOP + rows * (HEIGHT + GAP_Y) - 20.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>{escape(', '.join(panel.title for panel in panels))}: {escape(before)} and {escape(after)}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_legend(before, after, any(panel.marks for panel in panels)),
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        parts.append(f'<g transform="translate({LEFT + column * (WIDTH + GAP_X):g} {TOP + row * (HEIGHT + GAP_Y):g})">')
        parts += [*_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _legend(before: str, after: str, marked: bool) -> Iterator[str]:
    entries = [(before, BEFORE), (after, AFTER), *([("threshold", MARK)] if marked else [])]
    for number, (label, colour) in enumerate(entries):
        x = LEFT + 110.0 * number
        yield f'<rect x="{x:g}" y="20" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 18:g}" y="30" fill="#222222">{escape(label)}</text>'


def _panel(panel: Histogram) -> Iterator[str]:
    top = max(panel.before)
    totals = f"{sum(panel.before):,} to {sum(panel.after):,}"
    yield (
        f'<text y="-12" fill="#222222"><tspan font-weight="bold">{escape(panel.title)}</tspan> '
        f'<tspan fill="#666666">{totals}</tspan></text>'
    )
    for counts, colour in ((panel.before, BEFORE), (panel.after, AFTER)):
        for left, right, count in zip(panel.edges, panel.edges[1:], counts, strict=False):
            if count:
                x, end, tall = _x(panel, left), _x(panel, right), HEIGHT * count / top
                yield (
                    f'<rect x="{x:.2f}" y="{HEIGHT - tall:.2f}" width="{max(end - x - 0.5, 0.5):.2f}" '
                    f'height="{tall:.2f}" fill="{colour}"/>'
                )
    for mark in panel.marks:
        if panel.edges[0] <= mark <= panel.edges[-1]:
            x = _x(panel, mark)
            yield f'<path d="M{x:.2f} 0V{HEIGHT:g}" stroke="{MARK}" stroke-width="1.5" stroke-dasharray="4 3"/>'
    yield f'<path d="M0 0V{HEIGHT:g}H{WIDTH:g}" stroke="#777777" fill="none"/>'
    yield f'<text x="-6" y="4" text-anchor="end" fill="#222222">{top:,}</text>'
    yield f'<text x="-6" y="{HEIGHT:g}" text-anchor="end" fill="#222222">0</text>'
    for tick in ticks(panel.edges[0], panel.edges[-1], logarithmic=panel.logarithmic):
        x = _x(panel, tick)
        yield f'<path d="M{x:.2f} {HEIGHT:g}v4" stroke="#777777"/>'
        yield f'<text x="{x:.2f}" y="{HEIGHT + 17:g}" text-anchor="middle" fill="#222222">{tick:g}</text>'
    yield f'<text x="{WIDTH / 2:g}" y="{HEIGHT + 34:g}" text-anchor="middle" fill="#666666">{escape(panel.unit)}</text>'


def _x(panel: Histogram, value: float) -> float:
    low, high = panel.edges[0], panel.edges[-1]
    if panel.logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return WIDTH * (value - low) / (high - low)


def ticks(low: float, high: float, *, logarithmic: bool = False) -> list[float]:
    """At most six round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart, or such numbers."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [factor * 10.0**power for power in powers for factor in factors]
            found = [tick for tick in found if low <= tick <= high]
            if len(found) <= 6:
                return found
        return found[:: math.ceil(len(found) / 6)]
    span = high - low
    base = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * base for factor in (1, 2, 5, 10) if span / (factor * base) <= 5)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
