"""Figures that are no curves: staleness, time by role, who was busy when, the triangle of families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.foreign.text import many
from launch.demo.triangle import CORNERS, Curve, weighted
from launch.output.board import clock
from launch.report.drawing import svg
from launch.report.drawing.plots import BOTTOM, HEIGHT, TOP, WIDTH, Frame
from launch.report.drawing.series import Scale, number, scale_of

WIDE = 1000.0
"""Width of a figure that takes the whole page; its texts are larger on a narrow one."""
MOST_LABELS, MOST_BARS = 12, 60
COLOURS = {"updating": 1, "publishing": 1, "evaluating": 2, "checkpointing": 4, "idle": 5, "waiting": 5}
"""Colours of activities; work of its own, such as generating and training, has the first."""
LANE, GAP = 52.0, 54.0  # height of a lane, and of the room for its name above it
BAR = 40.0
SIDE = 300.0  # of the triangle


def histogram_figure(title: str, note: str, counts: Mapping[int, int], bound: int | None) -> str:
    """Draw groups by staleness (versions), beside the bound; `counts` is not empty.

    A bound far beyond all of them is written instead of drawn, and more than `MOST_BARS` ages share bars.
    """
    oldest = max(counts)
    far = bound is not None and bound > 3 * oldest + 8
    last = oldest if far or bound is None else max(oldest, bound)
    note = f"{note}; the bound is {bound}, beyond the figure" if far else note
    size = -(-(last + 1) // MOST_BARS)
    total, bars = sum(counts.values()), Counter[int]()
    for age, groups in counts.items():
        bars[age // size * size] += groups
    frame = Frame(Scale(-0.6, last + 0.6, ()), scale_of([0.0, *(100.0 * n / total for n in bars.values())]))
    parts = [*frame.grid("staleness in versions")]
    for first, groups in sorted(bars.items()):
        left, top = frame.place((first - 0.36, 100.0 * groups / total))
        right, base = frame.place((first + size - 0.64, 0.0))
        ages = f"{first}" if size == 1 else f"{first} to {first + size - 1}"
        told = svg.element("title", svg.text(f"{many(groups, 'group')} at staleness {ages}, {groups / total:.1%}"))
        kind = "bar over" if bound is not None and first > bound else "bar s0"
        place = {"x": left, "y": top, "width": right - left, "height": base - top}
        parts.append(svg.element("rect", told, **place, rx=2, class_=kind))
    every = -(-(last + 1) // MOST_LABELS)
    for age in range(0, last + 1, every):
        x, base = frame.place((age, 0.0))
        parts.append(svg.label(x, base + 16.0, age, anchor="middle"))
    if bound is not None and not far:
        x, _ = frame.place((bound + 0.5, 0.0))
        parts.append(svg.path([(x, TOP), (x, HEIGHT - BOTTOM)], "level"))
        parts.append(svg.label(x, TOP - 3.0, f"bound {bound}", "name", "end"))
    return svg.figure(title, note, svg.drawing(WIDTH, HEIGHT, f"{title}. {note}", parts))


def budget_figure(title: str, note: str, budget: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the shares of each role's seconds, one bar each; `budget` holds roles with more than 0 seconds."""
    parts, y = [], 24.0
    legend: dict[int, list[str]] = {}
    for role, own in budget.items():
        total = sum(own.values())
        parts.append(
            svg.label(0.0, y, f"{role}, {total:,.0f} s" if total >= 10.0 else f"{role}, {total:.1f} s", "lane")
        )
        x = 0.0
        for activity, seconds in own.items():
            width = WIDE * seconds / total
            told = svg.element("title", svg.text(f"{role} {activity}: {seconds:,.1f} s, {seconds / total:.0%}"))
            index = COLOURS.get(activity, 0)
            if seconds > 0.0:
                kind = f"bar {svg.colour(index)}"
                parts.append(svg.element("rect", told, x=x, y=y + 10.0, width=width, height=BAR, class_=kind))
                legend.setdefault(index, []).append(activity)
            x += width
        y += 10.0 + BAR + GAP
    drawn = svg.drawing(WIDE, y - GAP, f"{title}. {note}", parts, class_="wide")
    keys = [(index, ", ".join(dict.fromkeys(names))) for index, names in sorted(legend.items())]
    return svg.figure(title, note, drawn, keys, "whole")


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of a timeline: busy stretches, or moments. Times in seconds since the start."""

    name: str
    stretches: Sequence[tuple[float, float, float]] = ()
    """Start, end and the busy share of the time between, in [0, 1]."""
    moments: Sequence[tuple[float, str]] = ()  # time, and what happened


def timeline_figure(title: str, note: str, lanes: Sequence[Lane], seconds: float) -> str:
    """Draw lanes below each other against the time from 0 to `seconds`, more than 0."""
    parts: list[str] = []
    y = 24.0
    for index, lane in enumerate(lanes):
        parts.append(svg.label(0.0, y, lane.name, "lane"))
        top, base = y + 10.0, y + 10.0 + LANE
        parts.append(svg.element("rect", x=0.0, y=top, width=WIDE, height=LANE, class_="track"))
        parts += _stretches(lane, seconds, base, index)
        for time, told in lane.moments:
            x = WIDE * time / seconds
            mark = svg.element("title", svg.text(told))
            parts.append(
                svg.element("rect", mark, x=x - 1.0, y=top, width=2.0, height=LANE, class_=f"bar {svg.colour(index)}")
            )
        y = base + GAP
    parts += _hours(seconds, y - GAP)
    drawn = svg.drawing(WIDE, y, f"{title}. {note}", parts, class_="wide")
    return svg.figure(title, note, drawn, kind="whole")


def _stretches(lane: Lane, seconds: float, base: float, index: int) -> Iterator[str]:
    for start, end, share in lane.stretches:
        left, right = WIDE * start / seconds, WIDE * end / seconds
        told = svg.element("title", svg.text(f"{clock(start)} to {clock(end)}: {share:.0%}"))
        high = LANE * share
        width, kind = max(0.3, right - left), f"bar {svg.colour(index)}"
        yield svg.element("rect", told, x=left, y=base - high, width=width, height=high, class_=kind)


def _hours(seconds: float, y: float) -> Iterator[str]:
    for part in range(5):
        x = WIDE * part / 4
        anchor = "start" if part == 0 else "end" if part == 4 else "middle"
        yield svg.path([(x, y), (x, y + 5.0)], "axis")
        yield svg.label(x, y + 30.0, clock(seconds * part / 4), anchor=anchor)


def triangle_figure(title: str, note: str, curves: Sequence[Curve]) -> str:
    """Draw trajectories of family shares between the three pure families; a ring at the start, a dot at the end."""
    top, left, high = 34.0, (WIDTH - SIDE) / 2, SIDE * 3**0.5 / 2
    corners = ((WIDTH / 2, top), (left + SIDE, top + high), (left, top + high))
    parts = []
    for share in (0.25, 0.5, 0.75):
        for turn in range(3):
            ends = [(share, 1.0 - share, 0.0), (share, 0.0, 1.0 - share)]
            parts.append(svg.path([weighted(end[turn:] + end[:turn], corners) for end in ends], "grid"))
    parts.append(svg.path([*corners, corners[0]], "axis"))
    x, y = weighted((1, 1, 1), corners)
    parts.append(svg.path([(x - 5, y), (x + 5, y)], "axis") + svg.path([(x, y - 5), (x, y + 5)], "axis"))
    places = [
        (corner, name, -12.0 if n == 0 else 20.0) for n, (corner, name) in enumerate(zip(corners, CORNERS, strict=True))
    ]
    parts += [svg.label(cx, cy + shift, name, anchor="middle") for (cx, cy), name, shift in places]
    for index, curve in enumerate(curves):
        kind, drawn = svg.colour(index), [weighted(point, corners) for point in curve.points]
        if len(drawn) > 1:
            parts.append(svg.path(drawn, f"{kind} line"))
            parts.append(svg.element("circle", cx=drawn[0][0], cy=drawn[0][1], r=4.5, class_=f"{kind} ring"))
        shares = ", ".join(number(share) for share in curve.points[-1])
        told = svg.element("title", svg.text(f"{curve.label}: {shares}"))
        parts.append(svg.element("circle", told, cx=drawn[-1][0], cy=drawn[-1][1], r=5.5, class_=f"{kind} dot"))
    legend = [(index, curve.label) for index, curve in enumerate(curves)] if len(curves) > 1 else []
    return svg.figure(title, note, svg.drawing(WIDTH, top + high + 30.0, f"{title}. {note}", parts), legend)
