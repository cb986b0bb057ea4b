"""W&B: what a run gives it, read back from what its offline mode writes. Runs where `offbeat[wandb]` is installed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.settings.output import WandbConfig
from launch.tracking.tracker import RunFacts
from launch.tracking.wandb_tracker import WandbTracker
from tests.house import ROOT

wandb = pytest.importorskip("wandb")

OFFLINE = WandbConfig(project="offbeat-tests", mode="offline")


@pytest.fixture(autouse=True)
def only_this_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))


HEADER, BLOCK = 7, 32_768
"""Bytes at the start of W&B's file, and between two places where one of its pieces starts anew."""


def payloads(data: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log, pieces with checksum, length and kind (whole, first, middle, last)."""
    place, whole = HEADER, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def records(directory: Path, runs: int = 1) -> list[tuple[str, Any]]:
    """Kind and content of what `runs` offline runs hold; W&B's service writes on after a run has finished."""
    from wandb.proto.wandb_internal_pb2 import Record

    until, found = time.monotonic() + 20.0, []
    while time.monotonic() < until:
        data = [each for path in sorted(directory.rglob("run-*.wandb")) for each in payloads(path.read_bytes())]
        kinds = [(record.WhichOneof("record_type"), record) for record in map(Record.FromString, data)]
        found = [(kind, getattr(record, kind)) for kind, record in kinds]
        if [kind for kind, _ in found].count("exit") >= runs:
            break
        time.sleep(0.1)
    return found


def row_of(items: Any) -> dict[str, str]:
    return {item.key or ".".join(item.nested_key): item.value_json for item in items}


def track(run: RunFacts, steps: range, status: str = "completed") -> None:
    tracker = WandbTracker(OFFLINE, seconds=10.0)
    tracker.begin(run)
    for step in steps:
        tracker.log(step, {"loss/train": 1.0 / step, "reward/mean": float("nan")}, 0.0)
    tracker.text(steps[-1], "samples", "    <b>two\n    lines")
    tracker.end(status, {"status": status, "win_rate": {"value": 0.75, "n": 4}, "judge": "gold"})


def test_an_offline_run_holds_figures_configuration_sample_and_summary(tmp_path: Path) -> None:
    track(RunFacts("chat", "0123abcd", tmp_path, "train", {"replay": {"max_staleness": 2}}), range(1, 4))
    found = records(tmp_path / "tracking")
    [run] = [each for kind, each in found if kind == "run"]
    assert (run.run_id, run.display_name, run.project, run.job_type) == ("0123abcd", "chat", "offbeat-tests", "train")
    assert json.loads(row_of(run.config.update)["replay"]) == {"max_staleness": 2}
    rows = [row_of(each.item) for kind, each in found if kind == "history"]
    assert [(row["update"], float(row["loss/train"])) for row in rows if "loss/train" in row] == [
        (str(step), pytest.approx(1.0 / step)) for step in (1, 2, 3)
    ]
    assert any(name.startswith("samples") for row in rows for name in row)
    [page] = (tmp_path / "tracking").rglob("*.html")
    assert "&lt;b&gt;two" in page.read_text()
    summary: dict[str, str] = {}
    for kind, each in found:
        summary |= row_of(each.update) if kind == "summary" else {}
    assert (summary["summary/win_rate.value"], summary["status"]) == ("0.75", '"completed"')


def test_a_resumed_run_has_the_same_id(tmp_path: Path) -> None:
    run = RunFacts("chat", "0123abcd", tmp_path, "train")
    track(run, range(1, 4), "interrupted")
    track(run, range(3, 6))
    ids = [each.run_id for kind, each in records(tmp_path / "tracking", runs=2) if kind == "run"]
    assert set(ids) == {"0123abcd"}
    assert len(ids) >= 2


def test_a_process_ends_in_time_although_its_server_never_answers(tmp_path: Path) -> None:
    """W&B's own hook at exit waits for `wandb.init`, which waited 90 seconds."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        script = f"""
import os
from pathlib import Path
os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:{server.getsockname()[1]}"
os.environ["WANDB_API_KEY"] = "a" * 40
from launch.settings.output import WandbConfig
from launch.tracking.background import Background, close
from launch.tracking.tracker import RunFacts
from launch.tracking.wandb_tracker import WandbTracker
run = RunFacts("chat", "0123abcd", Path({str(tmp_path)!r}), "train")
behind = Background("W&B", WandbTracker(WandbConfig(project="p"), 3.0), run, print)
behind.call("log", 1, {{"loss": 1.0}}, 0.0)
close([behind], 6.0)
"""
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=80)
    assert done.returncode == 0, done.stderr
    assert "W&B has not taken 2 of the run's figures within" in done.stdout
    assert time.monotonic() - started < 40.0


def test_without_a_key_nobody_is_asked_for_one_in_the_terminal(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
os.environ["NETRC"] = {str(tmp_path / "netrc")!r}
from launch.settings.output import WandbConfig
from launch.tracking.tracker import RunFacts
from launch.tracking.wandb_tracker import WandbTracker
try:
    WandbTracker(WandbConfig(project="p"), 3.0).begin(RunFacts("a", "0123", Path({str(tmp_path)!r}), "train"))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.startswith("no key; run `wandb login`"), done.stderr
    assert done.stderr == ""
