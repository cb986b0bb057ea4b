"""Draws the family triangle of a finished demo as docs/figures/triangle.svg.

    python -m benchmarks.triangle runs/demo [--output FILE]

Trajectories are lines from a ring to a dot, single policies are diamonds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.errors import UsageError
from benchmarks import svg
from benchmarks.svg import Place
from launch.demo.demo import NASH_MD, family_curves, find_targets
from launch.demo.triangle import CORNERS, Curve, Point, weighted
from launch.settings.loading import load_config

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "triangle.svg"
COLOURS = ("#d55e00", "#0072b2", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish."""
SIDE, LEFT, TOP, LEGEND_LINE = 400.0, 110.0, 56.0, 22.0
HEIGHT = svg.height(SIDE)


def place(shares: Point) -> Place:
    return weighted(shares, ((LEFT + SIDE / 2, TOP), (LEFT + SIDE, TOP + HEIGHT), (LEFT, TOP + HEIGHT)))


def draw(curves: Sequence[Curve], corners: Sequence[str] = CORNERS) -> str:
    """Return the figure with a legend. Raises UsageError if there are no curves."""
    if not curves:
        raise UsageError("the triangle has no curves; give it at least one")
    drawn = [(COLOURS[i % len(COLOURS)], [place(point) for point in curve.points]) for i, curve in enumerate(curves)]
    parts = [*_frame(corners)]
    parts += [svg.trajectory(places, colour, 2.2) for colour, places in drawn if len(places) > 1]
    # Ends last: another curve's line must not cover them.
    for colour, places in drawn:
        parts += _ends(places, colour)
    for row, (curve, (colour, places)) in enumerate(zip(curves, drawn, strict=True)):
        y = TOP + HEIGHT + 52.0 + LEGEND_LINE * row
        sample = [(LEFT, y), (LEFT + 34.0, y)] if len(places) > 1 else [(LEFT + 17.0, y)]
        parts += [svg.trajectory(sample, colour, 2.2)] if len(places) > 1 else []
        parts += [*_ends(sample, colour), svg.text((LEFT + 48.0, y + 5.0), curve.label)]
    title = f"Family shares: {', '.join(curve.label for curve in curves)}"
    return svg.document(SIDE + 2 * LEFT, TOP + HEIGHT + 48.0 + LEGEND_LINE * len(curves), title, parts)


def _frame(corners: Sequence[str]) -> Iterator[str]:
    """Draw grid lines at quarters, the outline, the middle, and the corners' labels."""
    for share in (0.25, 0.5, 0.75):
        rest = 1.0 - share
        for turn in range(3):
            ends = [(share, rest, 0.0), (share, 0.0, rest)]
            yield svg.trajectory([place(end[turn:] + end[:turn]) for end in ends], "#e4e4e4", 1.0)
    pure = [place(shares) for shares in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    yield svg.outline(pure)
    x, y = place((1, 1, 1))
    yield f'<path d="M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10" stroke="#777777" fill="none"/>'
    for (x, y), label, shift in zip(pure, corners, (-14.0, 22.0, 22.0), strict=True):
        yield svg.text((x, y + shift), label, "middle")


def _ends(places: Sequence[Place], colour: str) -> list[str]:
    x, y = places[-1]
    if len(places) == 1:
        return [f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7Z" fill="{colour}" stroke="#ffffff"/>']
    return [svg.circle(places[0], 4.5, "#ffffff", colour), svg.circle(places[-1], 5.5, colour, "#ffffff")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="directory of a finished `offbeat demo`")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    try:
        route = load_config(options.demo / NASH_MD / "config.yaml", [])
        figure = draw(family_curves(options.demo, find_targets(route, options.demo / "start")))
    except (OSError, UsageError) as error:
        parser.error(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(figure, encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
