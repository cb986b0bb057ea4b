"""Processes of a test that can be found again, told from those of any other run on the machine."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "OFFBEAT_TEST_MARK"


class Marked:
    """An environment whose inheritors can be found. Ray leaves processes running when its head is killed."""

    def __init__(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
        self._known: set[psutil.Process] = set()
        self.environ = inherited | {MARK: secrets.token_hex(8), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}

    def running(self) -> list[psutil.Process]:
        """Those with the mark, and what they started: Ray's agents overwrite their environment."""
        for process in filter(self._inherited_by, psutil.process_iter()):
            with suppress(psutil.Error):
                self._known |= {process, *(process.children() if process.name() == "raylet" else ())}
        self._known = set(filter(_lives, self._known))
        return list(self._known)

    def end(self) -> None:
        """Kills by pid, again for what was started meanwhile."""
        for _ in range(5):
            processes = self.running()
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)
        assert not self.running()

    def _inherited_by(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.environ[MARK]
        except psutil.Error:
            return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
