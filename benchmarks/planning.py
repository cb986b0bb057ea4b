"""Predictions of `offbeat plan` for other runs, from one and from two, beside their measured figures.

    python -m benchmarks.planning [--work DIR] [--output benchmarks/results/planning.json] [PLAN OPTION ...]

Five runs of the embedded world differ from the one that calibrates in generators and in the bound on staleness; a sixth
differs in the size of an update too. Each has a run to calibrate right before it, and one for `--with` right after it:
a machine whose speed drifts is then as fast for all three. `--cores` of `offbeat plan` is what two busy processes get
of this machine, less what the driver, the judge and Ray took of it in one more run. Options that are not this script's
go to `offbeat plan`.
Run it alone on a machine: what else runs there takes from one run and not from another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import record
from launch.output.summary import package_versions

BASE = (
    "embedded",
    "updates=80",
    "cluster.num_cpus=4",
    "checkpoints.every_updates=0",
    "evaluation.every_updates=0",
    "evaluation.prompts=0",
)
SECOND = ("generators.count=2", "replay.prompts_per_update=16")
RUNS: dict[str, tuple[str, ...]] = {
    "1 generator, S = 0": ("replay.max_staleness=0",),
    "1 generator, S = 8": ("replay.max_staleness=8",),
    "2 generators, S = 1": ("generators.count=2", "replay.max_staleness=1"),
    "2 generators, S = 4": ("generators.count=2", "replay.max_staleness=4"),
    "3 generators, S = 2": ("generators.count=3",),
    "1 generator, S = 4, half the prompts": ("replay.max_staleness=4", "replay.prompts_per_update=16"),
}
"""Settings beside those of `BASE`: of the run for `--with`, and of each run to predict."""
MODELLED = ("ray::RemoteGenerator", "ray::LearnerWorker")
FIRST, LAST = 5, 78  # updates between which the others are observed
WORK = "import time, torch; torch.set_num_threads(1); a = torch.rand(512, 512); a @ a; t = time.perf_counter()\n"
WORK += "for _ in range(400): a @ a\nprint(time.perf_counter() - t)"


def cores() -> float:
    """Measure how many times the work of one busy process two get done in its time."""

    def seconds(processes: int) -> float:
        command = [sys.executable, "-c", WORK]
        started = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE) for _ in range(processes)]
        return max(float(each.communicate()[0]) for each in started)

    return 2.0 * min(seconds(1) for _ in range(3)) / min(seconds(2) for _ in range(3))


def start(directory: Path) -> str:
    """Train the policy that all runs start from, once; return the setting that names it."""
    from learner.world.policy import train_sft

    if not (directory / "config.json").is_file():
        train_sft(directory, updates=300, seed=0)
    return f"model.path={directory}"


def others(directory: Path, policy: str) -> float:
    """Train once more; return the cores that all processes but generators and learner keep busy while it learns."""
    command = [sys.executable, "-m", "launch", "train", *BASE, policy, f"output={directory}"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[tuple[float, dict[int, float]]] = []
    while driver.poll() is None:
        lines = (directory / "metrics.jsonl").read_text().count("\n") if (directory / "metrics.jsonl").is_file() else 0
        if FIRST <= lines <= LAST:
            seen.append((time.monotonic(), _cpu_seconds(psutil.Process(driver.pid))))
        time.sleep(0.5)
    (begin, before), (end, after) = seen[0], seen[-1]
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items()) / (end - begin)


def _cpu_seconds(driver: psutil.Process) -> dict[int, float]:
    found = {}
    for process in (driver, *driver.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if not " ".join(process.cmdline()).startswith(MODELLED):
                found[process.pid] = sum(process.cpu_times()[:2])
    return found


def offbeat(*arguments: str) -> str:
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def compared(base: Path, other: Path, options: Sequence[str]) -> dict[str, Any]:
    """Return what `other` measured, what `offbeat plan` predicts of it from `base`, and the errors."""
    told = json.loads(offbeat("plan", str(base), "--against", str(other), "--json", *options))
    return {"errors": told["errors"], "outcomes": told["outcomes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="directory of the runs, kept; unset: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/planning.json"))
    arguments, options = parser.parse_known_args()
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        policy = start(work / "start")
        if "--cores" not in options:
            measured = {"two busy processes": cores(), "others": others(Path(scratch) / "observed", policy)}
            options += ["--cores", f"{measured['two busy processes'] - measured['others']:.2f}"]
        alone, both, calibrating = {}, {}, {}
        for number, (name, settings) in enumerate(RUNS.items()):
            base, other, second = (work / f"run{number}-{part}" for part in ("base", "other", "second"))
            for directory, wanted in ((base, ()), (other, settings), (second, SECOND)):
                if not (directory / "summary.json").is_file():
                    offbeat("train", *BASE, policy, *wanted, f"output={directory}")
            calibrating[name] = json.loads((base / "summary.json").read_text())["groups_per_second"]
            alone[name] = compared(base, other, options)
            both[name] = compared(base, other, [*options, "--with", str(second)])
    result = {
        "machine": record.machine(),
        "versions": package_versions(),
        "settings": {"base": BASE, "second": SECOND, "runs": RUNS, "options": options},
        "cores": measured,
        "calibrating groups per second": calibrating,
        "runs": alone,
        "runs_with_second": both,
    }
    record.write(arguments.output, result)
    for name, row in alone.items():
        print(f"{name:<40} {row['errors']['groups_per_second']:+.1%} {both[name]['errors']['groups_per_second']:+.1%}")


if __name__ == "__main__":
    main()
