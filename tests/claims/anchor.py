"""Numbers of docs/anchor.md, and of what README says of the anchor. Every seed in the raw result is in each cell."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

from tests.claims.claim import of

PAGE = "docs/anchor.md"
anchor = of(PAGE, "anchor.json")
Figures = Callable[[Any], str]


def of_row(raw: Any, row: str, figure: str) -> list[float]:
    """Return one figure of all runs of a row, in the order of their seeds."""
    runs = sorted((each for each in raw["runs"] if each["row"] == row), key=lambda each: each["seed"])
    return [each[figure] for each in runs]


def seeds(row: str, figure: str, form: str) -> Figures:
    """Write one figure of a row, a number for each seed."""
    return lambda raw: ", ".join(format(value, form) for value in of_row(raw, row, figure))


def mean_of(row: str) -> Callable[[Any], float]:
    return lambda raw: mean(of_row(raw, row, "exploitability_tail"))


ROWS = {
    "dpo-lag-0": "| 0 | no | {exploitability} |",
    "dpo-lag-16": "| 16 | no | {exploitability} |",
    "dpo-lag-16-anchor": "| 16 | 0.8 over 32 updates | **{exploitability}** |",
}
"""The rows of the table by their names in the raw result, with their first three cells."""

CLAIMS = [
    *(
        anchor(
            f"{cells} {{largest}} | {{kl}} |",
            exploitability=seeds(row, "exploitability_tail", ".3f"),
            largest=seeds(row, "exploitability_tail_max", ".3f"),
            kl=seeds(row, "kl_tail", ".2f"),
        )
        for row, cells in ROWS.items()
    ),
    anchor("{updates:,} updates of AdamW at a constant", at="runs/0"),
    of(PAGE, "nash.json")("The start's exploitability is {targets/0/start_exploitability:.3f}"),
    of("README.md", "anchor.json")(
        "online DPO ends at an exploitability of {with_one:.2f} with one and {without:.2f} without",
        with_one=mean_of("dpo-lag-16-anchor"),
        without=mean_of("dpo-lag-16"),
    ),
]
