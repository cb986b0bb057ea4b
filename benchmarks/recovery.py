"""Recovery: one of two generators is killed; how long until it samples again, and what the learner gets meanwhile.

    python -m benchmarks.recovery [--rounds 5] [--output benchmarks/results/recovery.json]

One run of `offbeat train` that generation limits, on a Ray cluster of two nodes on this host. In each round the second
node is added and its generator joins the run: its start-up, from the first of its process to its first work. It is then
killed at work with -9: its recovery, from the kill to its successor's first work. Learner and other generator go on
meanwhile, so both are times of the same machine under the same load. `share` is the rate of updates during the outage
over half the rate before it: what the one of two generators that is left is good for. The node is lost at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from actors import world
from benchmarks.chaos import Driver
from benchmarks.cluster import Cluster

STEADY_SECONDS = 15.0
"""How long the rate before a kill is measured."""
UPDATES = 100_000
"""More than there is time for; the run is interrupted at the end."""
LONGEST_WAIT = 180.0


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
        "sampling": {"completions_per_prompt": 8, "max_new_tokens": 48},
        "generators": {"count": 2, "min_count": 1, "dtype": "float32", "max_model_len": 64, "max_restarts": 1000},
        "judging": {"judge": {"kind": "function", "path": "benchmarks.overlap:score"}, "missing_eos_score": None},
        "replay": {"prompts_per_update": 8, "max_staleness": 2, "max_attempts": 20},
        "learner": {"dtype": "float32", "zero_stage": 1},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 0},
        "journal": {"enabled": False},
        "cluster": {"address": address},
    }
    path = directory / "recovery.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Rounds:
    def __init__(self, driver: Driver, cluster: Cluster) -> None:
        self._driver = driver
        self._cluster = cluster

    def first(self) -> None:
        """Returns once the generator on the head has fed a few updates."""
        self._until(lambda: self._driver.updates() >= 20, "the first updates")

    def one(self) -> dict[str, float]:
        node = self._cluster.add(cpus=1)
        self._until(lambda: self._cluster.workers(node), "a process of the node")
        started = time.monotonic()
        self._until(lambda: self._cluster.at_work(node), "the generator that joins")
        start_up = time.monotonic() - started

        first, began = self._driver.updates(), time.monotonic()
        time.sleep(STEADY_SECONDS)
        before = (self._driver.updates() - first) / (time.monotonic() - began)

        victim = self._until(lambda: self._cluster.at_work(node), "a generator at work")[0]
        first, killed = self._driver.updates(), time.monotonic()
        victim.kill()
        self._until(lambda: [p for p in self._cluster.at_work(node) if p.pid != victim.pid], "its successor")
        recovery = time.monotonic() - killed
        during = (self._driver.updates() - first) / recovery
        self._cluster.lose(node)
        result = {
            "start_up_seconds": start_up,
            "recovery_seconds": recovery,
            "recovery": recovery / start_up,
            "updates_per_second": before,
            "updates_per_second_during": during,
            "share": during / (before / 2.0),
        }
        print(" ".join(f"{name} {value:.2f}" for name, value in result.items()), flush=True)
        return result

    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + LONGEST_WAIT
        while not (result := condition()):
            if self._driver.code is not None or time.monotonic() > deadline:
                raise SystemExit(f"gave up waiting for {what}; exit code {self._driver.code}")
            time.sleep(0.05)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery.json"))
    arguments = parser.parse_args()
    from launch.summary import package_versions
    from learner.sft import PolicySize, train_sft

    with tempfile.TemporaryDirectory(prefix="ob") as scratch:
        directory = Path(scratch)
        train_sft(directory / "start", updates=1, seed=0, size=PolicySize(hidden=256, layers=4, heads=8))
        with Cluster(directory, os.environ, cpus=2) as cluster:
            os.environ.update(cluster.environ)
            driver = Driver(configuration(directory, directory / "start", cluster.address), directory / "run.log")
            driver.start()
            try:
                rounds = Rounds(driver, cluster)
                rounds.first()
                result: dict[str, Any] = {"rounds": [rounds.one() for _ in range(arguments.rounds)]}
            finally:
                driver.end()
    for name in ("recovery", "share"):
        result[f"median_{name}"] = statistics.median(each[name] for each in result["rounds"])
    result["machine"] = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    result["versions"] = package_versions()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"median recovery {result['median_recovery']:.2f} of a start-up, share {result['median_share']:.2f}")


if __name__ == "__main__":
    main()
