"""The directory of a sweep: whether it may be used, and what is recorded there before a run starts.

A row that has been begun keeps its settings; rows and seeds may be added or left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from actors.errors import UsageError, writing
from actors.files import atomic_write, open_lock, unwritable
from launch.settings.loading import LOCK, dump_config
from launch.settings.renamed import changes
from launch.settings.run import RunConfig
from launch.settings.yaml_text import read_recorded
from launch.sweep.config import SweepConfig
from launch.sweep.plan import Row

SWEEP_FILE = "sweep.yaml"
ROW_FILE = "row.yaml"
"""File in a row's directory: its whole configuration, without the seeds of its runs."""
_MOST_SHOWN = 5


def check_directory(directory: Path, rows: Sequence[Row]) -> None:
    """Raise UsageError if the directory holds something else, or a row with other settings. Writes nothing."""
    if (problem := unwritable(directory)) is not None:
        raise UsageError(f"output directory {directory} cannot be written: {problem}; choose another with --output DIR")
    if not directory.exists():
        return
    if any(directory.iterdir()) and not (directory / SWEEP_FILE).is_file():
        raise UsageError(
            f"output directory {directory} is not empty and holds no {SWEEP_FILE}; choose another with --output DIR"
        )
    changed = [f"{row.name}: {difference}" for row in rows for difference in _differences(directory, row)]
    if changed:
        more = len(changed) - _MOST_SHOWN
        raise UsageError(
            f"{directory} holds runs of this sweep with other settings: {'; '.join(changed[:_MOST_SHOWN])}"
            f"{f'; and {more} more' if more > 0 else ''}; go on with the same settings, or start anew with --output DIR"
        )


@contextlib.contextmanager
def held(directory: Path, sweep: SweepConfig, rows: Sequence[Row]) -> Iterator[None]:
    """Hold a checked directory for this process; record the sweep and its rows in it.

    Raises UsageError if another process holds it, RunError if it cannot be written.
    """
    with writing(f"to the output directory {directory}", "or choose another with --output DIR"):
        directory.mkdir(parents=True, exist_ok=True)
        lock = open_lock(directory / LOCK, mode=0o644, own=False)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process runs a sweep in {directory}; wait for its end, or choose another with --output DIR"
            ) from None
        with writing(f"to the output directory {directory}", "or choose another with --output DIR"):
            atomic_write(directory / SWEEP_FILE, dump_config(sweep))
            for row in rows:
                _row_directory(directory, row).mkdir(parents=True, exist_ok=True)
                if not (path := _row_directory(directory, row) / ROW_FILE).is_file():
                    atomic_write(path, dump_config(row.config))
        yield
    finally:
        os.close(lock)


def _row_directory(directory: Path, row: Row) -> Path:
    return directory / "runs" / row.name


def _differences(directory: Path, row: Row) -> Iterator[str]:
    """Say which settings of a recorded row have changed; those that it does not name are not compared."""
    path = _row_directory(directory, row) / ROW_FILE
    if not path.is_file():
        return
    yield from changes(read_recorded(path), yaml.safe_load(dump_config(row.config)), RunConfig)
