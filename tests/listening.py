"""What listens: the TCP sockets of processes, by the role of each process and by who could reach the socket."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

ROLES = {
    "/gcs_server": "Ray's GCS",
    "/raylet": "Ray's raylet",
    "/monitor.py": "Ray's monitor",
    "/dashboard.py": "Ray's dashboard head",
    "/log_monitor.py": "Ray's log monitor",
    "ray::DashboardAgent": "Ray's dashboard agent",
    "ray::RuntimeEnvAgent": "Ray's runtime-environment agent",
    "ray::LearnerWorker": "learner rank",
    "ray::RemoteGenerator": "generator",
    "ray::JudgeWorker": "judge",
    "ray::": "idle worker of Ray",
    "VLLM::": "worker of an engine",
    "-m launch": "driver",
}
"""By a part of the command line, the first that fits. A process of none of them is called by its command line."""


@dataclass(frozen=True)
class Listener:
    """One listening socket."""

    role: str
    reach: str  # loopback, all interfaces, one address
    host: str
    port: int


def listeners(processes: Iterable[psutil.Process]) -> set[Listener]:
    """The listening TCP sockets of `processes` and of all that these started; those that have ended are left out.

    A process that wrote over its environment, as Ray's agents do, is found only by who started it.
    """
    family = {each for process in processes for each in _family(process)}
    return {listener for process in family for listener in listeners_of(process)}


def listeners_of(process: psutil.Process) -> Iterator[Listener]:
    """The listening TCP sockets of one process."""
    try:
        command = " ".join(process.cmdline())
        connections = process.net_connections("tcp")
    except psutil.Error:
        return
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN:
            host, port = connection.laddr
            yield Listener(role(command), reach(host), host, port)


def role(command: str) -> str:
    return next((name for part, name in ROLES.items() if part in command), f"process {command[:60]}")


def reach(host: str) -> str:
    """Who reaches a socket that is bound to `host`."""
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified:
        return "all interfaces"
    return "loopback" if address.is_loopback else "one address"


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
