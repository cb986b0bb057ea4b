"""Runs as processes: skipped, resumed, failed and interrupted, with none left behind. The stand-in trains nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.sweep.config import load_sweep
from launch.sweep.plan import PlannedRun
from launch.sweep.runs import last_error, run_all, status_of, summary_of, train_command
from tests.house import ROOT
from tests.launch.sweep.sweeps import FakeTrain, runs_of, sweep_file
from tests.processes import Marked


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Of the rows `staleness=0` and `staleness=4`, with the seeds 0 and 1."""
    return runs_of(load_sweep(sweep_file(tmp_path)))


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    """Marks what is started, to find what is left."""
    marked = Marked()
    for name, value in marked.environ.items():
        monkeypatch.setenv(name, value)
    yield marked
    marked.end()


class Interrupts(threading.Thread):
    """Sends a signal to this process once a file is there."""

    def __init__(self, file: Path, number: int) -> None:
        super().__init__(daemon=True)
        self.file, self.number = file, number

    def run(self) -> None:
        deadline = time.monotonic() + 30.0
        while not self.file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), self.number)


def test_all_runs_end_and_a_second_call_starts_none(runs: list[PlannedRun], tmp_path: Path) -> None:
    train, said = FakeTrain(tmp_path), list[str]()
    assert [status_of(run) for run in runs] == ["new"] * 4
    ended = run_all(runs, [{}, {}], said.append, train)
    assert (ended.interrupted, ended.failed) == (False, {})
    assert [status_of(run) for run in runs] == ["completed"] * 4
    assert train.started == [(run.name, False) for run in runs]
    assert said[0] == "staleness=0/seed-0 begins: 1 of 4"
    assert sorted(said)[1::2] == [f"{run.name} completed" for run in sorted(runs, key=lambda run: run.name)]
    said.clear()
    run_all(runs, [{}, {}], said.append, train)
    assert (len(train.started), said) == (4, ["4 of 4 runs completed already and skipped"])


def test_no_more_runs_go_on_than_there_are_slots_and_each_has_its_environment(
    runs: list[PlannedRun], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"import os, pathlib, time; p = pathlib.Path({str(log)!r}); d = os.environ['CARD']; f = p.open('a')\n"
    script += "f.write(f'+{d}\\n'); f.flush(); time.sleep(0.3); f.write(f'-{d}\\n')"
    run_all(runs, [{"CARD": "2"}, {"CARD": "5"}], lambda text: None, lambda run: [sys.executable, "-S", "-c", script])
    events = log.read_text().split()
    assert len(events) == 8
    for card in ("2", "5"):
        own = [event for event in events if event.endswith(card)]
        assert own == [f"+{card}", f"-{card}"] * (len(own) // 2), "one after the other"


def test_a_run_that_fails_stops_no_other_and_goes_on_at_the_next_call(runs: list[PlannedRun], tmp_path: Path) -> None:
    train, said = FakeTrain(tmp_path, _4="fails"), list[str]()
    ended = run_all(runs, [{}], said.append, train)
    error = "the disk is full; free space there"
    assert ended.failed == {"staleness=4/seed-0": error, "staleness=4/seed-1": error}
    assert [status_of(run) for run in runs] == ["completed", "begun"] * 2
    assert f"staleness=4/seed-0 failed: {error}; see {runs[1].log}" in said
    train.started.clear()
    again = run_all(runs, [{}], said.append, train)
    assert (again.failed, train.started) == ({}, [("staleness=4/seed-0", True), ("staleness=4/seed-1", True)])
    assert any(text.startswith("staleness=4/seed-0 goes on: 3 of 4") for text in said)
    assert runs[1].resumed_mark.exists()
    assert not runs[0].resumed_mark.exists()


def test_once_a_row_has_a_completed_run_each_start_says_how_long_the_sweep_still_takes(
    runs: list[PlannedRun], tmp_path: Path
) -> None:
    train, said = FakeTrain(tmp_path), list[str]()
    run_all(runs[:1], [{}], said.append, train)
    assert "left" not in "".join(said)
    summary = runs[0].directory / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"wall_seconds": 1000.0}))
    said.clear()
    run_all(runs, [{}], said.append, train)
    assert said[1] == "staleness=4/seed-0 begins: 2 of 4, about 0:50:00 left", "three runs of its mean"
    assert said[3].startswith("staleness=0/seed-1 begins: 3 of 4, about 0:16:40 left"), "one known, one just measured"


def test_a_run_that_is_refused_tells_the_reason(runs: list[PlannedRun], tmp_path: Path) -> None:
    ended = run_all(runs[:1], [{}], lambda text: None, FakeTrain(tmp_path, _0="refuses"))
    assert ended.failed == {"staleness=0/seed-0": "no GPU is free; wait"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_leaves_no_child(
    runs: list[PlannedRun], tmp_path: Path, marked: Marked, number: int
) -> None:
    """SIGHUP ends the stand-in at once, as it does not heed it; a run's own process takes it for SIGTERM."""
    train, said = FakeTrain(tmp_path, _0="waits"), list[str]()
    before = signal.getsignal(number)
    Interrupts(runs[0].directory / "waiting", number).start()
    ended = run_all(runs, [{}], said.append, train)
    assert (ended.interrupted, ended.failed) == (True, {})
    assert train.started == [("staleness=0/seed-0", False)], "no run starts after it"
    assert said[-1] == "staleness=0/seed-0 interrupted"
    assert [process for process in marked.running() if process.pid != os.getpid()] == []
    assert signal.getsignal(number) is before
    if number != signal.SIGHUP:
        assert (summary_of(runs[0]) or {})["status"] == "interrupted"
    train.behaviours.clear()
    ended = run_all(runs, [{}], said.append, train)
    assert not ended.interrupted
    assert train.started[1] == ("staleness=0/seed-0", True)
    assert [status_of(run) for run in runs] == ["completed"] * 4


def test_runs_end_with_a_sweep_that_is_killed(runs: list[PlannedRun], tmp_path: Path, marked: Marked) -> None:
    """The kernel tells them."""
    waiting = runs[0].directory / "waiting"
    script = f"""
from pathlib import Path
from launch.sweep.config import load_sweep
from launch.sweep.runs import run_all
from tests.launch.sweep.sweeps import FakeTrain, runs_of, sweep_file
tmp_path = Path({str(tmp_path)!r})
run_all(runs_of(load_sweep(sweep_file(tmp_path))), [{{}}], print, FakeTrain(tmp_path, _0="waits"))
"""
    sweep = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=marked.environ)
    deadline = time.monotonic() + 60.0
    while not waiting.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    while (left := _others(marked)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert (summary_of(runs[0]) or {})["status"] == "interrupted"


def _others(marked: Marked) -> list[int]:
    return [process.pid for process in marked.running() if process.pid != os.getpid()]


def test_an_error_of_the_sweep_itself_ends_its_runs(runs: list[PlannedRun], tmp_path: Path, marked: Marked) -> None:
    train = FakeTrain(tmp_path, _0="waits")

    def tell(text: str) -> None:
        if text.startswith("staleness=4"):
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        run_all(runs, [{}, {}], tell, train)
    assert _others(marked) == []


def test_the_command_trains_the_base_with_the_run_s_settings_in_its_directory(
    runs: list[PlannedRun], tmp_path: Path
) -> None:
    run = runs[1]
    given = ["train", "embedded-nash-md", "updates=20", "replay.max_staleness=4"]
    given += ["seed=0", "learner.seed=0", "prompts.seed=0", "--output", str(run.directory)]
    assert train_command(run) == [sys.executable, "-m", "launch", *given]
    run.directory.mkdir(parents=True)
    (run.directory / "config.yaml").touch()
    assert train_command(run) == [sys.executable, "-m", "launch", *given, "--resume"]


def test_the_last_error_is_that_of_the_last_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("offbeat: error: of yesterday\n")
    start = log.stat().st_size
    assert last_error(log, start, -9) == "its process ended with code -9 and said nothing"
    log.write_text(log.read_text() + "offbeat: 3 updates\nSegmentation fault\n")
    assert last_error(log, start, -11) == "Segmentation fault"
    log.write_text(log.read_text() + "offbeat: error: no memory; free some\nfull traceback in error.txt\n")
    assert last_error(log, start, 1) == "no memory; free some"
    assert last_error(tmp_path / "none", 0, 2) == "its process ended with code 2 and said nothing"


def test_a_summary_that_cannot_be_read_is_none(runs: list[PlannedRun]) -> None:
    runs[0].directory.mkdir(parents=True)
    (runs[0].directory / "summary.json").write_text('{"status": "comple')
    assert summary_of(runs[0]) is None
