"""MLflow: what a run gives it, read back from a file of SQLite. Runs where `offbeat[mlflow]` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.settings.output import MlflowConfig
from launch.tracking.mlflow_tracker import RUN_FILE, MlflowTracker
from launch.tracking.tracker import RunFacts

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowConfig:
    monkeypatch.chdir(tmp_path)  # where MLflow would leave what it has no other place for
    return MlflowConfig(uri=f"sqlite:///{tmp_path}/store/mlflow.db", experiment="tests")


@pytest.fixture(autouse=True)
def store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()


def facts(tmp_path: Path, **config: Any) -> RunFacts:
    return RunFacts("chat", "0123abcd", tmp_path / "run", "train", config)


def track(config: MlflowConfig, run: RunFacts, steps: range, status: str = "completed") -> str:
    tracker = MlflowTracker(config)
    tracker.begin(run)
    for step in steps:
        tracker.log(step, {"loss/train": 1.0 / step, "judge: odd (name)": float("nan")}, 1_700_000_000.0 + step)
    tracker.text(steps[-1], "samples", "two\nlines")
    tracker.end(status, {"updates": steps[-1], "win_rate": {"value": 0.75, "n": 4}, "judge": "gold", "kl": None})
    return (run.own / RUN_FILE).read_text().strip()


def client_of(config: MlflowConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.uri)


def test_a_run_has_figures_settings_sample_and_summary(tmp_path: Path, config: MlflowConfig) -> None:
    many = {f"setting_{number}": number for number in range(150)}
    known = track(config, facts(tmp_path, replay={"max_staleness": 2}, long="x" * 9_000, **many), range(1, 4))
    client = client_of(config)
    run = client.get_run(known)
    assert (run.info.run_name, run.info.status, run.data.tags["offbeat.run_id"]) == ("chat", "FINISHED", "0123abcd")
    assert (run.data.params["replay.max_staleness"], run.data.params["setting_149"]) == ("2", "149")
    history = [(each.step, each.value) for each in client.get_metric_history(known, "loss/train")]
    assert history == [(step, pytest.approx(1.0 / step)) for step in (1, 2, 3)]
    assert "judge_ odd _name_" in run.data.metrics
    assert run.data.metrics["summary/win_rate.value"] == 0.75
    kept = {path.name: path.read_text() for path in (tmp_path / "store" / "mlartifacts").rglob("*") if path.is_file()}
    assert kept["update-0000003.md"] == "two\nlines"
    assert '"judge": "gold"' in kept["summary.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "store"}, "nothing is left where the run started"


def test_a_resumed_run_goes_on_in_the_same_one_with_the_first_settings(tmp_path: Path, config: MlflowConfig) -> None:
    first = track(config, facts(tmp_path, updates=3), range(1, 4), "interrupted")
    assert client_of(config).get_run(first).info.status == "KILLED"
    second = track(config, facts(tmp_path, updates=6, added=1), range(4, 7))
    run = client_of(config).get_run(second)
    assert (first, run.info.status) == (second, "FINISHED")
    assert (run.data.params["updates"], run.data.params["added"]) == ("3", "1")
    steps = [each.step for each in client_of(config).get_metric_history(first, "loss/train")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_store_that_does_not_know_the_run_gets_a_new_one(tmp_path: Path, config: MlflowConfig) -> None:
    first = track(config, facts(tmp_path), range(1, 3))
    elsewhere = config.model_copy(update={"uri": f"sqlite:///{tmp_path}/store/other.db"})
    assert track(elsewhere, facts(tmp_path), range(3, 5)) != first


def test_a_copied_file_does_not_put_one_run_s_figures_into_another(tmp_path: Path, config: MlflowConfig) -> None:
    first = track(config, facts(tmp_path), range(1, 3))
    other = RunFacts("other", "ffff", tmp_path / "run", "train")
    assert track(config, other, range(1, 3)) != first
