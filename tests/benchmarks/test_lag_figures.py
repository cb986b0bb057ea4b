"""The figures of stale opponents: which runs a point stands for, and that the docs show what the raw results hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.lag import LAGS
from benchmarks.lag_figures import CURES, Measured, draw, fixed_points, measured, runs
from tests.house import ROOT

POINTS = {("nash_pg", False): 0.07, ("nash_pg", True): 0.09, ("dpo", False): 0.05}


def run(row: str, tail: float, **more: Any) -> dict[str, Any]:
    return {"row": row, "exploitability_tail": tail, **more}


def test_a_point_is_how_far_the_runs_of_a_row_end_above_the_fixed_point_of_their_own_loss() -> None:
    rows = [run("dpo-lag-8", 0.15), run("lag-8", 0.15), run("dpo-lag-8", 0.25), run("lag-8-uncorrected", 0.15)]
    found = {(each.loss, each.lag, each.cure): each.gaps for each in measured(rows, POINTS)}
    assert found == {
        ("dpo", 8, "none"): pytest.approx((0.10, 0.20)),
        ("nash_pg", 8, "weights"): pytest.approx((0.06,)),
        ("nash_pg", 8, "uncorrected"): pytest.approx((0.08,)),
    }


def test_runs_with_another_anchor_than_their_row_s_are_no_point_of_it() -> None:
    usual = run("lag-64-anchor", 0.08, weight=0.32, horizon=128)
    rows = [usual, run("lag-64-anchor", 0.5, weight=0.32, horizon=64), run("lag-64-cap-10", 0.5)]
    assert measured(rows, POINTS) == [Measured("nash_pg", 64, "anchor", (pytest.approx(0.01),))]


def test_every_loss_was_measured_at_every_lag_with_every_cure() -> None:
    """At a lag of 0 all opponents are fresh; online DPO with fresh ones was not run at 256."""
    found = {(each.loss, each.lag, each.cure) for each in measured(runs(), fixed_points())}
    missing = {(loss, lag, cure) for loss, cures in CURES.items() for lag in LAGS for cure in cures.values()} - found
    unneeded = {("nash_pg", 0, "weights, fresh opponents"), ("dpo", 0, "fresh opponents")}
    assert missing == unneeded | {("dpo", 256, "fresh opponents")}


def test_the_documentation_shows_what_the_raw_results_hold(tmp_path: Path) -> None:
    for drawn in draw(tmp_path):
        assert drawn.read_bytes() == (ROOT / "docs" / "figures" / drawn.name).read_bytes()
