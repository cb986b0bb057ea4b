"""A Ray cluster on this host whose nodes come and go: what a run is tried on, in tests and benchmarks."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from actors.host import free_port

NODE = "OFFBEAT_NODE"
"""Variable with the node's name, in the environment of each of its processes."""
START_SECONDS = 60.0
OBJECT_STORE_BYTES = 100_000_000
"""Shared memory of each node."""


class Cluster:
    """A head, and nodes that are added and lost. Use as a context manager: every process of it is gone at the end.

    Args:
        directory: for Ray's files, with a short path: sockets in it may have 107 characters.
        environ: of all its processes; `self.environ` adds what a driver needs to join.
        cpus: of the head.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str], *, cpus: int) -> None:
        token = directory / "token"
        token.write_text(secrets.token_hex(32))
        outside = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environ = outside | ray | {"PATH": f"{Path(sys.executable).parent}:{outside['PATH']}"}
        self._log = directory / "log"
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        port = free_port()
        from ray.util import get_node_ip_address

        self.address = f"{get_node_ip_address()}:{port}"
        head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", str(directory / "ray")]
        self._start([*head, "--ray-client-server-port", str(free_port())], cpus)
        self._until_reached(port)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for name, _ in self._started:
            self.lose(name)

    def add(self, cpus: int) -> str:
        """Starts a node; returns its name at once. Ray has its cores a few seconds later."""
        return self._start(["--address", self.address], cpus)

    def lose(self, name: str) -> None:
        """Kills every process of a node, as a machine that fails does."""
        for _ in range(5):
            processes = self.running(name)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)
        dict(self._started)[name].wait()

    def running(self, name: str | None = None) -> list[psutil.Process]:
        """The processes of a node, of all unless named. Ray's agents overwrite their environment."""
        names = {name} if name else {started for started, _ in self._started}
        found: dict[psutil.Process, None] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(NODE) in names and process.status() != psutil.STATUS_ZOMBIE:
                    found |= dict.fromkeys([process, *(process.children() if process.name() == "raylet" else ())])
        return list(found)

    def workers(self) -> list[psutil.Process]:
        """Processes that run actors, or may come to."""
        return self.titled("ray::", "default_worker.py")

    def at_work(self, name: str | None = None) -> list[psutil.Process]:
        """Generators that hand out what they sample: Ray names a process after the method it is in."""
        return self.titled("ray::RemoteGenerator.collect", name=name)

    def titled(self, *titles: str, name: str | None = None) -> list[psutil.Process]:
        """Processes of a node, of all unless named, in whose command line one of `titles` is."""
        found = []
        for process in self.running(name):
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                found += [process] if any(title in line for title in titles) else []
        return found

    def _start(self, arguments: Sequence[str], cpus: int) -> str:
        name = secrets.token_hex(8)
        command = ["ray", "start", "--block", *arguments, "--num-cpus", str(cpus)]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--dashboard-agent-listen-port", "0"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, env={**self.environ, NODE: name}, stdout=log, stderr=log)
        self._started.append((name, process))
        return name

    def _until_reached(self, port: int) -> None:
        host = self.address.rpartition(":")[0]
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection((host, port), timeout=1):
                return
            if self._started[0][1].poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the Ray head cannot be reached at {self.address}:\n{self._log.read_text()}")
            time.sleep(0.2)
