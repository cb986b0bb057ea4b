"""A Ray cluster that grows and shrinks under a run: generators come and go with its nodes."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.runs import start, summary_of, wait_for_updates
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(400)]

UPDATES = 100_000
"""More than there is time for: the run is interrupted."""


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Nodes on this machine, each a Ray of its own; the first is the head."""

    def __init__(self, directory: Path, marked: Marked) -> None:
        token = directory / "token"
        token.write_text(secrets.token_hex(32))
        self.environ = marked.environ | {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": "token"}
        self.address = f"127.0.0.1:{_free_port()}"
        self._directory = directory
        self._nodes: list[subprocess.Popen[bytes]] = []

    def add(self, cpus: int) -> subprocess.Popen[bytes]:
        command = ["ray", "start", "--block", "--num-cpus", str(cpus), "--object-store-memory", "100000000"]
        command += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
        if self._nodes:
            command += ["--address", self.address]
        else:
            port = self.address.rpartition(":")[2]
            command += ["--head", "--port", port, "--ray-client-server-port", str(_free_port())]
            command += ["--temp-dir", str(self._directory / "ray")]
        log = (self._directory / f"node-{len(self._nodes)}.log").open("wb")
        node = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, start_new_session=True)
        self._nodes.append(node)
        return node

    def remove(self, node: subprocess.Popen[bytes]) -> None:
        """With -9, all of its processes."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.Error):
                process.kill()
        node.wait()

    def close(self) -> None:
        for node in reversed(self._nodes):
            if node.poll() is None:
                self.remove(node)


@pytest.fixture
def cluster(short_dir: Path, marked: Marked) -> Iterator[Cluster]:
    made = Cluster(short_dir, marked)
    yield made
    made.close()


def _until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_generator_joins_with_a_node_and_its_end_costs_the_run_nothing(
    tmp_path: Path, model_dir: Path, cluster: Cluster, marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores for the learner and the one generator that must be there; the other one's node comes later."""
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    cluster.add(cpus=2)
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    document = {
        "model": {"path": str(model_dir)},
        "updates": UPDATES,
        "output": str(run),
        "prompts": {"source": "world", "max_prompt_tokens": 4},
        "sampling": {"completions_per_prompt": 4, "max_new_tokens": 4},
        "generators": {"count": 2, "min_count": 1, "dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64},
        "replay": {"prompts_per_update": 8, "max_staleness": 2},
        "learner": {"dtype": "float32", "zero_stage": 1},
        "publication": {"transport": "object_store"},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 0, "exact_every_updates": 0},
        "cluster": {"address": cluster.address},
    }
    config.write_text(yaml.safe_dump(document))
    deadline = time.monotonic() + 60
    while not _answers(cluster.address):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    process = start("train", str(config))
    metrics = wait_for_updates(process, run, 5)
    assert len(_at_work(marked)) == 1
    node = cluster.add(cpus=1)
    _until(lambda: len(_at_work(marked)) == 2, process)
    cluster.remove(node)
    _until(lambda: len(_at_work(marked)) == 1, process)
    made = len(metrics.read_text().splitlines())
    _until(lambda: len(metrics.read_text().splitlines()) > made + 20, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, f"{out}\n{err}"
    summary = summary_of(run)
    assert summary["status"] == "interrupted"
    assert summary["ledger"]["dropped"] == {}
    assert summary["staleness"]["max"] <= 2


def _at_work(marked: Marked) -> list[int]:
    """Process ids of the generators that hand out what they sample."""
    found = []
    for process in marked.running():
        with suppress(psutil.Error):
            if "ray::RemoteGenerator.collect" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
