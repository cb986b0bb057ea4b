"""Draws what `benchmarks.lag` measured: each loss at each lag with each cure, and the way there at a lag of 64.

    python -m benchmarks.lag_figures [--output docs/figures]

Reads the raw results in `benchmarks/results/`. A loss is compared with its own fixed point: opponents without weights
are the policy itself, with weights they are Nash-MD's mixture. Needs matplotlib, the extra `figures`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.lag import LAGS, ROWS
from launch.sweep.figures import COLOURS, FORMATS, MARKERS, STYLE

RESULTS = Path(__file__).resolve().parent / "results"
FILES = ("anchor.json", "anchor_nash.json", "anchor_map.json", "lag_grid.json")
SHORTEST = 1500
"""Updates of a run that has come to rest, or will not."""
CURES = {
    "nash_pg": {
        "-uncorrected": "uncorrected",
        "": "weights",
        "-fresh": "weights, fresh opponents",
        "-anchor": "anchor",
        "-weighted-anchor": "weights and anchor",
    },
    "dpo": {"": "none", "-fresh": "fresh opponents", "-anchor": "anchor"},
}
"""Meaning of the end of a row's name, by loss."""
TITLES = {"nash_pg": "Nash-MD", "dpo": "online DPO"}
SMOOTH, EVERY = 20, 10
"""Points of a curve that one of the figure is the mean of, and updates between two."""


@dataclass(frozen=True)
class Measured:
    """One row's runs with the anchor that rows have by default."""

    loss: str
    lag: int
    cure: str
    gaps: tuple[float, ...]  # exploitability less the loss's own fixed point's, by seed


def fixed_points() -> dict[tuple[str, bool], float]:
    """Return each loss's own exploitability at rest; with True if its opponents are weighted."""
    targets = json.loads((RESULTS / "nash.json").read_text())["targets"]["0"]
    dpo = json.loads((RESULTS / "dpo_point.json").read_text())["exploitability"]
    own, mixture = targets["nash"]["exploitability"], targets["nash_md"]["exploitability"]
    return {("nash_pg", False): own, ("nash_pg", True): mixture, ("dpo", False): dpo}


def runs(names: Iterable[str] = FILES) -> list[dict[str, Any]]:
    """Return the runs of files that have come to rest."""
    found = [run for name in names for run in json.loads((RESULTS / name).read_text())["runs"]]
    return [run for run in found if run["updates"] >= SHORTEST]


def measured(of: Iterable[Mapping[str, Any]], points: Mapping[tuple[str, bool], float]) -> list[Measured]:
    """Gather the runs of each row, those with another anchor than the row's left out."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for run in of:
        row, ending = ROWS[run["row"]], _ending(run)
        usual = row.anchor in (None, (run.get("weight"), run.get("horizon"))) or "weight" not in run
        if ending not in CURES[row.kind] or not usual:
            continue
        weighted = row.kind == "nash_pg" and ending in ("", "-fresh", "-weighted-anchor")
        gap = run["exploitability_tail"] - points[row.kind, weighted]
        found.setdefault((row.kind, row.lag, CURES[row.kind][ending]), []).append(gap)
    return [Measured(*key, tuple(gaps)) for key, gaps in sorted(found.items())]


def by_lag(rows: Iterable[Measured]) -> Figure:
    """Draw how far above its own fixed point each loss ends, against the lag."""
    listed = list(rows)
    drawing = Figure(figsize=(8.0, 3.6), layout="constrained")
    for panel, (loss, cures) in zip(drawing.subplots(1, 2, sharey=True), CURES.items(), strict=True):
        for number, cure in enumerate(cures.values()):
            own = sorted((row for row in listed if (row.loss, row.cure) == (loss, cure)), key=lambda row: row.lag)
            if not own:
                continue
            places = [LAGS.index(row.lag) for row in own]
            style = {"color": COLOURS[number], "marker": MARKERS[number]}
            panel.plot(places, [fmean(row.gaps) for row in own], label=cure, markersize=5, **style)
            for place, row in zip(places, own, strict=True):
                panel.plot([place] * len(row.gaps), row.gaps, "o", markersize=3, alpha=0.4, color=COLOURS[number])
        panel.set_xticks(range(len(LAGS)), LAGS)
        panel.set(xlabel="age of opponents (updates)", title=TITLES[loss], ylim=(0.0, 0.4))
        panel.legend(loc="upper left")
    drawing.axes[0].set(ylabel="exploitability above the loss's fixed point")
    return drawing


def on_the_way(of: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw exploitability against updates at a lag of 64, one line for each anchor; seed 0."""
    listed = [run for run in of if ROWS[run["row"]].lag == 64 and run["seed"] == 0]
    drawing = Figure(figsize=(8.0, 3.6), layout="constrained")
    for panel, loss in zip(drawing.subplots(1, 2, sharey=True), CURES, strict=True):
        own = [run for run in listed if ROWS[run["row"]].kind == loss]
        for number, run in enumerate(sorted(own, key=lambda run: (run["row"], run.get("weight", 0.0)))):
            values = [point[1] for point in run["curve"]]
            means = [fmean(values[end - SMOOTH : end]) for end in range(SMOOTH, len(values) + 1)]
            updates = [EVERY * end for end in range(SMOOTH, len(values) + 1)]
            panel.plot(updates, means, color=COLOURS[number % len(COLOURS)], label=_label(run), linewidth=1.2)
        panel.set(xlabel="updates", title=f"{TITLES[loss]} on opponents 64 updates old")
        panel.legend(fontsize=7)
    drawing.axes[0].set(ylabel=f"exploitability, mean of {SMOOTH * EVERY} updates")
    return drawing


def _ending(run: Mapping[str, Any]) -> str:
    """Return what a row's name has behind its loss and lag."""
    return re.sub(r"^(dpo-)?lag-\d+", "", run["row"])


def _label(run: Mapping[str, Any]) -> str:
    anchor = f" {run['weight']:g} over {run['horizon']}" if "weight" in run else ""
    return CURES[ROWS[run["row"]].kind][_ending(run)] + anchor


def draw(folder: Path) -> list[Path]:
    """Write both figures; return their files."""
    rested, files = runs(), []
    with matplotlib.rc_context(STYLE):
        for name, figure in (("lags", by_lag(measured(rested, fixed_points()))), ("lag64", on_the_way(rested))):
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], format="svg", **FORMATS["svg"])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="folder")
    print(*draw(parser.parse_args().output), sep="\n")


if __name__ == "__main__":
    main()
