"""Measures this machine: memory, cores, GPUs, file systems, ports, packages. Decides nothing and imports nothing heavy.

What a container may use counts, not what its host has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
DEVICES = Path("/dev")
SMI_SECONDS = 30.0
SMI_FIELDS = "index,name,memory.total,memory.used,driver_version,compute_cap"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as `nvidia-smi` tells it."""

    index: int
    name: str
    total: int
    """Bytes."""
    used: int
    """Bytes, by any process."""
    driver: str
    capability: tuple[int, int]
    """Compute capability."""


@dataclass(frozen=True, slots=True)
class Space:
    """A file system, or memory."""

    total: int
    """Bytes."""
    free: int
    """Bytes that can still be had."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory that a run would write to; it need not exist."""

    existing: Path
    """The directory itself or the nearest above it that exists."""
    writable: bool
    space: Space


# ---------------------------------------------------------------- packages


def installed_version(package: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_tree() -> Path | None:
    """The checkout that this code runs from; None where it was installed without one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


# ---------------------------------------------------------------- processor and memory


def memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> Space:
    """Main memory, within the limit of this process's control group."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE))
    total, free = int(kib["MemTotal"]) << 10, int(kib["MemAvailable"]) << 10
    for group, limit_file, used_file in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, used = _number(group / limit_file), _number(group / used_file)
        if limit is not None and limit < total:
            # Cached files count as used and are given up under pressure.
            used = max(0, (used or 0) - _inactive_file(group / "memory.stat"))
            total, free = limit, min(free, max(0, limit - used))
    return Space(total, free)


def cpus(cgroup: Path = CGROUP) -> int:
    """Cores that a Ray started here would find: the machine's, within the control group's quota."""
    count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    return count


def _inactive_file(statistics: Path) -> int:
    """Bytes of cached files in a control group's memory; 0 where it does not tell."""
    try:
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _number(path: Path) -> int | None:
    """The integer in a file; None where there is none, as with `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# ---------------------------------------------------------------- GPUs


def visible_gpus(devices: Path = DEVICES) -> int:
    """GPUs that a process here may use, without asking the driver: device files, within CUDA_VISIBLE_DEVICES."""
    count = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))
    if not count and (devices / "dxg").exists():  # the driver of a Windows host shows no more than this
        count = 1
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return count
    return min(count, len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")]))


def gpus() -> list[Gpu]:
    """What `nvidia-smi` lists; nothing where it is absent, fails or hangs."""
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(listed)


def parse_gpus(listed: str) -> list[Gpu]:
    """The lines that `nvidia-smi` writes for `SMI_FIELDS`; lines of another form are left out."""
    found = []
    for line in listed.splitlines():
        with contextlib.suppress(ValueError):
            index, name, total, used, driver, capability = (part.strip() for part in line.split(","))
            major, minor = capability.split(".")
            found.append(Gpu(int(index), name, int(total) * MIB, int(used) * MIB, driver, (int(major), int(minor))))
    return found


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver serves; None without a driver. Starts nothing on a GPU."""
    version = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    # 1000 major + 10 minor, as documented for cuDriverGetVersion.
    return version.value // 1000, version.value % 1000 // 10


# ---------------------------------------------------------------- files


def space(path: Path) -> Space:
    """The file system of an existing path."""
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free)


def folder(path: Path) -> Folder:
    """What would hold `path`, which need not exist. Writes nothing."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return Folder(existing, writable, space(existing))


def space_taken(folder: Path) -> int:
    """Bytes of its files."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


# ---------------------------------------------------------------- network


def port_free(port: int) -> bool:
    """Whether a server could listen on this host's `port`."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def connection_problem(host: str, port: int, seconds: float) -> str | None:
    """Why nothing answers at `host`:`port` within `seconds`; None where something does. Sends nothing."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as failure:
        return failure.strerror or str(failure)
    return None
