"""What an allocation or a write that failed becomes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from actors.errors import (
    LEARNER_MEMORY,
    RunError,
    UsageError,
    oom_hint,
    remedy_of,
    surroundings,
    system_error,
    writing,
    writing_remedy,
)


def _too_much_for_the_host() -> None:
    torch.empty(1 << 60)


def _too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")


def _too_much_for_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("allocate", [_too_much_for_the_host, _too_much_for_a_gpu, _too_much_for_python])
def test_memory_that_runs_out_says_where_and_which_settings_to_change(allocate) -> None:
    with pytest.raises(RunError) as error, oom_hint("learner rank 1", LEARNER_MEMORY):
        allocate()
    assert str(error.value).startswith("learner rank 1 ran out of memory: ")
    assert "lower learner.micro_batch_tokens" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), oom_hint("a", "b"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EROFS, "make that file system writable again"),
        (errno.EMFILE, "let a process open more files (`ulimit -n`)"),
        (errno.EACCES, "give this user the right to write there"),
        (errno.ENOTDIR, "a file has the name of a directory on the way: use another directory"),
        (errno.ENOLCK, "make it writable"),
    ],
)
def test_what_could_not_be_written_why_and_what_to_do_are_one_sentence(number: int, remedy: str) -> None:
    with pytest.raises(RunError) as error, writing(Path("/data/a"), "then use --resume"):
        raise OSError(number, os.strerror(number), "/data/.tmp-a")
    assert str(error.value) == f"cannot write /data/a: {os.strerror(number)}; {remedy}, then use --resume"


def test_a_full_disk_is_recognised_in_the_words_of_any_library() -> None:
    """As safetensors and pyarrow tell it."""
    for told in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ):
        with pytest.raises(RunError, match=r"No space left on device.*; free space there, then"), writing("a", "then"):
            raise told


def test_the_first_cause_is_told_and_not_the_last_symptom(tmp_path: Path) -> None:
    """A full disk makes torch complain of a position in its own file."""
    with (
        pytest.raises(RunError, match=r"^cannot write a: No space left on device; free space there, then$"),
        writing("a", "then", RuntimeError),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        torch.save({"a": torch.zeros(10_000)}, file)
    error = RuntimeError("unexpected pos")
    assert system_error(error) is error
    assert remedy_of(error) is None


def test_errors_of_other_kinds_are_not_taken_for_a_write_that_failed() -> None:
    for kinds, told, message in (
        ((ValueError,), ValueError("torn"), r"^cannot write the table: torn; make it writable, then$"),
        ((), ValueError("torn"), r"^torn$"),
        ((), UsageError("No space left on device"), r"^No space left on device$"),
    ):
        with pytest.raises(Exception, match=message), writing("the table", "then", *kinds):
            raise told


def test_a_fault_of_the_machine_that_nobody_expected_is_told_with_its_path_and_other_errors_are_left_alone() -> None:
    class RemoteError(Exception):
        cause = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/data/a")

    remedy = r"let a process open more files \(`ulimit -n`\), then use --resume"
    for raised in (RemoteError.cause, RemoteError("a traceback")):
        text = rf"^/data/a: Too many open files; {remedy}$"
        with pytest.raises(RunError, match=text), surroundings("then use --resume"):
            raise raised
    for left in (ValueError("torn"), FileNotFoundError(errno.ENOENT, "No such file"), UsageError("no")):
        with pytest.raises(type(left)) as error, surroundings("then"):
            raise left
        assert error.value is left


def test_a_directory_that_is_gone_is_told_from_a_place_where_no_file_can_be_made(tmp_path):
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "gone" / "file"))
    proc = FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/run")
    below = FileExistsError(errno.EEXIST, "File exists", str(tmp_path / "file"))
    assert writing_remedy(below) == "a file has the name of a directory on the way: use another directory"
    assert writing_remedy(gone) == "put back the directory, which is gone"
    assert writing_remedy(proc) == "the system makes no files there, as below /proc: use another directory"


def test_the_log_of_a_process_is_the_file_of_its_errors_or_what_ray_would_call_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/data")
    said = "import os; from actors.errors import logged; print(logged('it failed'), os.getpid())"

    def log_of(errors):
        done = subprocess.run(
            [sys.executable, "-c", said], stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        )
        text, _, process = done.stdout.strip().rpartition(" ")
        assert text.endswith(f" on {socket.gethostname()}")
        return text.removeprefix("it failed; its log is ").partition(" on ")[0].replace(process, "PID")

    with (tmp_path / "w.err").open("w") as file:
        assert log_of(file) == str(tmp_path / "w.err")
    assert log_of(subprocess.PIPE) == "/data/ray/session_latest/logs/worker-*-PID.err"
