"""Whole runs as a user starts them: `python -m launch`, in a process of their own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.output import run_directory as rundir
from tests.processes import MARK, Marked

ROOT = Path(__file__).parents[2]


def small_run(directory: Path, model_dir: Path, **settings: Any) -> Path:
    """Writes a configuration of the embedded world on two cores, into `directory`/run, and returns its path.

    `settings` go over it; those of a section over the section's own.
    """
    document: dict[str, Any] = {
        "model": {"path": str(model_dir)},
        "updates": 8,
        "output": str(directory / "run"),
        "prompts": {"source": "world", "max_prompt_tokens": 4},
        "sampling": {"completions_per_prompt": 4, "max_new_tokens": 4},
        "generators": {"dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64},
        "replay": {"prompts_per_update": 8, "max_staleness": 1},
        "learner": {"dtype": "float32", "zero_stage": 1, "optimizer": {"lr": 1e-3}},
        "publication": {"canary_tokens": 16},
        "checkpoints": {"every_updates": 4},
        "evaluation": {"prompts": 0},
        "cluster": {"address": "local", "num_cpus": 2, "object_store_mib": 128},
    }
    for name, value in settings.items():
        section = document.get(name)
        document[name] = section | value if isinstance(section, dict) else value
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def start(*arguments: str, group: bool = False) -> subprocess.Popen[str]:
    """`offbeat ARGUMENTS`; with `group`, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Standard output and error of a run that must end with `code`."""
    out, err = process.communicate(timeout=380)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "never retrieved" not in err, err  # asyncio's traceback after our own error
    assert "never awaited" not in err, err
    return out, err


def wait_for_updates(process: subprocess.Popen[str], run: Path, updates: int) -> Path:
    """Returns the metrics file of the run's directory once it tells of `updates` updates."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= updates:
            return metrics
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no {updates} updates: {process.communicate()}")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Fail with what the run printed if it ends, or much time passes, before `condition` holds."""
    deadline = time.monotonic() + 280
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.1)


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@contextmanager
def leaving_nothing(processes: Marked) -> Iterator[Marked]:
    """Mark every process that is started within; fail if one of them, or its shared memory, outlives the block."""
    before = abandoned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, processes.environ[MARK])
        yield processes
    deadline = time.monotonic() + 20
    while (left := [*processes.running(), *(abandoned() - before)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left


def abandoned() -> set[Path]:
    """Folders of publications in shared memory that no live run holds locked, without those of other test processes."""
    folders = set()
    ours = f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}"  # part of the temporary directories of this process
    for folder in rundir.SHARED_MEMORY.glob(f"*{rundir.SHM_PREFIX}*"):
        with suppress(FileNotFoundError), (folder / rundir.LOCK).open() as lock, suppress(BlockingIOError):
            if not folder.name.startswith("."):  # a hidden one is about to be locked, which must not fail
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            run = lock.read()
            if "popen-" not in run or ours in run:
                folders.add(folder)
    return folders
