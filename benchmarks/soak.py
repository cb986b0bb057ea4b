"""Soak: one long run that publishes after every update; does any of its processes grow?

    python -m benchmarks.soak [--updates 5000] [--output benchmarks/results/soak.json]

A run of `offbeat train` on the embedded world: one generator, one judge with a function of its own, one learner rank.
Every few seconds each process of the run is asked what it has allocated, what it alone holds (USS), its share of what
it shares (PSS), its open descriptors and its threads; the run's folder in /dev/shm is counted too. A role is all
processes of one kind, and its figures are their sums. The first tenth of the updates is warming up. A role is flat if
the median of its allocated memory over the last tenth is at most 2%, or a MiB, above the median over the second tenth,
and the median of its descriptors no higher. USS is reported beside it: pages of Ray's object store, which is of one
size, count there for whoever happens to be the only one that maps them, tens of MiB that come and go.
Exits with 1 if a role has grown or could not be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import record
from benchmarks.chaos import Driver

SHARE = 0.1
"""Share of the updates in the warm-up, and in each of the two windows that are compared."""
MOST_GROWTH = 0.02
"""Largest growth of a role's memory between the two windows, as a share."""
PAGES_KIB = 1024
"""Growth that is no growth: the raylet and the GCS, of 16 and 28 MiB, go up and down by as much."""
SECONDS = 2.0
"""Time between two samples."""
ROLES = {
    "ray::RemoteGenerator": "generator",
    "VLLM::": "engine core",
    "ray::JudgeWorker": "judge",
    "ray::LearnerWorker": "learner",
    "ray::": "idle workers",
}
"""Roles by the beginning of a process's title."""
PROGRAMS = {"raylet": "raylet", "gcs_server": "gcs"}
"""Roles by the name of the program."""
FUNCTION = "actors.judges.functions"
"""Module in the command of a judge function's process and of its supervisor."""
WHOLE_RUN = ("supervisor", "driver", "generator", "judge", "judge function", "learner", "raylet", "gcs", "ray's agents")
"""Roles that every run has from its start to its end; others may come and go."""
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, slots=True)
class Figures:
    """Resources of one process, or of all processes of a role."""

    allocated_kib: int = 0
    """Anonymous memory: no file's, no shared memory."""
    uss_kib: int = 0
    """Memory that would be free if it ended."""
    pss_kib: int = 0
    descriptors: int = 0
    threads: int = 0
    processes: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all processes of a run."""

    seconds: float
    """Since its start."""
    updates: int
    roles: Mapping[str, Figures]
    shared: tuple[int, int]
    """Bytes and files of the run's folder in /dev/shm."""


def score(prompt: Any, completions: Sequence[Any]) -> list[float]:
    """A judge's function that costs nothing: a fixed pseudo-random score of the tokens."""
    return [float(sum(token * (place + 1) for place, token in enumerate(c.token_ids)) % 997) for c in completions]


def configuration(directory: Path, model: Path, updates: int) -> Path:
    """A small run on CPU that does everything every update, written to `directory`."""
    document = {
        "model": {"path": str(model)},
        "updates": updates,
        "output": str(directory / "run"),
        "prompts": {"source": "world", "max_prompt_tokens": 4},
        "sampling": {"completions_per_prompt": 2, "max_new_tokens": 4},
        "generators": {"count": 1, "dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64},
        "judging": {"judge": {"kind": "function", "path": "benchmarks.soak:score"}},
        "replay": {"prompts_per_update": 4, "max_staleness": 2, "updates_per_publish": 1},
        # So small a step that completions stay as long as they are: the load must not drift.
        "learner": {"dtype": "float32", "zero_stage": 1, "optimizer": {"lr": 1e-9}},
        "publication": {"transport": "shm", "canary_tokens": 4},
        "checkpoints": {"every_updates": max(1, updates // 20)},
        "evaluation": {"prompts": 0, "exact_every_updates": 0},
        "cluster": {"address": "local", "num_cpus": 4, "object_store_mib": 128},
    }
    path = directory / "soak.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def role(command: Sequence[str], is_supervisor: bool, is_its_child: bool) -> str:
    """Name what a process of the run is for; `other: ` and its program if it is none of the known."""
    if is_supervisor:
        return "supervisor"
    title, program = " ".join(command), Path(command[0].split(" ")[0]).name if command else ""
    known = next((name for beginning, name in ROLES.items() if title.startswith(beginning)), None)
    if known or program in PROGRAMS:
        return known or PROGRAMS[program]
    if FUNCTION in title:
        return "judge function"
    if is_its_child and "-m launch train" in title:
        return "driver"
    return "ray's agents" if "/ray/" in title or title.startswith("ray-") else f"other: {program}"


def look(process: psutil.Process) -> Figures:
    """Ask one process; psutil.Error or OSError if it is gone."""
    allocated, uss, pss = memory(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
    return Figures(allocated, uss, pss, process.num_fds(), process.num_threads(), 1)


def memory(rollup: str) -> tuple[int, int, int]:
    """Allocated memory, USS and PSS of the kernel's account of a process (KiB)."""
    kib = {name: int(number) for name, number in re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
    return kib["Anonymous"], kib["Private_Clean"] + kib["Private_Dirty"], kib["Pss"]


def look_at_all(driver: Driver, run: Path, started: float) -> Sample:
    """One sample of a run in progress."""
    updates, found = driver.updates(), dict[str, Figures]()
    for process in driver.running():
        with suppress(psutil.Error, OSError, KeyError):
            name = role(process.cmdline(), process.pid == driver.pid, process.ppid() == driver.pid)
            found[name] = found.get(name, Figures()) + look(process)
    return Sample(time.monotonic() - started, updates, found, shared_memory(run))


def shared_memory(run: Path, root: Path = Path(SHARED_MEMORY)) -> tuple[int, int]:
    """Bytes and files of a run's folder in shared memory, told by the run that its lock names."""
    sizes = []
    for folder in root.glob("offbeat-*"):
        with suppress(OSError):
            if (folder / ".lock").read_text().strip() == str(run.absolute()):
                sizes += list(_sizes(folder))
    return sum(sizes), len(sizes)


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the sizes of all files below `folder`, except those that go meanwhile."""
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                yield path.stat().st_size


def windows(samples: Sequence[Sample], updates: int) -> tuple[list[Sample], list[Sample]]:
    """The samples of the second tenth of the updates, and of the last, until the last is made: then the run ends."""
    length = SHARE * updates
    early = [each for each in samples if length <= each.updates < 2 * length]
    late = [each for each in samples if updates - length <= each.updates < updates]
    return early, late


def verdict(name: str, samples: Sequence[Sample], updates: int) -> dict[str, Any]:
    """Compare a role's two windows; `flat` is None for a role that is missing in either."""
    early, late = ([each for each in window if name in each.roles] for window in windows(samples, updates))
    if not early or not late:
        return {"samples": [len(early), len(late)], "flat": None}
    medians = {
        figure: [statistics.median(getattr(each.roles[name], figure) for each in window) for window in (early, late)]
        for figure in ("allocated_kib", "uss_kib", "descriptors", "processes")
    }
    (before, after), descriptors = medians["allocated_kib"], medians["descriptors"]
    later = [each for each in samples if name in each.roles and each.updates >= SHARE * updates]
    rise = slope([each.updates for each in later], [each.roles[name].allocated_kib for each in later])
    return {
        "samples": [len(early), len(late)],
        **medians,
        "growth_percent": round(100.0 * (after / before - 1.0), 3),
        "kib_per_1000_updates": round(1000.0 * rise, 1),
        "flat": after - before <= max(MOST_GROWTH * before, PAGES_KIB) and descriptors[1] <= descriptors[0],
    }


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of `ys` over `xs`; 0 if all `xs` are equal."""
    mean = statistics.fmean(xs)
    spread = sum((x - mean) ** 2 for x in xs)
    return sum((x - mean) * y for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def shared_verdict(samples: Sequence[Sample], updates: int) -> dict[str, Any]:
    """Compare the most bytes and files in shared memory: how much there is changes within an update."""
    early, late = windows(samples, updates)
    if not early or not late:
        return {"samples": [len(early), len(late)], "flat": None}
    sizes, files = ([max(each.shared[n] for each in window) for window in (early, late)] for n in (0, 1))
    return {"bytes": sizes, "files": files, "flat": files[1] <= files[0] and sizes[1] <= (1.0 + MOST_GROWTH) * sizes[0]}


def columns(samples: Sequence[Sample]) -> dict[str, Any]:
    """All samples, one line of text per figure, so that thousands of numbers stay readable."""
    names = sorted({name for each in samples for name in each.roles})
    return {
        "seconds": _line(round(each.seconds) for each in samples),
        "updates": _line(each.updates for each in samples),
        "shared_bytes": _line(each.shared[0] for each in samples),
        "shared_files": _line(each.shared[1] for each in samples),
        "roles": {
            name: {
                each.name: _line(getattr(sample.roles.get(name, Figures()), each.name) for sample in samples)
                for each in fields(Figures)
            }
            for name in names
        },
    }


def _line(values: Iterator[int]) -> str:
    return " ".join(map(str, values))


def watch(driver: Driver, run: Path) -> list[Sample]:
    """Samples of a run until it ends; the first is taken at its first update."""
    samples, started = [], time.monotonic()
    while driver.code is None:
        time.sleep(SECONDS)
        sample = look_at_all(driver, run, started)
        if sample.updates and driver.code is None:
            samples.append(sample)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak.json"))
    arguments = parser.parse_args()
    from launch.output.summary import package_versions
    from learner.world.policy import train_sft

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        train_sft(directory / "start", updates=30, seed=0)
        config = configuration(directory, directory / "start", arguments.updates)
        driver, started = Driver(config, arguments.output.with_suffix(".log")), time.monotonic()
        driver.start()
        try:
            samples = watch(driver, directory / "run")
        finally:
            driver.end()
        summary = json.loads((directory / "run" / "summary.json").read_text())
    wall = time.monotonic() - started
    roles = {
        name: verdict(name, samples, arguments.updates)
        for name in sorted({*WHOLE_RUN, *(name for each in samples for name in each.roles)})
    }
    everything = roles | {"shared memory": shared_verdict(samples, arguments.updates)}
    result = {
        "updates": summary["updates"],
        "status": summary["status"],
        "wall_seconds": wall,
        "updates_per_second": _rate(samples),
        "roles": roles,
        "shared_memory": everything["shared memory"],
        "grown": [name for name, found in everything.items() if found["flat"] is False],
        "unjudged": [name for name in (*WHOLE_RUN, "shared memory") if everything[name]["flat"] is None],
        "machine": record.machine() | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": package_versions(),
    }
    record.write(arguments.output, result | {"samples": columns(samples)})
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["grown"] or result["unjudged"] or summary["status"] != "completed" else 0)


def _rate(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.updates - first.updates) / max(last.seconds - first.seconds, 1e-9)


if __name__ == "__main__":
    main()
