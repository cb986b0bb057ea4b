"""What tests that start programs share: processes that can be found again, and a place for Ray's sockets."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MARK = "OFFBEAT_TEST_MARK"


class Marked:
    """An environment whose inheritors can be found. Ray leaves processes running when its head is killed."""

    def __init__(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
        self.environ = inherited | {MARK: secrets.token_hex(8), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}

    def running(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._inherited_by(process)]

    def end(self) -> None:
        """Kills by pid, again for what was started meanwhile."""
        for _ in range(5):
            processes = self.running()
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=5)
        assert not self.running()

    def _inherited_by(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.environ[MARK]
        except psutil.Error:
            return False


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short name: Ray keeps sockets in it, and their paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def marked(short_dir: Path) -> Iterator[Marked]:
    """Ended before the directory that its processes write to is removed."""
    processes = Marked()
    yield processes
    processes.end()
