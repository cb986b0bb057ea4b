"""Checkpoints are whole or absent, whatever moment a crash picks."""

import contextlib
import os
import shutil

import pytest

from actors.errors import RunError, UsageError
from learner.backend import checkpoints
from tests.fakes.disks import REFUSED, FaultyDisk


def stage(root, tag, update=0, parts=("deepspeed", "hf")):
    """Stages a checkpoint with one small file per part, as ranks and driver would."""
    path = checkpoints.begin(root, tag)
    for part in parts:
        (path / part).mkdir()
        (path / part / "weights").write_text(tag)
    checkpoints.write_state(path, {"update": update})
    return path


def save(root, tag, update=0, keep=2):
    stage(root, tag, update)
    return checkpoints.commit(root, tag, keep)


def test_a_committed_checkpoint_is_the_latest_and_gives_its_state_back(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    path = save(tmp_path, "update-10", update=10)
    assert checkpoints.latest(tmp_path) == path == tmp_path / "update-10"
    assert checkpoints.read_state(path) == {"update": 10}


def test_a_save_that_never_commits_leaves_the_last_checkpoint_and_is_cleared_by_the_next(tmp_path):
    save(tmp_path, "update-1")
    left = stage(tmp_path, "update-2")
    assert checkpoints.latest(tmp_path).name == "update-1"
    assert left.exists()
    checkpoints.begin(tmp_path, "update-3")
    assert not left.exists()


@pytest.mark.parametrize("call", range(6))
def test_a_crash_at_any_step_of_commit_leaves_a_whole_latest(tmp_path, monkeypatch, call):
    """Every rename and replace of a commit that replaces its own tag and prunes is made the last thing that happens."""
    for update in (7, 8):
        save(tmp_path, f"update-{update}", update)
    staged = stage(tmp_path, "update-8", update=88)

    class Crash(BaseException):
        pass

    calls = {"left": call}

    def counted(real):
        def wrapper(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Crash
            return real(*args, **kwargs)

        return wrapper

    for name in ("rename", "replace"):
        monkeypatch.setattr(checkpoints.Path, name, counted(getattr(checkpoints.Path, name)))
    with contextlib.suppress(Crash):
        checkpoints.commit(tmp_path, "update-8", keep=1)
    monkeypatch.undo()
    path = checkpoints.latest(tmp_path)
    assert path.name == "update-8"
    assert checkpoints.read_state(path) in ({"update": 8}, {"update": 88})
    assert (path / "hf" / "weights").read_text() == "update-8"
    assert staged.exists() == (checkpoints.read_state(path) == {"update": 8})


def test_the_newest_are_kept_by_update_number_not_by_name(tmp_path):
    for update in (8, 9, 10, 11):
        save(tmp_path, f"update-{update}", keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "update-10", "update-11", "update-9"]


def test_directories_that_are_no_checkpoints_are_left_alone(tmp_path):
    (tmp_path / "notes-1").mkdir()
    save(tmp_path, "update-2", keep=1)
    save(tmp_path, "update-3", keep=1)
    assert (tmp_path / "notes-1").is_dir()
    assert not (tmp_path / "update-2").exists()


@pytest.mark.parametrize("part", ["deepspeed", "hf", "run_state.json"])
def test_an_incomplete_checkpoint_is_refused_naming_the_part_and_the_older_ones(tmp_path, part):
    save(tmp_path, "update-1")
    path = save(tmp_path, "update-2")
    if part == "run_state.json":
        (path / part).unlink()
    else:
        (path / part / "weights").unlink()
    told = rf"update-2 cannot be used: {part} missing; .*--resume \S+/update-1, .*last-good"
    with pytest.raises(UsageError, match=told):
        checkpoints.latest(tmp_path)


def test_a_state_that_is_no_json_is_refused_naming_the_file(tmp_path):
    path = save(tmp_path, "update-1")
    (path / "run_state.json").write_text('{"update": 1')
    with pytest.raises(UsageError, match=r"run_state\.json cannot be used: .*; no other checkpoint"):
        checkpoints.read_state(path)


@pytest.mark.parametrize("content", [b"", b"../elsewhere-1", b"\xff\xfe"])
def test_a_broken_pointer_is_refused(tmp_path, content):
    save(tmp_path, "update-1")
    (tmp_path / "latest").write_bytes(content)
    with pytest.raises(UsageError, match=r"latest cannot be used: .*update-1"):
        checkpoints.latest(tmp_path)


def test_without_a_pointer_the_newest_checkpoint_is_the_latest(tmp_path):
    save(tmp_path, "update-1", update=1)
    newest = save(tmp_path, "update-2", update=2)
    (tmp_path / "latest").unlink()
    assert checkpoints.latest(tmp_path) == newest
    assert checkpoints.to_resume(tmp_path) == (newest, [])


def test_a_pointer_to_nothing_is_refused(tmp_path):
    save(tmp_path, "update-1")
    (tmp_path / "latest").write_text("update-5")
    with pytest.raises(UsageError, match=r"update-5 cannot be used: there is no such directory; .*update-1"):
        checkpoints.latest(tmp_path)


def test_committing_an_unfinished_stage_fails_and_removes_it(tmp_path):
    save(tmp_path, "update-1")
    path = stage(tmp_path, "update-2", parts=("deepspeed",))
    with pytest.raises(RunError, match=r"update-2 is incomplete: hf missing"):
        checkpoints.commit(tmp_path, "update-2", keep=2)
    assert not path.exists()
    assert checkpoints.latest(tmp_path).name == "update-1"


def test_a_full_disk_at_commit_keeps_the_last_checkpoint_and_removes_the_stage(tmp_path, monkeypatch):
    save(tmp_path, "update-1")
    path = stage(tmp_path, "update-2")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunError, match=r"cannot write checkpoint update-2 to .*No space left.*good checkpoint is intact"
    ):
        checkpoints.commit(tmp_path, "update-2", keep=2)
    assert not path.exists()
    assert checkpoints.latest(tmp_path).name == "update-1"


@pytest.mark.parametrize("fault", list(REFUSED))
def test_a_disk_that_fails_at_any_operation_of_a_save_is_told_and_leaves_a_whole_latest(tmp_path, monkeypatch, fault):
    """Also where what is to be tidied up after the first error cannot be removed."""
    root = tmp_path / "checkpoints"

    def attempt(first):
        shutil.rmtree(root, ignore_errors=True)
        save(root, "update-1", update=1)
        with monkeypatch.context() as patch:
            disk = FaultyDisk(root, fault, patch)
            path = checkpoints.begin(root, "update-2")
            for part in ("deepspeed", "hf"):
                (path / part).mkdir()
                (path / part / "weights").touch()
            disk.operations.clear()
            disk.first = first
            checkpoints.write_state(path, {"update": 2})
            checkpoints.commit(root, "update-2", keep=2)
            return len(disk.operations)

    for first in range(attempt(None)):
        try:
            attempt(first)  # what comes after the pointer may fail: the checkpoint counts
        except RunError as error:
            assert f": {os.strerror(fault)}; " in str(error), first  # noqa: PT017
        path = checkpoints.latest(root)
        checkpoints.verify(path)
        assert checkpoints.read_state(path) == {"update": 1 if path.name == "update-1" else 2}
        save(root, "update-3", update=3)
        assert not [left for left in root.iterdir() if left.name.startswith(".")]


def test_a_root_that_cannot_be_made_is_an_error_with_the_cause(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write checkpoint update-1 to .*file"):
        checkpoints.begin(tmp_path / "file", "update-1")


@pytest.mark.parametrize("tag", ["final", "", "../update-1", ".tmp-1"])
def test_a_tag_without_an_update_number_or_with_a_path_is_refused(tmp_path, tag):
    with pytest.raises(UsageError, match="end in the update number"):
        checkpoints.begin(tmp_path, tag)


def test_going_back_takes_the_newest_whole_checkpoint_from_before(tmp_path):
    for update in (1, 2, 3):
        save(tmp_path, f"update-{update}", update, keep=3)
    shutil.rmtree(tmp_path / "update-2" / "hf")
    assert checkpoints.newest_before(tmp_path, 1) is None
    assert checkpoints.go_back(tmp_path, 1) is None
    assert checkpoints.latest(tmp_path) == tmp_path / "update-3"
    assert checkpoints.go_back(tmp_path, 3) == tmp_path / "update-1"
    assert checkpoints.latest(tmp_path) == tmp_path / "update-1"
