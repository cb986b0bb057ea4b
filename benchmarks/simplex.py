"""Draws trajectories on a game of three actions: self-play cycles, its average and Nash-MD converge.

    python -m benchmarks.simplex [--game rps] [--mu .7 .2 .1] [--tau .05] [--steps 600] [--step-size .2] [--output FILE]

The iterates are those of `learner.games.tabular`: exact, without sampling.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.errors import UsageError
from benchmarks import svg
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
SIDE, MARGIN = 320.0, 48.0
HEIGHT = svg.height(SIDE)
SELF_PLAY, AVERAGE, NASH_MD = "#c2410c", "#1d4ed8", "#047857"


@dataclass(frozen=True, slots=True)
class Curve:
    """One trajectory: rows are policies over the three actions."""

    name: str
    colour: str
    policies: Array


def panel(title: str, curves: Sequence[Curve], start: Array, equilibrium: Array, game: Array, left: float) -> list[str]:
    """One triangle with its curves, the start (a dot), the equilibrium (a ring) and a legend below."""
    bottom = MARGIN + HEIGHT
    corners = np.array([(left, bottom), (left + SIDE, bottom), (left + SIDE / 2.0, MARGIN)])

    def places(policies: Array) -> list[svg.Place]:
        return [(float(x), float(y)) for x, y in np.atleast_2d(policies @ corners)]

    lines = [svg.text((left + SIDE / 2, 20.0), title, "middle", font_weight="600"), svg.outline(places(np.eye(3)))]
    anchors = (("end", -6, 5), ("start", 6, 5), ("middle", 0, -7))
    for action, ((x, y), (anchor, dx, dy)) in enumerate(zip(corners, anchors, strict=True), 1):
        lines.append(svg.text((x + dx, y + dy), str(action), anchor))
    lines += [svg.trajectory(places(curve.policies), curve.colour, 1.3) for curve in curves]
    lines.append(svg.circle(places(start)[0], 3.5, svg.INK, svg.INK))
    lines.append(svg.circle(places(equilibrium)[0], 5.0, "none", svg.INK))
    for row, curve in enumerate(curves):
        y = bottom + 34 + 20 * row
        lines.append(f'<rect x="{left:.0f}" y="{y - 5:.0f}" width="18" height="3" fill="{curve.colour}"/>')
        exploited = exploitability(game, curve.policies[-1])
        lines.append(svg.text((left + 26, y), f"{curve.name}: exploitability {exploited:.3f} at the end"))
    return lines


def draw(name: str, mu: Sequence[float], tau: float, steps: int, step_size: float) -> str:
    """Return the figure as SVG. Raises UsageError unless the game has three actions, and as `tabular` does."""
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
    title = f"{name}, from mu = ({', '.join(f'{p:g}' for p in start)}), the dot. Rings: the equilibrium of the game "
    title += "(left), of the regularised game (right)."
    lines.append(svg.text((left, height - 14), title))
    return svg.document(width, height, title, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", choices=sorted(DRAWN), default="rps")
    parser.add_argument("--mu", type=float, nargs=3, default=[0.7, 0.2, 0.1], help="reference and start")
    parser.add_argument("--tau", type=float, default=0.05, help="temperature of Nash-MD")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--step-size", type=float, default=0.2, help="step size of self-play")
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
