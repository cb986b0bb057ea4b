"""Whole runs with trackers behind their metrics: what trackers get, and that a run does not notice them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import UsageError
from launch import train
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.tracking import tracked
from launch.tracking.tracked import installed, require_trackers
from tests.fakes.generators import FakeGenerator
from tests.fakes.trackers import FakeTracker, HangingTracker
from tests.launch.sessions import Learner, config_of, in_place_of_ray, summary_of

WORLD = ["model.path=world", "prompts.source=world"]


def given(patch: pytest.MonkeyPatch, *trackers: FakeTracker) -> None:
    patch.setattr(tracked, "trackers_of", lambda config: {f"tracker {n}": each for n, each in enumerate(trackers)})


def logged(tracker: FakeTracker) -> list[tuple[int, dict[str, float]]]:
    return [call[1:] for call in tracker.calls if call[0] == "log"]


def test_a_tracker_gets_the_numbers_of_tensorboard_the_samples_and_the_summary(tmp_path, monkeypatch) -> None:
    in_place_of_ray(monkeypatch)
    given(monkeypatch, tracker := FakeTracker())
    assert train.run_training(config_of(tmp_path, samples={"every_updates": 3, "log": False})) == 0
    assert [step for step, _ in logged(tracker)] == [1, 2, 3, 4, 5, 6]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    values = logged(tracker)[-1][1]
    assert values["loss/train"] == last["loss"]
    assert values["reward/mean"] == last["score_mean"]
    assert values["staleness/max"] == last["staleness_max"]
    assert len(values) == len(last) - 2, "all but step and time"
    assert [call[1:3] for call in tracker.calls if call[0] == "text"] == [(step, "samples") for step in (1, 3, 6)]
    assert tracker.calls[-1][:2] == ("end", "completed")
    assert tracker.calls[-1][2] == summary_of(tmp_path)
    run = tracker.run
    assert (run.name, run.verb, run.run_id) == ("run", "train", (tmp_path / "run" / "run_id").read_text().strip())
    assert run.config["updates"] == 6


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path, monkeypatch) -> None:
    actors = in_place_of_ray(monkeypatch)
    actors.learner.interrupt_at = 3
    given(monkeypatch, first := FakeTracker())
    assert train.run_training(config_of(tmp_path)) == 130
    assert first.calls[-1][:2] == ("end", "interrupted")
    actors.learner, actors.generators = Learner(), [FakeGenerator("a")]
    given(monkeypatch, second := FakeTracker())
    assert train.run_training(config_of(tmp_path), resume=True) == 0
    assert first.run.run_id == second.run.run_id
    assert [step for step, _ in [*logged(first), *logged(second)]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("hangs", ["begin", "log"])
def test_a_run_ends_as_ever_beside_trackers_that_hang_and_raise(tmp_path, monkeypatch, capsys, hangs) -> None:
    in_place_of_ray(monkeypatch)
    raising, hanging, healthy = FakeTracker(fails=10**6), HangingTracker(hangs), FakeTracker()
    given(monkeypatch, raising, hanging, healthy)
    started = time.monotonic()
    assert train.run_training(config_of(tmp_path, tracking={"flush_seconds": 0.5})) == 0
    assert time.monotonic() - started < 20.0
    assert summary_of(tmp_path)["status"] == "completed"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6
    assert healthy.calls[-1][:2] == ("end", "completed")
    said = capsys.readouterr().err
    assert said.count("tracker 0 does not take the run's figures: ConnectionError: no route to host") == 1
    assert "tracker 1 has not taken" in said
    hanging.release.set()


def test_a_run_that_fails_is_told_as_failed(tmp_path, monkeypatch) -> None:
    actors = in_place_of_ray(monkeypatch)
    actors.learner.break_at = 2
    given(monkeypatch, tracker := FakeTracker())
    with pytest.raises(Exception, match="out of memory"):
        train.run_training(config_of(tmp_path))
    assert tracker.calls[-1][:2] == ("end", "failed")
    assert "out of memory" in tracker.calls[-1][2]["error"]


def test_a_run_that_fails_before_its_first_update_is_told_as_failed(tmp_path, monkeypatch) -> None:
    in_place_of_ray(monkeypatch)
    given(monkeypatch, tracker := FakeTracker())
    monkeypatch.setattr(train.wiring, "start_learner", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run_training(config_of(tmp_path))
    assert tracker.calls == [("end", "failed", {})]


# What is refused, before anything starts


@pytest.mark.parametrize(
    ("setting", "package"),
    [("tracking.wandb.project", "wandb"), ("tracking.mlflow.uri", "mlflow")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, setting, package) -> None:
    monkeypatch.setattr(tracked, "find_spec", lambda name: None)
    config = load_config(None, [*WORLD, f"{setting}=there", f"output={tmp_path / 'run'}"])
    with pytest.raises(
        UsageError, match=rf"{setting} is 'there', and the package {package} is not installed; run `pip"
    ):
        train.run_training(config)
    assert not (tmp_path / "run").exists()


def test_the_folder_that_offline_runs_leave_is_no_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "left_by_runs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("left_by_runs")
    assert installed("json")


def test_without_trackers_nothing_is_needed() -> None:
    require_trackers(load_config(None, WORLD).tracking)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("wandb.project=x", "tracking.wandb.project"),
        ("wandb.entity=x", "tracking.wandb.entity"),
        ("mlflow.uri=x", "tracking.mlflow.uri"),
        ("mlflow.experiment=x", "tracking.mlflow.experiment"),
        ("prometheus=true", "tracking.prometheus"),
    ],
)
def test_a_setting_without_its_section_is_answered_with_the_right_one(override, right) -> None:
    with pytest.raises(UsageError, match=rf"write {right}="):
        load_config(None, [*WORLD, override])


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UsageError, match="export MLFLOW_TRACKING_USERNAME") as raised:
        load_config(None, [*WORLD, "tracking.mlflow.uri=http://me:swordfish@host:5000"])
    assert "swordfish" not in str(raised.value)


def test_what_an_older_run_recorded_has_no_trackers(tmp_path: Path) -> None:
    recorded: dict[str, Any] = RunConfig.model_validate(
        {"model": {"path": "world"}, "prompts": {"source": "world"}}
    ).model_dump(mode="json")
    del recorded["tracking"], recorded["log"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recorded))
    (tmp_path / "summary.json").write_text("{}")
    config = load_config(tmp_path / "config.yaml")
    assert (config.tracking.wandb.project, config.tracking.mlflow.uri, config.log.format) == (None, None, "text")


# Lines of JSON


def test_a_run_s_log_is_a_json_object_per_line_if_asked_for(tmp_path, monkeypatch, capsys) -> None:
    in_place_of_ray(monkeypatch)
    given(monkeypatch, FakeTracker(fails=1))
    assert train.run_training(config_of(tmp_path, log={"format": "json"})) == 0
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    run_id = (tmp_path / "run" / "run_id").read_text().strip()
    assert {(row["run"], row["run_id"], row["role"]) for row in rows} == {("run", run_id, "driver")}
    assert {"time", "level", "version", "message"} < set(rows[0])
    [warning] = [row for row in rows if row["level"] == "warning"]
    assert warning["message"].startswith("tracker 0 does not take the run's figures")
    assert any(row["message"].startswith("completed: 6 updates") for row in rows)
