"""The all-reduce over two processes, with gloo in place of NCCL."""

import time

import pytest

from launch.doctor import allreduce


def test_two_processes_add_up():
    problem, seconds = allreduce.problem_between_two("gloo", 60.0)
    assert problem is None
    assert 0.0 < seconds < 60.0


def test_what_a_process_says_last_is_the_problem():
    problem, _ = allreduce.problem_between_two("no-such-backend", 60.0)
    assert problem is not None
    assert "no-such-backend" in problem.lower()


def test_a_hang_ends_with_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(sleeper))
    started = time.monotonic()
    problem, _ = allreduce.problem_between_two("gloo", 0.5)
    assert problem == "no result within 0.5 s"
    assert time.monotonic() - started < 10.0
