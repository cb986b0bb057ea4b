"""The directory of one run: created once, resumed by name, and never mixed up with another run's.

Also the run's folder in shared memory, which must not outlive it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from actors.errors import RunError, UsageError
from launch.config import RunConfig
from launch.loading import dump_config

SHARED_MEMORY = Path("/dev/shm")
SHM_PREFIX = "offbeat-"


class RunDirectory:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.start = path / "start"
        """The embedded world's supervised policy."""
        self.baseline = path / "evaluation" / "baseline.json"
        self.summary = path / "summary.json"
        self.failed_batches = path / "failed_batches"

    @classmethod
    def open(cls, config: RunConfig, *, resume: bool) -> RunDirectory:
        """Creates the directory, or finds it when resuming.

        Raises:
            UsageError: it holds another run and `resume` was not asked for, or there is nothing to resume.
            RunError: it cannot be created.
        """
        path = config.directory
        run = cls(path)
        if resume and not run.config.is_file():
            raise UsageError(
                f"--resume found no run in {path}: it has no config.yaml; give the directory of an interrupted run "
                "with --output DIR, or leave --resume out to start one"
            )
        if not resume and path.is_dir() and any(path.iterdir()):
            raise UsageError(
                f"output directory {path} is not empty; go on with that run by --resume, or choose another with "
                "--output DIR or name=NAME"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            temporary = run.config.with_suffix(".tmp")
            temporary.write_text(dump_config(config))
            os.replace(temporary, run.config)
        except OSError as error:
            raise RunError(
                f"cannot write to the output directory {path}: {error}; choose another with --output DIR"
            ) from None
        return run


class SharedMemory:
    """A folder of this process's own under /dev/shm for publications; removed on `close`."""

    def __init__(self) -> None:
        remove_stale_folders()
        self.path = SHARED_MEMORY / f"{SHM_PREFIX}{os.getpid()}"

    def require(self, nbytes: int, *, what: str) -> None:
        """Raises `RunError` when fewer than `nbytes` are free."""
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < nbytes:
            raise RunError(
                f"/dev/shm has {free >> 20} MiB free and {nbytes >> 20} MiB are needed for {what}; enlarge it (docker: "
                "--shm-size, compose: shm_size), or lower cluster.object_store_mib"
            )

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def remove_stale_folders(root: Path = SHARED_MEMORY) -> None:
    """Removes folders of runs whose process is gone (killed before it could clean up)."""
    for folder in root.glob(f"{SHM_PREFIX}*"):
        pid = folder.name.removeprefix(SHM_PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def next_free(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, … : the first that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
