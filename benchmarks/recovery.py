"""Recovery: one of two generators is killed; how long until it samples again, and what the learner gets meanwhile.

    python -m benchmarks.recovery [--rounds 5] [--output benchmarks/results/recovery.json]

One run of `offbeat train` that generation limits. A round kills a generator at work with -9 and waits until its
successor is at work. `recovery` is the time between, over the start-up of the generators at the run's beginning, which
also is from a process that is there to one that samples. `share` is the rate of updates during the outage over half the
rate before it: what the one of two generators that is left is good for.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from actors import world
from benchmarks.chaos import Driver

GENERATOR, AT_WORK = "ray::RemoteGenerator", "ray::RemoteGenerator.collect"
STEADY_SECONDS = 15.0
"""How long the rate before a kill is measured."""
UPDATES = 100_000
"""More than there is time for; the run is interrupted at the end."""


def configuration(directory: Path, model: Path) -> Path:
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
        "generators": {"count": 2, "dtype": "float32", "max_model_len": 64, "max_restarts": 1000},
        "judging": {"judge": {"kind": "function", "path": "benchmarks.overlap:score"}, "missing_eos_score": None},
        "replay": {"prompts_per_update": 8, "max_staleness": 2, "max_attempts": 20},
        "learner": {"dtype": "float32", "zero_stage": 1},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 0},
        "journal": {"enabled": False},
        "cluster": {"address": "local", "num_cpus": 3, "object_store_mib": 128},
    }
    path = directory / "recovery.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Watch:
    """Generators and updates of a run, looked at from outside."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.updates = driver.updates

    def generators(self, title: str) -> dict[int, psutil.Process]:
        """By process id, those whose title begins with `title`."""
        found = {}
        for process in self._driver.running():
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    found[process.pid] = process
        return found

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            if self._driver.code is not None or time.monotonic() > deadline:
                raise SystemExit(f"gave up waiting for {what}; exit code {self._driver.code}")
            time.sleep(0.05)
        return result


def measure(driver: Driver, rounds: int) -> dict[str, Any]:
    watch = Watch(driver)
    driver.start()
    watch.until(lambda: len(watch.generators(GENERATOR)) == 2, "two generators")
    started = time.monotonic()
    watch.until(lambda: len(watch.generators(AT_WORK)) == 2, "two generators at work")
    start_up = time.monotonic() - started
    print(f"start-up {start_up:.1f} s", flush=True)
    return {"start_up_seconds": start_up, "rounds": [_round(watch, start_up) for _ in range(rounds)]}


def _round(watch: Watch, start_up: float) -> dict[str, float]:
    first, began = watch.updates(), time.monotonic()
    time.sleep(STEADY_SECONDS)
    before = (watch.updates() - first) / (time.monotonic() - began)
    alive = watch.until(lambda: watch.generators(AT_WORK), "a generator at work")
    everyone = set(watch.generators(GENERATOR))
    victim = next(iter(alive.values()))
    first, killed = watch.updates(), time.monotonic()
    victim.kill()
    watch.until(lambda: set(watch.generators(AT_WORK)) - everyone, "the successor at work")
    seconds = time.monotonic() - killed
    during = (watch.updates() - first) / seconds
    result = {
        "recovery_seconds": seconds,
        "recovery": seconds / start_up,
        "updates_per_second": before,
        "updates_per_second_during": during,
        "share": during / (before / 2.0),
    }
    print(" ".join(f"{name} {value:.2f}" for name, value in result.items()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery.json"))
    arguments = parser.parse_args()
    from launch.summary import package_versions
    from learner.sft import PolicySize, train_sft

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        train_sft(directory / "start", updates=1, seed=0, size=PolicySize(hidden=256, layers=4, heads=8))
        driver = Driver(configuration(directory, directory / "start"), directory / "run.log")
        try:
            result = measure(driver, arguments.rounds)
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
