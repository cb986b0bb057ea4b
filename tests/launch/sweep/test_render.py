"""The results as text: one table as a whole, and the files for scripts."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from launch.sweep import render
from launch.sweep.results import QUALITIES
from launch.sweep.table import Results, make_rows, with_areas
from tests.launch.sweep.sweeps import curve, outcome


@pytest.fixture
def results() -> Results:
    """Two losses, two seeds each; one run failed, one was resumed."""
    outcomes = [
        outcome("dpo", 0, {"exploitability": 0.1, "kl": 1.0, "win_rate": 0.6, "wall_seconds": 60.0}),
        outcome("dpo", 1, {"exploitability": 0.3, "kl": 1.0, "win_rate": 0.8, "wall_seconds": 3.0}, resumed=True),
        outcome("nash|pg", 0, {"exploitability": 0.05, "kl": 2.0, "win_rate": 0.7, "wall_seconds": 120.0}),
        outcome("nash|pg", 1, {}, status="failed", error="the disk is full"),
    ]
    rows = make_rows(outcomes, {"loss": "dpo"})
    return Results("losses", {"loss": ["dpo", "nash|pg"]}, "loss", QUALITIES[0], rows, outcomes)


def test_the_table_in_markdown_as_a_whole(results: Results) -> None:
    """0.1 and 0.3: half-width 12.706 x 0.1414 / sqrt 2 = 1.271. Equal values have no interval."""
    assert render.markdown(results, render.notes(results)) == (
        "# losses\n"
        "\n"
        "| loss | runs | exploitability | difference | KL (nats) | win rate | wall time |\n"
        "|---|---:|---:|---:|---:|---:|---:|\n"
        "| dpo | 2 | 0.200 ± 1.271 | - | 1.00 | 0.700 ± 1.271 | 0:01:00 |\n"
        "| nash\\|pg | 1 of 2 | 0.050 | -0.050 | 2.00 | 0.700 | 0:02:00 |\n"
        "\n"
        "* Means over seeds ± half the 95% interval (Student's t); one seed has none.\n"
        "* Exploitability: lower is better.\n"
        "* Difference: to row loss=dpo, paired by seed.\n"
        "* Times and shares leave out runs that were resumed (1), whose first part is not timed.\n"
        "* loss=nash|pg/seed-1: failed: the disk is full\n"
    )


def test_the_terminal_shows_the_same_cells(results: Results) -> None:
    file = io.StringIO()
    Console(file=file, width=160).print(render.terminal_table(results))
    head, first, second = file.getvalue().splitlines()
    assert " ".join(head.split()) == "loss runs exploitability difference KL (nats) win rate wall time"
    assert first.split()[:5] == ["dpo", "2", "0.200", "±", "1.271"]
    assert second.split() == ["nash|pg", "1", "of", "2", "0.050", "-0.050", "2.00", "0.700", "0:02:00"]


def test_csv_has_every_figure_with_its_interval_and_difference(results: Results) -> None:
    first, second = csv.DictReader(io.StringIO(render.as_csv(results)))
    assert (first["loss"], first["runs"], first["compared_with"]) == ("dpo", "2", "")
    assert float(first["exploitability"]) == pytest.approx(0.2)
    assert float(first["exploitability_low"]) == pytest.approx(-1.0706, abs=1e-4)
    assert (first["kl_low"], first["kl_difference"]) == ("", "")
    assert (second["compared_with"], float(second["kl_difference"])) == ("loss=dpo", 1.0)


def test_json_has_every_run_and_every_row(results: Results) -> None:
    record = json.loads(render.as_json(results))
    assert (record["name"], record["x"], record["quality"]["lower_is_better"]) == ("losses", "loss", True)
    assert [run["status"] for run in record["outcomes"]] == ["completed"] * 3 + ["failed"]
    assert record["outcomes"][3]["error"] == "the disk is full"
    assert record["rows"][0]["figures"]["kl"] == {"mean": 1.0, "low": None, "high": None, "n": 2}
    assert record["rows"][1]["differences"]["kl"]["mean"] == 1.0


def test_a_sweep_without_completed_runs_has_an_empty_table() -> None:
    outcomes = [outcome("dpo", 0, {}, status="new")]
    rows = make_rows(outcomes, {"loss": "dpo"})
    results = Results("losses", {"loss": ["dpo"]}, "loss", None, rows, outcomes)
    assert "| dpo | 0 of 1 |" in render.markdown(results, render.notes(results))
    assert "loss=dpo/seed-0: new" in render.notes(results)


def test_columns_follow_the_figures_that_there_are() -> None:
    points = curve((1, 10, 0.5), (2, 20, 0.7), name="win_rate")
    figures = {"win_rate": 0.7, "share.learner.training": 0.5, "share.learner.waiting": 0.25, "trained_share": 0.875}
    outcomes = with_areas([outcome("dpo", 0, figures, curve=points)], QUALITIES[2])
    results = Results("one", {"loss": ["dpo"]}, "loss", QUALITIES[2], make_rows(outcomes, {}), outcomes)
    assert [column.title for column in render.columns(results)] == [
        *("win rate", "mean over updates", "mean over tokens"),
        *("learner trains", "learner waits", "tokens trained on"),
    ]
    assert "| dpo | 1 | 0.700 | 0.600 | 0.600 | 50% | 25% | 88% |" in render.markdown(results, [])
