"""The runs of a sweep: which there are, what each changes, and mistakes told by row before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.sweep.config import load_sweep
from launch.sweep.plan import plan_rows, plan_runs
from tests.launch.sweep.sweeps import sweep_file

AXES = {
    "loss": {"dpo": {"learner.loss.kind": "dpo", "learner.loss.beta": 0.2}, "nash": {"learner.loss.tau": 0.1}},
    "staleness": {"replay.max_staleness": [0, 4]},
}


def test_rows_are_all_combinations_the_last_axis_varying_fastest(tmp_path: Path) -> None:
    rows = plan_rows(load_sweep(sweep_file(tmp_path, axes=AXES)))
    assert [row.name for row in rows] == [
        "loss=dpo,staleness=0",
        "loss=dpo,staleness=4",
        "loss=nash,staleness=0",
        "loss=nash,staleness=4",
    ]
    losses = [row.config.learner.loss for row in rows]
    assert [loss.kind for loss in losses] == ["dpo", "dpo", "nash_pg", "nash_pg"]
    assert (losses[0].beta, losses[3].tau) == (0.2, 0.1)
    assert [row.config.replay.max_staleness for row in rows] == [0, 4, 0, 4]
    assert {row.config.updates for row in rows} == {20}


def test_every_row_has_a_run_before_one_has_two(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, seeds=[7, 3]))
    runs = plan_runs(sweep, plan_rows(sweep), tmp_path)
    assert [run.name for run in runs] == [f"staleness={bound}/seed-{seed}" for seed in (7, 3) for bound in (0, 4)]
    assert runs[1].directory == tmp_path / "runs" / "staleness=4" / "seed-7"
    assert runs[1].log == tmp_path / "runs" / "staleness=4" / "seed-7.log"


def test_a_run_differs_from_its_base_in_the_row_s_settings_and_three_seeds(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, seeds=[7]))
    run = plan_runs(sweep, plan_rows(sweep), tmp_path)[1]
    given = load_config(run.base, run.overrides)
    by_hand = ["updates=20", "replay.max_staleness=4", "seed=7", "learner.seed=7", "prompts.seed=7"]
    assert given == load_config("embedded-nash-md", by_hand)
    assert given.world.seed == load_config("embedded-nash-md").world.seed


def test_a_mistake_names_its_row_and_is_told_once(tmp_path: Path) -> None:
    axes = AXES | {"staleness": {"replay.max_staleness": [0, -1]}}
    with pytest.raises(UsageError) as caught:
        plan_rows(load_sweep(sweep_file(tmp_path, axes=axes)))
    assert str(caught.value).splitlines()[:2] == [
        "2 rows, the first loss=dpo,staleness=-1: configuration embedded-nash-md: 1 mistake",
        "  replay.max_staleness: given -1; allowed: integer >= 0 and <= 1000",
    ]


def test_a_setting_of_another_kind_names_the_one_row_that_has_it(tmp_path: Path) -> None:
    axes = {"loss": {"dpo": {"learner.loss.kind": "dpo", "learner.loss.tau": 0.1}, "nash": {}}}
    with pytest.raises(UsageError) as caught:
        plan_rows(load_sweep(sweep_file(tmp_path, axes=axes)))
    first, second, *_ = str(caught.value).splitlines()
    assert first == "row loss=dpo: configuration embedded-nash-md: 1 mistake"
    assert second.startswith("  learner.loss.tau: not a setting of learner.loss of kind dpo")


def test_a_base_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file, and no such preset .*nearest preset: embedded-nash-md"):
        plan_rows(load_sweep(sweep_file(tmp_path, base="embedded-nash-mdd")))


def test_a_label_s_value_stands_in_place_of_that_of_all_runs(tmp_path: Path) -> None:
    """The command line tells of a setting that is given twice."""
    axes = {"length": {"short": {"updates": 5}, "long": {}}}
    rows = plan_rows(load_sweep(sweep_file(tmp_path, axes=axes)))
    assert [row.overrides for row in rows] == [("updates=5",), ("updates=20",)]
