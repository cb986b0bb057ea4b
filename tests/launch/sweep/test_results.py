"""What a run shows, from what it has left. Expected numbers are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.sweep.config import load_sweep
from launch.sweep.plan import PlannedRun
from launch.sweep.results import curve_of, figures_of, read_outcome, trained_share
from tests.launch.sweep.sweeps import runs_of, sweep_file

SUMMARY: dict[str, Any] = {
    "status": "completed",
    "wall_seconds": 60.0,
    "staleness": {"mean": 1.5, "max": 2, "histogram": {"1": 5, "2": 5}},
    "groups_per_second": 2.0,
    "tokens_per_second": 100.0,
    "dropped_tokens": 125,
    "time_budget": {"learner": {"training": 30.0, "waiting": 10.0}, "judge": {"judging": 3.0}},
    "win_rate": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 64},
    "reward": {"value": 0.9, "start": 0.5, "rise": 0.4},
    "kl": 3.0,
}


def test_figures_are_the_summary_s_estimates_where_the_game_is_not_known() -> None:
    figures = figures_of(SUMMARY)
    assert (figures["reward_rise"], figures["win_rate"], figures["kl"]) == (0.4, 0.6, 3.0)
    assert (figures["wall_seconds"], figures["staleness"]) == (60.0, 1.5)
    assert figures["seconds.judge.judging"] == 3.0
    assert (figures["share.learner.training"], figures["share.learner.waiting"]) == (0.75, 0.25)
    assert "exploitability" not in figures


def test_exact_figures_stand_in_for_estimates_and_the_tail_for_the_last_evaluation() -> None:
    exact = {"exploitability": 0.2, "exploitability_tail": 0.1, "exact_kl": 2.0, "preference": 0.7}
    figures = figures_of(SUMMARY | exact)
    assert (figures["exploitability"], figures["kl"], figures["win_rate"]) == (0.1, 2.0, 0.7)
    assert figures_of(SUMMARY | exact | {"exploitability_tail": None})["exploitability"] == 0.2


def test_discarded_tokens_are_charged() -> None:
    """10 groups at 2 per second are 5 s, in which 500 tokens were trained on; 500 of 625."""
    assert trained_share(SUMMARY) == 0.8
    assert trained_share(SUMMARY | {"staleness": {"histogram": {}}}) is None
    assert trained_share({"status": "failed"}) is None


def test_a_curve_has_the_evaluations_and_charges_their_tokens() -> None:
    """Of 60 trained tokens at the second point, 4/5 of what was sampled: 75."""
    lines = [
        {"step": 1, "tokens": 10},
        {"step": 2, "tokens": 30, "reward": 0.75, "win_rate": 0.5},
        {"step": 3, "tokens": 20, "reward": 1.0, "exploitability": None},
    ]
    first, second = curve_of(lines, SUMMARY, {"trained_share": 0.8})
    assert (first.update, first.tokens, first.values) == (2, 50.0, {"reward_rise": 0.25, "win_rate": 0.5})
    assert (second.update, second.tokens, second.values) == (3, 75.0, {"reward_rise": 0.5})
    assert curve_of(lines, SUMMARY, {})[1].tokens == 60.0, "nothing is known to be discarded"


@pytest.fixture
def run(tmp_path: Path) -> PlannedRun:
    run = runs_of(load_sweep(sweep_file(tmp_path)))[0]
    run.directory.mkdir(parents=True)
    return run


def test_a_completed_run_is_read_with_its_curve(run: PlannedRun, tmp_path: Path) -> None:
    (run.directory / "summary.json").write_text(json.dumps(SUMMARY))
    (run.directory / "metrics.jsonl").write_text('{"step": 2, "tokens": 8, "win_rate": 0.5}\n{"step": 3, "tok')
    outcome = read_outcome(run, tmp_path / "sweep")
    assert (outcome.row, outcome.seed, outcome.status, outcome.error) == ("staleness=0", 0, "completed", None)
    assert outcome.directory == "runs/staleness=0/seed-0"
    assert [(point.update, point.tokens) for point in outcome.curve] == [(2, 10.0)]
    assert outcome.damaged == 1
    assert not outcome.resumed
    run.resumed_mark.touch()
    assert read_outcome(run, tmp_path / "sweep").resumed


def test_a_run_that_is_not_completed_has_no_figures(run: PlannedRun, tmp_path: Path) -> None:
    assert read_outcome(run, tmp_path / "sweep").status == "new"
    (run.directory / "summary.json").write_text(json.dumps(SUMMARY | {"status": "failed", "error": "it diverged"}))
    outcome = read_outcome(run, tmp_path / "sweep")
    assert (outcome.status, outcome.error, outcome.figures) == ("failed", "it diverged", {})
    outcome = read_outcome(run, tmp_path / "sweep", "no GPU is free")
    assert (outcome.status, outcome.error) == ("failed", "no GPU is free")
