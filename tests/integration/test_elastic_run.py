"""A run on a Ray cluster that grows and shrinks while it goes on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster import Cluster
from tests.integration.runs import finish, small_run, start, summary_of, wait_for_updates, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("own"),
]


@pytest.fixture
def cluster(own: Any, short_dir: Path) -> Iterator[Cluster]:
    """Room for a learner and one generator, at first."""
    with Cluster(short_dir, os.environ, cpus=2) as cluster:
        yield cluster


@pytest.fixture
def config(tmp_path: Path, model_dir: Path, cluster: Cluster) -> Path:
    return small_run(
        tmp_path,
        model_dir,
        updates=100_000,
        generators={"count": 2, "min_count": 1},
        checkpoints={"every_updates": 0},
        evaluation={"exact_every_updates": 0},
        cluster={"address": cluster.address},
    )


@pytest.mark.parametrize("comes_back", [False, pytest.param(True, marks=pytest.mark.long)])
def test_generators_join_and_leave_with_their_nodes_and_no_prompt_is_lost(
    config: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    """One generator has room; a node brings the second and is lost with it, and another node may bring it back."""
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    process, run = start("train", str(config)), config.parent / "run"
    metrics = wait_for_updates(process, run, 3)
    assert len(cluster.at_work()) <= 1

    def updates() -> int:
        return metrics.read_bytes().count(b"\n")

    node = cluster.add(cpus=1)
    wait_until(lambda: bool(cluster.at_work(node)), process)
    cluster.lose(node)
    before = updates()
    wait_until(lambda: updates() >= before + 8, process)
    if comes_back:
        node = cluster.add(cpus=1)
        wait_until(lambda: bool(cluster.at_work(node)), process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, 130)
    assert re.search(r"generator-[01] died and is being restarted", err), err  # either may get the first room
    summary = summary_of(run)
    assert summary["status"] == "interrupted"
    assert summary["staleness"]["max"] <= 1
    ledger = summary["ledger"]
    assert ledger["trained"] == 8 * summary["updates"]
    assert ledger["dropped"] == {}
    assert set(ledger["returned"]) <= {"generator died"}
