"""Recovery: one of two generators is killed; how long until it samples again, and what the learner gets meanwhile.

    python -m benchmarks.recovery [--runs 6] [--kills 1] [--output benchmarks/results/recovery.json]

Runs of `offbeat train` that generation limits. The second generator has no room at first and joins while the run goes
on: its start-up, from the first of its process to its first work. Then it is killed with -9 when it is at work, again
and again: its recovery, from the kill to its successor's first work. The learner and the other generator go on
meanwhile, so both are times of one machine under one load. `share` is the rate of updates during the outage over half
the rate before it: what the one of two generators that is left is good for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from actors import world
from benchmarks import record
from benchmarks.chaos import Driver
from benchmarks.cluster import Cluster

STEADY_SECONDS = 15.0
"""Length of the measurement of the rate before a kill."""
UPDATES = 100_000
"""More than there is time for; the run is interrupted at the end."""
LONGEST_WAIT = 180.0
HOLD_A_CORE = """
import sys, ray

class Holder:
    def held(self): return True

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
holder = ray.remote(Holder).options(num_cpus=1).remote()
print(ray.get(holder.held.remote()), flush=True)
sys.stdin.read()
"""


def configuration(directory: Path, model: Path, address: str) -> Path:
    """A run on CPU of two generators, in which sampling costs more than learning."""
    prompts = directory / "prompts.jsonl"
    words = [word for word in world.VOCABULARY if word.isalpha()]
    prompts.write_text("".join(json.dumps({"prompt": words[n % len(words)]}) + "\n" for n in range(256)))
    document = {
        "model": {"path": str(model)},
        "updates": UPDATES,
        "output": str(directory / "run"),
        "prompts": {"source": str(prompts), "max_prompt_tokens": 8},
        "sampling": {"completions_per_prompt": 32, "max_new_tokens": 48},
        "generators": {"count": 2, "min_count": 1, "dtype": "float32", "max_model_len": 64, "max_restarts": 1000},
        "judging": {"judge": {"kind": "function", "path": "benchmarks.overlap:score"}, "missing_eos_score": None},
        "replay": {"prompts_per_update": 8, "max_staleness": 2, "max_attempts": 20},
        # So small a step that completions stay as long as they are: the load must not drift.
        "learner": {"dtype": "float32", "zero_stage": 1, "optimizer": {"lr": 1e-12}},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 0},
        "journal": {"enabled": False},
        "cluster": {"address": address},
    }
    path = directory / "recovery.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Run:
    """One run on a cluster of its own, with room for one generator until `join`."""

    def __init__(self, driver: Driver, cluster: Cluster) -> None:
        self._driver = driver
        self._cluster = cluster
        self._holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_A_CORE, cluster.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            raise SystemExit("the core of the second generator could not be held")
        driver.start()
        self._until(lambda: driver.updates() >= 20, "the first updates")

    def join(self) -> float:
        """Gives the second generator room; returns seconds from the first of its process to its first work."""
        known = self._pids()
        self._holder.kill()
        self._holder.wait()
        joined = self._until(lambda: self._at_work_but(known), "the generator that joins")[0]
        return time.time() - float(joined.create_time())

    def kill(self) -> dict[str, float]:
        """Kills the generator that started last."""
        before = self._rate(STEADY_SECONDS)
        victim = max(self._until(lambda: self._both(), "both generators"), key=lambda process: process.create_time())
        known = self._pids()
        first, killed = self._driver.updates(), time.monotonic()
        victim.kill()
        self._until(lambda: self._at_work_but(known), "its successor")
        seconds = time.monotonic() - killed
        during = (self._driver.updates() - first) / seconds
        return {
            "recovery_seconds": seconds,
            "updates_per_second": before,
            "updates_per_second_during": during,
            "share": during / (before / 2.0),
        }

    def _rate(self, seconds: float) -> float:
        first, began = self._driver.updates(), time.monotonic()
        time.sleep(seconds)
        return (self._driver.updates() - first) / (time.monotonic() - began)

    def _pids(self) -> set[int]:
        return {process.pid for process in self._cluster.workers()}

    def _both(self) -> list[psutil.Process]:
        found = self._cluster.titled("ray::RemoteGenerator")
        return found if len(found) == 2 else []

    def _at_work_but(self, known: set[int]) -> list[psutil.Process]:
        return [process for process in self._cluster.at_work() if process.pid not in known]

    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + LONGEST_WAIT
        while not (result := condition()):
            if self._driver.code is not None or time.monotonic() > deadline:
                raise SystemExit(f"gave up waiting for {what}; exit code {self._driver.code}")
            time.sleep(0.05)
        return result


def measure(directory: Path, kills: int) -> dict[str, Any]:
    """One run in `directory`, which holds the model."""
    with Cluster(directory, os.environ, cpus=3) as cluster:
        os.environ.update(cluster.environ)
        driver = Driver(configuration(directory, directory / "start", cluster.address), directory / "run.log")
        try:
            run = Run(driver, cluster)
            start_up = run.join()
            rounds = [run.kill() for _ in range(kills)]
        finally:
            driver.end()
    for each in rounds:
        each["recovery"] = each["recovery_seconds"] / start_up
    print(f"start-up {start_up:.1f} s,", *(f"recovery {each['recovery_seconds']:.1f} s" for each in rounds), flush=True)
    return {"start_up_seconds": start_up, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=1, help="in each run")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery.json"))
    arguments = parser.parse_args()
    from launch.output.summary import package_versions
    from learner.world.policy import PolicySize, train_sft

    runs = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="ob") as scratch:
            train_sft(Path(scratch) / "start", updates=1, seed=0, size=PolicySize(hidden=256, layers=4, heads=8))
            runs.append(measure(Path(scratch), arguments.kills))
    rounds = [each for run in runs for each in run["rounds"]]
    result = {
        "runs": runs,
        "median_start_up_seconds": statistics.median(run["start_up_seconds"] for run in runs),
        **{f"median_{name}": statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "machine": record.machine(),
        "versions": package_versions(),
    }
    record.write(arguments.output, result)
    print(f"median recovery {result['median_recovery']:.2f} of a start-up, share {result['median_share']:.2f}")


if __name__ == "__main__":
    main()
