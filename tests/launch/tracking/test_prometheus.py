"""Prometheus: what Ray's agent answers during a run, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from pathlib import Path

import pytest

from actors.records import GeneratorStatus
from launch.cluster import wiring
from launch.output.board import RunSnapshot
from launch.output.metrics import TAGS, tag
from launch.run.progress import LearnerClock
from launch.settings.output import TrackingConfig
from launch.settings.run import ClusterConfig
from launch.tracking.prometheus import COLLECTS, RAY_PREFIX, TARGETS, Prometheus, exported, figures_of, wanted
from launch.tracking.tracked import require_trackers
from launch.tracking.tracker import RunFacts
from learner.records import UpdateStats
from tests.house import ROOT

SNAPSHOT = RunSnapshot(
    elapsed_seconds=10.0,
    version=3,
    updates=3,
    total_updates=10,
    tokens_per_second=1500.0,
    groups_per_second=4.0,
    generators=tuple(GeneratorStatus(name, 3, 5, 2, 900, 6.0, 1.0, 3.0, "p") for name in "ab"),
    ages=(0, 2, 1),
    max_staleness=2,
    buffered=3,
    in_flight=12,
    learner_state="training",
    learner_seconds=LearnerClock().seconds | {"training": 7.0},
    dropped={"stale": 2, "failed": 1},
    ended_generators=1,
)


def test_a_snapshot_s_figures_are_those_of_the_board() -> None:
    figures = figures_of(SNAPSHOT)
    assert figures["run/version"] == 3
    assert figures["buffer/oldest"] == 2
    assert figures["run/dropped_groups"] == 3
    assert (figures["generators/alive"], figures["generators/ended"], figures["generators/running"]) == (2, 1, 10)
    assert (figures["generators/idle_seconds"], figures["learner/training_seconds"]) == (6.0, 7.0)


def test_the_dashboard_asks_only_for_figures_that_runs_export_and_for_all_of_a_snapshot() -> None:
    text = (ROOT / "launch" / "tracking" / "grafana.json").read_text()
    json.loads(text)
    asked = set(re.findall(rf"{RAY_PREFIX}\w+", text))
    of_updates = {*TAGS, *UpdateStats.__dataclass_fields__, "held_out_loss"}
    snapshot = {RAY_PREFIX + exported(name) for name in figures_of(SNAPSHOT)}
    assert asked - snapshot - {RAY_PREFIX + exported(tag(name)) for name in of_updates} == set()
    assert snapshot - asked == set()


def test_a_figure_s_name_is_one_that_prometheus_takes() -> None:
    assert exported("loss/train") == "offbeat_loss_train"
    assert exported("judge: odd") == "offbeat_judge__odd"


def test_nothing_is_exported_without_ray_unless_it_is_asked_for() -> None:
    assert (wanted(None), wanted(True), wanted(False)) == (False, True, False)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_s_agent_answers_with_a_run_s_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Ray that the run starts: `tracking.prometheus: true` has its metrics on, which are off by default."""
    import ray

    monkeypatch.setenv(COLLECTS, "0")
    require_trackers(TrackingConfig(prometheus=True))
    assert os.environ[COLLECTS] == "1"
    with wiring.ray_session(ClusterConfig(address="local", num_cpus=1, object_store_mib=80)):
        assert wanted(None)
        tracker = Prometheus()
        tracker.begin(RunFacts("chat", "0a1b", tmp_path, "train"))
        [entry] = json.loads((tmp_path / "tracking" / TARGETS).read_text())
        [target] = entry["targets"]
        started = time.perf_counter()
        for _ in range(100):
            tracker.log(3, figures_of(SNAPSHOT) | {"loss/train": 0.25}, 0.0)
        assert (time.perf_counter() - started) / 100 < 0.01, "of a second in which the board is drawn too"
        answer = scraped(f"http://{target}/metrics", "ray_offbeat_loss_train", seconds=30.0)
        assert ray.is_initialized()
    lines = {line.partition("{")[0]: line for line in answer.splitlines() if line.startswith("ray_offbeat_")}
    assert set(lines) == {RAY_PREFIX + exported(name) for name in [*figures_of(SNAPSHOT), "loss/train"]}
    assert lines["ray_offbeat_loss_train"].endswith(" 0.25")
    assert 'run="chat"' in lines["ray_offbeat_loss_train"]
    assert 'run_id="0a1b"' in lines["ray_offbeat_loss_train"]


def scraped(address: str, name: str, *, seconds: float) -> str:
    """What an agent answers once it knows `name`; workers report to it every ten seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with urllib.request.urlopen(address, timeout=5.0) as response:
            answer = response.read().decode()
        if name in answer:
            return answer
        time.sleep(0.5)
    raise AssertionError(f"{address} does not know {name}")
