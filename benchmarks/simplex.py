"""Trajectories on a game of three actions as a self-contained SVG: self-play cycles, its average and Nash-MD converge.

    python -m benchmarks.simplex [--game rps] [--mu .7 .2 .1] [--tau .05] [--steps 600] [--step-size .2] [--output FILE]

Exact iterates of `learner.games.tabular`, without any randomness.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.errors import UsageError
from learner.games.tabular import (
    GAMES,
    Array,
    exploitability,
    nash_md,
    online_mirror_descent,
    regularised_nash,
    running_average,
)

DRAWN = {name: game for name, game in GAMES.items() if len(game) == 3}
OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "simplex.svg"
SIDE = 320.0
HEIGHT = SIDE * math.sqrt(3.0) / 2.0
MARGIN = 48.0
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:15px;font-weight:600}.note{fill:#555}"
    "polygon{fill:#fafafa;stroke:#888}polyline{fill:none;stroke-width:1.3;stroke-linejoin:round}"
)
SELF_PLAY, AVERAGE, NASH_MD, MARK = "#c2410c", "#1d4ed8", "#047857", "#222"


@dataclass(frozen=True, slots=True)
class Curve:
    """One trajectory: rows are policies over the three actions."""

    name: str
    colour: str
    policies: Array


def corners(left: float) -> Array:
    """Where a panel's three actions lie, [3, 2] pixels: lower left, lower right, top."""
    bottom = MARGIN + HEIGHT
    return np.array([(left, bottom), (left + SIDE, bottom), (left + SIDE / 2.0, MARGIN)])


def coordinates(policies: Array, left: float) -> str:
    """Points of an SVG polyline: each policy is the corners' mean with its probabilities as weights."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in policies @ corners(left))


def panel(title: str, curves: Sequence[Curve], start: Array, equilibrium: Array, game: Array, left: float) -> list[str]:
    """One triangle with its curves, the start (a dot), the equilibrium (a ring) and a legend below."""
    triangle = coordinates(np.eye(3), left)
    lines = [
        f'<text class="title" x="{left + SIDE / 2:.0f}" y="20" text-anchor="middle">{title}</text>',
        f'<polygon points="{triangle}"/>',
    ]
    anchors = (("end", -6, 5), ("start", 6, 5), ("middle", 0, -7))
    for action, ((x, y), (anchor, dx, dy)) in enumerate(zip(corners(left), anchors, strict=True), 1):
        lines.append(f'<text x="{x + dx:.2f}" y="{y + dy:.2f}" text-anchor="{anchor}">{action}</text>')
    for curve in curves:
        points = coordinates(curve.policies, left)
        lines.append(f'<polyline stroke="{curve.colour}" points="{points}"><title>{curve.name}</title></polyline>')
    for policy, fill, radius in ((start, MARK, 3.5), (equilibrium, "none", 5.0)):
        x, y = policy @ corners(left)
        lines.append(
            f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius}" fill="{fill}" stroke="{MARK}" stroke-width="1.5"/>'
        )
    for row, curve in enumerate(curves):
        y = MARGIN + HEIGHT + 34 + 20 * row
        lines.append(f'<rect x="{left:.0f}" y="{y - 5:.0f}" width="18" height="3" fill="{curve.colour}"/>')
        exploited = exploitability(game, curve.policies[-1])
        lines.append(
            f'<text x="{left + 26:.0f}" y="{y:.0f}">{curve.name}: exploitability {exploited:.3f} at the end</text>'
        )
    return lines


def draw(name: str, mu: Sequence[float], tau: float, steps: int, step_size: float) -> str:
    """The figure as SVG text. Raises UsageError unless the game has three actions, and as `tabular` does."""
    if name not in DRAWN:
        raise UsageError(f"no game of three actions is called {name!r}; there are {', '.join(DRAWN)}")
    game, start = DRAWN[name], np.asarray(mu, dtype=np.float64)
    cycling = online_mirror_descent(game, start, 0.0, np.full(steps, step_size))
    left, right = MARGIN, 2.0 * MARGIN + SIDE + 16.0
    lines = panel(
        f"Self-play, {steps} steps of {step_size:g}",
        [Curve("iterates", SELF_PLAY, cycling), Curve("their average", AVERAGE, running_average(cycling))],
        start,
        regularised_nash(game, np.full(3, 1.0 / 3.0), 1e-3),
        game,
        left,
    )
    lines += panel(
        f"Nash-MD, tau {tau:g}, {steps} steps",
        [Curve("iterates", NASH_MD, nash_md(game, start, tau, steps))],
        start,
        regularised_nash(game, start, tau),
        game,
        right,
    )
    width, height = right + SIDE + MARGIN, MARGIN + HEIGHT + 92.0
    caption = f"{name}, from mu = ({', '.join(f'{p:g}' for p in start)}), the dot. Rings: the equilibrium of the game "
    caption += "(left), of the regularised game (right)."
    lines.append(f'<text class="note" x="{left:.0f}" y="{height - 14:.0f}">{caption}</text>')
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *lines, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", choices=sorted(DRAWN), default="rps")
    parser.add_argument("--mu", type=float, nargs=3, default=[0.7, 0.2, 0.1], help="reference and start")
    parser.add_argument("--tau", type=float, default=0.05, help="temperature of Nash-MD")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--step-size", type=float, default=0.2, help="of self-play")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    try:
        figure = draw(options.game, options.mu, options.tau, options.steps, options.step_size)
    except UsageError as error:
        parser.error(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(figure)
    print(options.output)


if __name__ == "__main__":
    main()
