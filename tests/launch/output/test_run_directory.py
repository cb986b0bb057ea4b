"""Run directories are never mixed up, and shared memory never outlives its run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.errors import RunError, UsageError
from actors.files import atomic_write
from launch.output import run_directory
from launch.output.run_directory import LOCK, RunDirectory, SharedMemory, left_behind, next_free, planted
from launch.settings.run import RunConfig


def _config(output: Path) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "m"}, "output": str(output)})


def _begin(path: Path) -> RunDirectory:
    run = RunDirectory.open(_config(path), resume=False)
    run.begin(_config(path))
    return run


def test_a_directory_that_holds_something_is_refused_without_resume(tmp_path: Path) -> None:
    _begin(tmp_path / "run").close()
    with pytest.raises(UsageError, match=r"is not empty; continue that run with --resume"):
        RunDirectory.open(_config(tmp_path / "run"), resume=False)
    assert RunDirectory.open(_config(tmp_path / "run"), resume=True).path == tmp_path / "run"


def test_a_run_that_was_killed_while_it_began_is_in_nobody_s_way(tmp_path: Path) -> None:
    """Between the directory and its config.yaml there is nothing to resume."""
    for left in (".tmp-config.yaml", "config.tmp"):  # the latter by older versions
        begun = _begin(tmp_path / left)
        begun.close()
        begun.config.rename(begun.config.with_name(left))
        assert sorted(path.name for path in (tmp_path / left).iterdir()) == [".lock", left, "run_id"]
        _begin(tmp_path / left).close()
        assert (tmp_path / left / "config.yaml").is_file()


def test_resuming_where_no_run_was_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume found no run"):
        RunDirectory.open(_config(tmp_path / "absent"), resume=True)


def test_an_output_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"run cannot be written: .*file is not a writable directory; choose another"):
        _begin(tmp_path / "file" / "run")


def test_the_resolved_config_is_written(tmp_path: Path) -> None:
    assert "max_staleness: 1" in _begin(tmp_path / "run").config.read_text()


def test_nothing_is_written_before_a_run_begins(tmp_path: Path) -> None:
    RunDirectory.open(_config(tmp_path / "run"), resume=False)
    assert not (tmp_path / "run").exists()


def test_two_processes_never_run_in_one_directory_and_the_first_is_named(tmp_path: Path) -> None:
    second = RunDirectory.open(_config(tmp_path / "run"), resume=False)
    first = _begin(tmp_path / "run")
    held = rf"process {os.getpid()} on \S+ is running in .*run; wait for its end"
    with pytest.raises(UsageError, match=held):
        second.begin(_config(tmp_path / "run"))
    for resume in (True, False):
        with pytest.raises(UsageError, match=held):
            RunDirectory.open(_config(tmp_path / "run"), resume=resume)
    first.require()
    first.close()
    second.begin(_config(tmp_path / "run"))
    second.close()


def test_a_lock_that_names_nobody_is_held_by_another_process(tmp_path: Path) -> None:
    """Older versions named none, and a full disk takes no name."""
    first = _begin(tmp_path / "run")
    (tmp_path / "run" / LOCK).write_text("")
    with pytest.raises(UsageError, match="another process is running in"):
        RunDirectory.open(_config(tmp_path / "run"), resume=True)
    first.close()


@pytest.mark.parametrize(
    ("what", "cause"),
    [("removed", "it is gone"), ("moved", "it is gone"), ("replaced", "another is in its place"), ("emptied", "lock")],
)
def test_a_directory_that_is_taken_away_is_missed(tmp_path: Path, what: str, cause: str) -> None:
    begun = _begin(tmp_path / "run")
    begun.require()
    if what == "removed":
        shutil.rmtree(tmp_path / "run")
    elif what == "emptied":
        for each in (tmp_path / "run").iterdir():
            each.unlink()
    else:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        other = _begin(tmp_path / "run") if what == "replaced" else None
    with pytest.raises(RunError, match=rf"directory .*run is not the one .* began in: .*{cause}.*--resume"):
        begun.require()
    begun.close()
    if what == "replaced" and other is not None:
        other.close()


def test_a_refused_run_takes_back_the_directories_that_it_made_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    begun = _begin(tmp_path / "mine" / "runs" / "a")
    begun.withdraw()
    begun.close()
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")] == ["mine"]
    begun, beside = _begin(tmp_path / "runs" / "a"), _begin(tmp_path / "runs" / "b")
    begun.withdraw()
    begun.close()
    beside.close()
    assert [each.name for each in (tmp_path / "runs").iterdir()] == ["b"]


def test_a_run_that_ends_while_it_begins_lets_the_directory_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves is in nobody's way, the traceback in error.txt included."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "atomic_write", full)
        with pytest.raises(RunError, match="No space left on device; free space there, or choose another with"):
            _begin(tmp_path / "run")
    for left in ("error.txt", ".tmp-run_id"):
        (tmp_path / "run" / left).touch()
    _begin(tmp_path / "run").close()


def test_a_shared_memory_that_takes_no_folder_says_what_to_do_and_holds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("mkdir", "open", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(RunError, match=rf"folder in {tmp_path}: No space left on device; free space there"):
                SharedMemory(tmp_path / "run", tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_dead_process_s_shared_memory_is_removed_and_a_live_one_s_is_kept(tmp_path: Path) -> None:
    """By its lock: process ids repeat between containers that share /dev/shm, whose runs then met in one folder."""
    script = (
        "from launch.output.run_directory import *\n"
        f"print(SharedMemory(Path('run'), Path({str(tmp_path)!r})).path, flush=True); os._exit(1)"
    )
    dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    gone, other = Path(dead.stdout.strip()), tmp_path / "somebody-else"
    assert gone.parent == tmp_path
    assert gone.is_dir()
    other.mkdir()
    mine = SharedMemory(tmp_path / "run", tmp_path)
    assert not gone.exists()
    SharedMemory(tmp_path / "run", tmp_path).close()
    assert mine.path.is_dir()
    assert other.exists()
    mine.close()
    mine.close()
    assert list(tmp_path.iterdir()) == [other]


def test_looking_for_folders_of_dead_processes_leaves_them_and_their_locks(tmp_path: Path) -> None:
    running = SharedMemory(tmp_path / "run", tmp_path)
    dead, unlocked = tmp_path / "offbeat-dead", tmp_path / "offbeat-early"
    dead.mkdir()
    (dead / LOCK).write_text("")
    unlocked.mkdir()
    (tmp_path / "other").mkdir()
    assert left_behind(tmp_path) == [dead, unlocked]
    with (dead / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert left_behind(tmp_path) == [unlocked]
    running.close()


@pytest.mark.parametrize("kind", ["pipe as lock", "link as lock", "folder as lock", "link as folder", "file as folder"])
def test_what_only_has_a_folder_s_name_is_left_alone_and_named(kind: str, tmp_path: Path) -> None:
    """A pipe as a lock made the start wait for its other end for ever."""
    root, target, folder = tmp_path / "shm", tmp_path / "target", tmp_path / "shm" / "offbeat-x"
    root.mkdir()
    target.mkdir()
    (target / "kept").touch()
    if kind == "link as folder":
        folder.symlink_to(target)
    elif kind == "file as folder":
        folder.touch()
    else:
        folder.mkdir()
        lock = folder / LOCK
        {"pipe as lock": os.mkfifo, "link as lock": lambda path: path.symlink_to(target / "kept")}.get(
            kind, Path.mkdir
        )(lock)
    assert left_behind(root) == []
    mine = SharedMemory(tmp_path / "run", root)
    assert mine.planted == [folder]
    mine.close()
    assert list(root.iterdir()) == [folder]
    assert (target / "kept").exists()


def test_another_user_s_folder_is_neither_removed_nor_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "offbeat-theirs"
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert left_behind(tmp_path) == planted(tmp_path) == []


def test_a_pipe_as_the_lock_of_a_run_s_directory_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(RunError, match="choose another with --output DIR"):
        _begin(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_files_of_a_run_are_as_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        _begin(tmp_path / "run").close()
        atomic_write(tmp_path / "run" / "summary.json", "{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {mode}


def test_too_little_shared_memory_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"MiB free and .* are needed for .*shm_size"):
        SharedMemory(tmp_path / "run", tmp_path).require(1 << 60, what="a test")


def test_next_free_counts_up(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert next_free(tmp_path / "demo") == tmp_path / "demo-3"
    assert next_free(tmp_path / "other") == tmp_path / "other"


def test_a_full_device_is_refused_with_the_remedy_and_not_at_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file names its run, which a full device refuses to write before `require` can say what to do."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    folder = SharedMemory(tmp_path / "run", tmp_path)
    assert left_behind(tmp_path) == []
    folder.close()
