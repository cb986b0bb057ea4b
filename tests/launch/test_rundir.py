"""Run directories are never mixed up, and shared memory never outlives its run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import RunError, UsageError
from launch.config import RunConfig
from launch.rundir import RunDirectory, SharedMemory, next_free, remove_stale_folders


def _config(output: Path) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "m"}, "output": str(output)})


def test_a_directory_that_holds_something_is_refused_without_resume(tmp_path: Path) -> None:
    RunDirectory.open(_config(tmp_path / "run"), resume=False)
    with pytest.raises(UsageError, match=r"is not empty; go on with that run by --resume"):
        RunDirectory.open(_config(tmp_path / "run"), resume=False)
    assert RunDirectory.open(_config(tmp_path / "run"), resume=True).path == tmp_path / "run"


def test_resuming_where_no_run_was_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume found no run"):
        RunDirectory.open(_config(tmp_path / "absent"), resume=True)


def test_an_output_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write to the output directory"):
        RunDirectory.open(_config(tmp_path / "file" / "run"), resume=False)


def test_the_resolved_config_is_written(tmp_path: Path) -> None:
    run = RunDirectory.open(_config(tmp_path / "run"), resume=False)
    assert "max_staleness: 1" in run.config.read_text()


def test_a_dead_process_s_shared_memory_is_removed_and_a_live_one_s_is_kept(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    gone = tmp_path / f"offbeat-{dead.stdout.strip()}"
    mine = tmp_path / f"offbeat-{os.getpid()}"
    other = tmp_path / "somebody-else"
    for folder in (gone, mine, other):
        folder.mkdir()
    remove_stale_folders(tmp_path)
    assert not gone.exists()
    assert mine.exists()
    assert other.exists()


def test_too_little_shared_memory_is_refused_with_the_remedy() -> None:
    with pytest.raises(RunError, match=r"MiB free and .* are needed for .*shm_size"):
        SharedMemory().require(1 << 60, what="a test")


def test_next_free_counts_up(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert next_free(tmp_path / "demo") == tmp_path / "demo-3"
    assert next_free(tmp_path / "other") == tmp_path / "other"
