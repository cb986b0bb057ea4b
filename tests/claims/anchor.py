"""Numbers of docs/anchor.md, and of what README says of the anchor. Every seed in the raw result is in each cell."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from statistics import mean
from typing import Any

from actors.intervals import mean_interval
from benchmarks import lag_figures
from tests.claims.claim import of, of_seeds

PAGE = "docs/anchor.md"
anchor = of(PAGE, "anchor.json")
Figures = Callable[[Any], str]
UPDATES = 1500
"""Of the runs that the page is about; the raw result also has shorter ones."""


def of_row(raw: Any, row: str, figure: str) -> dict[int, float]:
    """Return one figure of all runs of a row by their seeds."""
    runs = [each for each in raw["runs"] if (each["row"], each["updates"]) == (row, UPDATES)]
    return {each["seed"]: each[figure] for each in sorted(runs, key=lambda each: each["seed"])}


def seeds(row: str, figure: str, form: str) -> Figures:
    """Write one figure of a row, a number for each seed."""
    return lambda raw: ", ".join(format(value, form) for value in of_row(raw, row, figure).values())


def mean_of(row: str) -> Callable[[Any], float]:
    return lambda raw: mean(of_row(raw, row, "exploitability_tail").values())


def gain(place: int) -> Callable[[Any], float]:
    """Return a number of: how much lower stale DPO with an anchor ends than fresh DPO without, by seed."""

    def value(raw: Any) -> float:
        without, with_one = (of_row(raw, row, "exploitability_tail") for row in ("dpo-lag-0", "dpo-lag-16-anchor"))
        differences = [without[seed] - with_one[seed] for seed in without if seed in with_one]
        low, high = mean_interval(differences) or (0.0, 0.0)
        return (mean(differences), low, high)[place]

    return value


ROWS = {
    "dpo-lag-0": "| 0 | no |",
    "dpo-lag-0-anchor": "| 0 | yes |",
    "dpo-lag-16": "| 16 | no |",
    "dpo-lag-16-anchor": "| 16 | yes |",
}
"""The rows of the table by their names in the raw result, with their first cells."""

NASH_ROWS = {
    "lag-0": "| 0 | yes | no |",
    "lag-16": "| 16 | yes, the default | no |",
    "lag-16-weighted-anchor": "| 16 | yes | yes |",
    "lag-16-anchor": "| 16 | no | yes |",
}
"""The same of Nash-MD."""


def above_their_points(raw: Any) -> str:
    """Write how far rows with an anchor end above the fixed points of their losses: one number if both say the same."""
    points = lag_figures.fixed_points()
    gaps = (
        mean(of_row(raw, row, "exploitability_tail").values()) - points["nash_pg", weighted]
        for row, weighted in (("lag-16-anchor", False), ("lag-16-weighted-anchor", True))
    )
    return " and ".join(dict.fromkeys(f"{gap:.3f}" for gap in gaps))


def most_above(raw: Any) -> float:
    """The largest mean distance from a fixed point with an anchor, at lags up to 64, in all raw results."""
    rows = lag_figures.measured(lag_figures.runs(), lag_figures.fixed_points())
    gaps = [mean(row.gaps) for row in rows if row.lag <= 64 and "anchor" in row.cure]
    return ceil(100 * max(gaps)) / 100


CLAIMS = [
    *(
        of(PAGE, "anchor_nash.json")(
            f"{cells} {{exploitability}} |", exploitability=seeds(row, "exploitability_tail", ".3f")
        )
        for row, cells in NASH_ROWS.items()
    ),
    *(
        anchor(
            f"{cells} {{exploitability}} | {{kl}} |",
            exploitability=seeds(row, "exploitability_tail", ".3f"),
            kl=seeds(row, "kl_tail", ".2f"),
        )
        for row, cells in ROWS.items()
    ),
    anchor(
        "by {mean:.3f} [{low:.3f}, {high:.3f}]",
        mean=gain(0),
        low=gain(1),
        high=gain(2),
    ),
    of(PAGE, "nash.json")(
        "the loss's own fixed point is lower: {nash/exploitability:.3f} instead of {nash_md/exploitability:.3f}.",
        at="targets/0",
    ),
    of(PAGE, "anchor_nash.json")("Both rows end {gap} above theirs.", gap=above_their_points),
    of(PAGE, "lag_grid.json")(
        "With an anchor both end within {most:.2f} of their fixed points up to a lag of 64. At 256 they were not at "
        "rest after {updates:,} updates; Nash-MD's weights alone reached "
        "{runs/row=lag-256/exploitability_tail:.3f}.",
        most=most_above,
        updates=lambda raw: max(run["updates"] for run in raw["runs"]),
    ),
    of(PAGE, "dpo_point.json")(
        "The start's exploitability is {start:.3f}, that of online DPO's own fixed point {exploitability:.3f}."
    ),
    of(PAGE, "anchor_cost.json")(
        "an anchor of {weight} cost online DPO nothing that three seeds show (`offbeat sweep anchor-cost`). On "
        "samples exactly 1 version old its gap to the best answer ends at {with_1} instead of {without_1}, on samples "
        "4 versions old at {with_4} instead of {without_4}.",
        weight=lambda raw: raw["axes"]["anchor"][1],
        with_1=of_seeds("anchor=0.8,staleness=1"),
        without_1=of_seeds("anchor=0,staleness=1"),
        with_4=of_seeds("anchor=0.8,staleness=4"),
        without_4=of_seeds("anchor=0,staleness=4"),
    ),
    of("README.md", "anchor.json")(
        "online DPO on opponents 16 updates old ends at an exploitability of {with_one:.2f} with one; without, even on "
        "fresh samples, at {without:.2f},",
        with_one=mean_of("dpo-lag-16-anchor"),
        without=mean_of("dpo-lag-0"),
    ),
]
