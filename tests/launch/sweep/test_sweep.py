"""A sweep from its file to its table, with a stand-in for training, and the command line in front of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors.errors import INTERRUPTED, RunError, UsageError
from launch.cli import main
from launch.sweep import sweep as sweep_module
from launch.sweep.config import load_sweep
from launch.sweep.sweep import run_sweep
from tests.launch.sweep.sweeps import FakeTrain, sweep_file


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "sweep" / "results.json").read_text())


def test_a_sweep_leaves_a_table_figures_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 0 ends at 0.10 and 0.11, row 4 at 0.50 and 0.51: means 0.105 and 0.505, a difference of 0.4 in both seeds."""
    pytest.importorskip("matplotlib")
    assert run_sweep(load_sweep(sweep_file(tmp_path)), parallel=2, command=FakeTrain(tmp_path)) == 0
    rows = written(tmp_path)["rows"]
    assert [row["figures"]["exploitability"]["mean"] for row in rows] == pytest.approx([0.105, 0.505])
    assert rows[1]["differences"]["exploitability"]["mean"] == pytest.approx(0.4)
    assert [row["figures"]["wall_seconds"]["mean"] for row in rows] == [10.5, 10.5]
    assert [run["directory"] for run in written(tmp_path)["outcomes"]] == [
        f"runs/staleness={bound}/seed-{seed}" for bound in (0, 4) for seed in (0, 1)
    ]
    names = {path.name for path in (tmp_path / "sweep").iterdir()}
    assert names == {".lock", "sweep.yaml", "runs", "results.json", "table.md", "table.csv", "figures"}
    assert len(list((tmp_path / "sweep" / "figures").iterdir())) == 8
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "| 4 | 2 | 0.505 ± 0.064 | +0.400 | " in table
    out, err = capsys.readouterr()
    assert "0.505 ± 0.064" in out
    assert f"4 runs in {tmp_path / 'sweep'}, 2 at a time" in err


def test_a_sweep_goes_on_where_it_stopped_and_takes_more_seeds(tmp_path: Path) -> None:
    train = FakeTrain(tmp_path)
    run_sweep(load_sweep(sweep_file(tmp_path)), parallel=2, command=train)
    train.started.clear()
    run_sweep(load_sweep(sweep_file(tmp_path, seeds=[0, 1, 2])), parallel=2, command=train)
    assert train.started == [("staleness=0/seed-2", False), ("staleness=4/seed-2", False)]
    assert [row["figures"]["exploitability"]["n"] for row in written(tmp_path)["rows"]] == [3, 3]


def test_failed_runs_end_with_an_error_and_the_table_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run_sweep(load_sweep(sweep_file(tmp_path)), parallel=1, command=FakeTrain(tmp_path, _4="fails"))
    assert str(caught.value).startswith(
        "2 of 4 runs failed, the first staleness=4/seed-0: the disk is full; free space there; their logs are in "
    )
    assert [(row["runs"], row["planned"]) for row in written(tmp_path)["rows"]] == [(2, 2), (0, 2)]
    assert "staleness=4/seed-1: failed: the disk is full" in (tmp_path / "sweep" / "table.md").read_text()


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = tmp_path / "sweep" / "runs" / "staleness=4" / "seed-0" / "waiting"

    def interrupt() -> None:
        deadline = time.monotonic() + 30.0
        while not waiting.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    train = FakeTrain(tmp_path, _4="waits")
    assert run_sweep(load_sweep(sweep_file(tmp_path)), parallel=1, command=train) == INTERRUPTED
    assert "interrupted: 1 of 4 runs completed, the same command goes on" in capsys.readouterr().err
    assert written(tmp_path)["outcomes"][2]["status"] == "interrupted"
    train.behaviours.clear()
    assert run_sweep(load_sweep(sweep_file(tmp_path)), parallel=1, command=train) == 0
    assert [run["resumed"] for run in written(tmp_path)["outcomes"]] == [False, False, True, False]


def test_without_matplotlib_the_table_says_how_to_get_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "launch.sweep.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_sweep(load_sweep(sweep_file(tmp_path)), parallel=2, command=FakeTrain(tmp_path)) == 0
    assert (
        "matplotlib is not installed; `pip install matplotlib`, then give the same command" in capsys.readouterr().out
    )
    assert not (tmp_path / "sweep" / "figures").exists()
    assert (tmp_path / "sweep" / "table.md").is_file()


def test_nothing_is_written_for_a_sweep_that_is_refused(tmp_path: Path) -> None:
    axes = {"staleness": {"replay.max_staleness": [0, -1]}}
    with pytest.raises(UsageError, match="row staleness=-1"):
        run_sweep(load_sweep(sweep_file(tmp_path, axes=axes)), command=FakeTrain(tmp_path))
    assert not (tmp_path / "sweep").exists()


def test_the_command_shows_its_runs_and_starts_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = sweep_file(tmp_path), tmp_path / "it's here"
    assert (
        main(["sweep", file, "updates=30", "seeds=[4]", "--parallel", "2", "--output", str(output), "--dry-run"]) == 0
    )
    out = capsys.readouterr().out
    assert out == (
        "all runs: embedded-nash-md updates=30\n"
        "staleness=0: replay.max_staleness=0; seed 4 new\n"
        "staleness=4: replay.max_staleness=4; seed 4 new\n"
        f"2 runs, 2 at a time, in {output}; nothing was started\n"
    )
    assert not output.exists()


def test_the_command_s_errors_are_one_text_and_its_help_lists_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "stalenes"]) == 2
    assert (
        "no such preset (presets: anchor, anchor-cost, chat-staleness, robustness, staleness); looked in "
        f"{Path.cwd()}; nearest preset: staleness" in capsys.readouterr().err
    )
    assert main(["sweep", sweep_file(tmp_path), "updates=0"]) == 2
    assert "2 rows, the first staleness=0: configuration embedded-nash-md: 1 mistake" in capsys.readouterr().err
    assert main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--parallel" in out
    assert "compare" in out


def test_the_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(sweep_module, "run_sweep", lambda sweep, **options: calls.append((sweep, options)) or 130)
    file = sweep_file(tmp_path)
    assert main(["sweep", file, "--parallel", "3"]) == 130
    assert calls == [(load_sweep(file), {"parallel": 3, "dry_run": False})]
