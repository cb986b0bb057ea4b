"""A run whose learner ranks and generators are on two Ray nodes and whose weights travel by `gloo`."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster import Cluster
from launch.verify import run_verify
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("shared memory"),
]


def test_a_generator_killed_on_one_of_two_nodes_costs_nothing_and_a_rank_lost_with_its_node_ends_the_run(
    own: Any, short_dir: Path, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has room for one rank of two cores and one generator."""
    with Cluster(short_dir, os.environ, cpus=3) as cluster:
        node = cluster.add(cpus=3)
        for name, value in cluster.environ.items():
            monkeypatch.setenv(name, value)
        config = small_run(
            tmp_path,
            model_dir,
            updates=100_000,
            generators={"count": 2, "max_restarts": 2},
            learner={"ranks": 2, "cpus_per_rank": 2},
            publication={"transport": "gloo", "timeout_seconds": 60},
            checkpoints={"every_updates": 4},
            evaluation={"exact_every_updates": 0},
            cluster={"address": cluster.address},
        )
        _wait_for_cores(cluster, 6)
        process, run = start("train", str(config)), config.parent / "run"
        wait_for_updates(process, run, 3)
        assert cluster.titled("ray::LearnerWorker", name=node)
        assert len(cluster.titled("ray::LearnerWorker")) == 2
        (generator,) = cluster.titled("ray::RemoteGenerator", name=node)
        generator.kill()
        # Its successor, not itself: a killed process may be there for a moment.
        wait_until(lambda: any(each.pid != generator.pid for each in cluster.at_work(node)), process)
        made = len((run / "metrics.jsonl").read_text().splitlines())
        wait_for_updates(process, run, made + 16)
        cluster.lose(node)
        _, err = finish(process, 1)
    assert "died and is being restarted" in err
    assert "a learner process died" in err.splitlines()[-2]
    assert "continue from the last checkpoint with --resume" in err.splitlines()[-2]
    assert run_verify(run) == 0
    summary = summary_of(run)
    assert summary["status"] == "failed"
    assert summary["ledger"]["dropped"] == {}
    assert summary["log_ratio_max"] < 5e-5, "a token was not sampled by the weights that its version names"


def _wait_for_cores(cluster: Cluster, cores: int) -> None:
    """Ray has a node's cores a few seconds after it was added."""
    deadline = time.monotonic() + 200
    command = ["ray", "status", "--address", cluster.address]
    while time.monotonic() < deadline:
        told = subprocess.run(command, env=cluster.environ, capture_output=True, text=True).stdout
        if f"/{cores}.0 CPU" in told:
            return
        time.sleep(0.5)
    raise AssertionError(told)
