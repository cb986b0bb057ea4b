"""The directory of one run: created once, resumed by name, and never mixed up with another run's.

Also the run's folder in shared memory, which must not outlive it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from actors.errors import RunError, UsageError
from launch.settings.loading import dump_config
from launch.settings.run import NamedConfig

SHARED_MEMORY = Path("/dev/shm")
SHM_PREFIX = "offbeat-"
LOCK = ".lock"
"""A file that a live process holds locked. Unlike a process id it means the same in every container."""
_BEFORE_THE_CONFIG = (LOCK, "config.tmp")
"""What a run that was killed while it began has left: nothing to go on with, and in nobody's way."""


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
        self.journal = path / "journal"
        self.summary = path / "summary.json"
        self.failed_batches = path / "failed_batches"
        self._lock: int | None = None

    @classmethod
    def open(cls, config: NamedConfig, *, resume: bool) -> RunDirectory:
        """The directory of a run to start or, when resuming, to go on with. Writes nothing: see `begin`.

        Raises:
            UsageError: it holds another run and `resume` was not asked for, or there is nothing to resume.
        """
        path = config.directory
        if config.output is None and config.name in (".", ".."):
            raise UsageError(
                f"name {config.name!r} is no name for a directory below runs/; choose another with name=NAME, or say "
                "where to write with --output DIR"
            )
        run = cls(path)
        if resume and not run.config.is_file():
            raise UsageError(
                f"--resume found no run in {path}: it has no config.yaml; give the directory of an interrupted run "
                "with --output DIR, or leave --resume out to start one"
            )
        if not resume and path.is_dir() and any(each.name not in _BEFORE_THE_CONFIG for each in path.iterdir()):
            raise UsageError(
                f"output directory {path} is not empty; go on with that run by --resume, or choose another with "
                "--output DIR or name=NAME"
            )
        return run

    def begin(self, config: NamedConfig) -> None:
        """Creates the directory, takes it for this process until `close`, and writes the resolved config.

        Raises:
            UsageError: another process is running in it.
            RunError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            if not _try_lock(self._lock):
                raise UsageError(
                    f"another process is running in {self.path}; wait for its end or interrupt it, then --resume, or "
                    "choose another directory with --output DIR"
                )
            temporary = self.config.with_suffix(".tmp")
            temporary.write_text(dump_config(config))
            os.replace(temporary, self.config)
        except OSError as error:
            raise RunError(
                f"cannot write to the output directory {self.path}: {error}; choose another with --output DIR"
            ) from None

    def clear(self) -> None:
        """Removes everything that a run has written which was refused before it began."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process run here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class SharedMemory:
    """A folder of this process's own under /dev/shm for publications; removed on `close`.

    What a killed process left is removed by the next one, which finds the folder's lock open.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = root or SHARED_MEMORY
        for folder in left_behind(root):
            shutil.rmtree(folder, ignore_errors=True)
        # Hidden until it is locked, so that nobody takes it for a dead process's.
        hidden = Path(tempfile.mkdtemp(prefix=f".{SHM_PREFIX}", dir=root))
        self._lock: int | None = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        _try_lock(self._lock)
        self.path = hidden.rename(root / hidden.name.removeprefix("."))

    def require(self, nbytes: int, *, what: str) -> None:
        """Raises `RunError` when fewer than `nbytes` are free."""
        free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise RunError(
                f"/dev/shm has {free >> 20} MiB free and {nbytes >> 20} MiB are needed for {what}; enlarge it (docker: "
                "--shm-size, compose: shm_size), or lower cluster.object_store_mib"
            )

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def left_behind(root: Path) -> list[Path]:
    """Folders in shared memory whose process is gone: it was killed before it could remove them. They stay as they
    are, their locks too."""
    return [path for path in sorted(root.glob(f"{SHM_PREFIX}*")) if path.is_dir() and not _locked(path / LOCK)]


def _locked(lock: Path) -> bool:
    """Whether a live process holds a lock file; also where that cannot be told: another user's, say."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _try_lock(descriptor: int) -> bool:
    """Locks a file for this process. False: another one holds it. File systems without locks let everyone in."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def next_free(path: Path) -> Path:
    """`path`, or `path-2`, `path-3`, … : the first that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
