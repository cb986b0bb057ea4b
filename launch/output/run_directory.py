"""The directory of one run: created once, resumed by name, never shared with another run.

Also the run's folder in shared memory, which must not outlive the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from pathlib import Path

from actors.errors import RunError, UsageError, writing
from actors.files import TEMPORARY, atomic_write, discard, open_lock, unwritable
from actors.foreign.documents import read_object
from actors.foreign.text import many
from launch.output.process import supervisor
from launch.settings.loading import LOCK, RECORDED, dump_config
from launch.settings.run import NamedConfig

SHARED_MEMORY = Path("/dev/shm")
SHM_PREFIX = "offbeat-"
RUN_ID = "run_id"
"""File in a run's directory: a random name, which the manifests of its checkpoints and its journal repeat."""
_STARTUP_FILES = (LOCK, RUN_ID, "error.txt", "config.tmp")
"""Files left by a run that ended during startup, beside unfinished ones; safe to overwrite. Older versions wrote
`config.tmp`."""
MOST_NAMED = 4  # runs that an error names
DEEPEST = 4
"""Levels below a directory at which runs are looked for: a sweep has its runs at the third."""
_LONGEST_HOLDER = 300
"""Most bytes that are read of a lock's content."""


class RunDirectory:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / RECORDED
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.final_average = path / "final-average"
        self.start = path / "start"  # the embedded world's supervised policy
        self.baseline = path / "evaluation" / "baseline.json"
        self.journal = path / "journal"
        self.summary = path / "summary.json"
        self.failed_batches = path / "failed_batches"
        self.hangs = path / "hangs.txt"
        self._lock: int | None = None
        self._made: list[Path] = []
        """Directories that `begin` made, the deepest first."""

    @property
    def run_id(self) -> str | None:
        """Return the run's id; None before `begin`, and in directories of older versions."""
        path = self.path / RUN_ID
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None

    @classmethod
    def open(cls, config: NamedConfig, *, resume: bool) -> RunDirectory:
        """Return the directory of a run to start or to resume, without writing to it.

        Raises UsageError if it holds another run and `resume` is False, or nothing to resume, or a process runs in it.
        """
        path = config.directory
        if config.output is None and config.name in (".", ".."):
            raise UsageError(
                f"name {config.name!r} cannot name a directory below runs/; choose another with name=NAME, or give a "
                "directory with --output DIR"
            )
        if (problem := unwritable(path)) is not None:
            raise UsageError(
                f"output directory {path} cannot be written: {problem}; choose another directory with --output DIR or "
                "name=NAME"
            )
        run = cls(path)
        # Before anything of it is read: `begin` would refuse too, once everything has been checked.
        if (descriptor := _existing_lock(path)) is not None:
            try:
                if not _try_lock(descriptor, fcntl.LOCK_SH):
                    raise run._occupied(descriptor)
            finally:
                os.close(descriptor)
        if resume and not run.config.is_file():
            raise UsageError(
                f"--resume found no run in {path}: it has no config.yaml; give the directory of an interrupted run "
                "with --output DIR, or leave out --resume to start one"
            )
        if not resume and path.is_dir() and not all(map(_of_startup, path.iterdir())):
            step = "continue that run with --resume, or choose" if run.config.is_file() else "choose"
            raise UsageError(
                f"output directory {path} is not empty; {step} another directory with --output DIR or name=NAME"
            )
        return run

    def begin(self, config: NamedConfig, run_id: str | None = None) -> None:
        """Create the directory, lock it for this process until `close`, write the run's id and the resolved config.

        `run_id` is for a directory without one; None draws one. Raises UsageError if another process holds the lock,
        RunError if the directory cannot be written.
        """
        with writing(f"to the output directory {self.path}", "or choose another with --output DIR"):
            self._made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(self.path / LOCK, mode=0o644, own=False)
            try:
                if not _try_lock(self._lock):
                    raise self._occupied(self._lock)
                with contextlib.suppress(OSError):  # a full disk is reported where its space is needed
                    os.ftruncate(self._lock, 0)
                    os.write(self._lock, f"{os.getpid()} on {socket.gethostname()}\n".encode())
                if self.run_id is None:
                    atomic_write(self.path / RUN_ID, f"{run_id or uuid.uuid4().hex}\n")
                atomic_write(self.config, dump_config(config))
            except BaseException:
                self.close()
                raise
        supervisor.tell("run", self.path.absolute())

    def _occupied(self, lock: int) -> UsageError:
        """Return the error for a directory whose lock another process holds, which it names in the lock."""
        holder = os.pread(lock, _LONGEST_HOLDER, 0).decode(errors="replace").strip()
        named = f"process {holder}" if holder else "another process"
        return UsageError(
            f"{named} is running in {self.path}; wait for its end or interrupt it, then --resume, or choose another "
            "directory with --output DIR"
        )

    @property
    def completed(self) -> bool:
        """Return whether the run's summary says that the run completed."""
        with contextlib.suppress(UsageError):
            return bool(read_object(self.summary).get("status") == "completed")
        return False

    @property
    def in_use(self) -> bool:
        """Return whether a process holds the directory's lock, as a run does until it ends."""
        if (descriptor := _existing_lock(self.path)) is None:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def require(self) -> None:
        """Raise RunError unless the directory is still where this process began it.

        Open files of a removed directory take all that is written to them, and nobody will ever find it.
        """
        if self._lock is None:
            return
        cause = "another is in its place"
        try:
            if os.path.samestat(os.fstat(self._lock), os.stat(self.path / LOCK)):
                return
        except FileNotFoundError:
            cause = "it is gone" if not self.path.is_dir() else f"its {LOCK} is gone"
        except OSError as error:
            cause = error.strerror or str(error)
        raise RunError(
            f"the run's directory {self.path} is not the one that this run began in: {cause}; somebody removed, moved "
            "or replaced it. If it was moved, move it back, or give its new place with --output DIR, and use --resume"
        )

    def withdraw(self) -> None:
        """Remove everything written by a run that was refused before it began, and what was made to hold it."""
        for path in self.path.iterdir():
            discard(path)
        with contextlib.suppress(OSError):  # others may have put something there
            for directory in self._made or [self.path]:
                directory.rmdir()

    def record_hang(self, text: str) -> None:
        """Append the stacks of an actor that hangs; a full disk does not end the run for it."""
        with contextlib.suppress(OSError), self.hangs.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class SharedMemory:
    """A folder of this process under /dev/shm for published weights; removed on `close`.

    Folders of killed processes, recognised by their released locks, are removed by the next process. The lock file
    names the directory of its `run`.
    """

    def __init__(self, run: Path, root: Path | None = None) -> None:
        root = root or SHARED_MEMORY
        for folder in left_behind(root):
            shutil.rmtree(folder, ignore_errors=True)
        self.planted = planted(root)
        self._lock: int | None = None
        with writing(f"the run's folder in {root}", "then use --resume"):
            # Hidden until it is locked, so that no other process takes it for abandoned.
            hidden = Path(tempfile.mkdtemp(prefix=f".{SHM_PREFIX}", dir=root))
            try:
                self._lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
                _try_lock(self._lock)
                with contextlib.suppress(OSError):  # a full device is reported where its space is needed
                    os.write(self._lock, f"{run.absolute()}\n".encode())
                self.path = hidden.rename(root / hidden.name.removeprefix("."))
            except OSError:
                with contextlib.suppress(OSError):  # the first error counts
                    (hidden / LOCK).unlink(missing_ok=True)
                    hidden.rmdir()
                self._release()
                raise
        supervisor.tell("shared", self.path)

    def require(self, nbytes: int, *, what: str) -> None:
        """Raise RunError if fewer than `nbytes` are free."""
        free = shutil.disk_usage(self.path).free
        if free < nbytes:
            raise RunError(
                f"/dev/shm has {free >> 20} MiB free and {nbytes >> 20} MiB are needed for {what}; enlarge it (docker: "
                "--shm-size, compose: shm_size), or lower cluster.object_store_mib"
            )

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def left_behind(root: Path) -> list[Path]:
    """Return shared-memory folders whose process is gone. Changes neither folders nor locks."""
    return [path for path in sorted(root.glob(f"{SHM_PREFIX}*")) if _locked(path) is False]


def planted(root: Path) -> list[Path]:
    """Return what has the name of a shared-memory folder and is none: neither it nor its lock was made by a run."""
    return [path for path in sorted(root.glob(f"{SHM_PREFIX}*")) if _locked(path) is None and not _is_others(path)]


def _locked(folder: Path) -> bool | None:
    """Return whether a live process holds a folder's lock; None if folder or lock is none of this user's."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode) or _is_others(folder):
            return None
        descriptor = open_lock(folder / LOCK, create=False)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_others(path: Path) -> bool:
    try:
        return path.lstat().st_uid != os.geteuid()
    except OSError:
        return True  # gone meanwhile


def _of_startup(path: Path) -> bool:
    """Return whether a file may be left of a run that ended before there was anything to resume."""
    return path.name in _STARTUP_FILES or path.name.startswith(TEMPORARY)


def _existing_lock(directory: Path) -> int | None:
    """Open the lock of a run's directory for reading; None without a file, or for a file that is no lock."""
    with contextlib.suppress(OSError):
        return open_lock(directory / LOCK, create=False, own=False)
    return None


def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file for this process; False if another holds it. File systems without locks admit everyone."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def runs_below(directory: Path) -> list[Path]:
    """Return the directories of runs below one, in the order of their names."""
    found = (path for depth in range(1, DEEPEST + 1) for path in directory.glob("*/" * depth + RECORDED))
    return sorted(path.parent for path in found)


def no_run(directory: Path, lacks: str, step: str) -> UsageError:
    """Return the error of a place that was given as a run: that it is not there, a file, above runs, or `lacks` it."""
    if not directory.exists():
        return UsageError(f"there is no directory {directory}; {step}")
    if not directory.is_dir():
        return UsageError(f"{directory} is a file, not the directory of a run; {step}")
    below = runs_below(directory)
    if not (directory / RECORDED).is_file() and below:
        more = f" and {len(below) - MOST_NAMED} more" if len(below) > MOST_NAMED else ""
        named = ", ".join(map(str, below[:MOST_NAMED]))
        return UsageError(f"{directory} is no run but holds {many(len(below), 'run')}: {named}{more}; give one of them")
    return UsageError(f"{directory} {lacks}; {step}")


def next_free(path: Path) -> Path:
    """Return the first of `path`, `path-2`, `path-3`, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
