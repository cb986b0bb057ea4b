"""Whole runs of the pages: commands as a user gives them, and what the last one's summary says.

python -m benchmarks.whole_runs {on_policy,calculator} [--work DIR] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import record
from launch.output.summary import package_versions

RUNS = {
    "on_policy": (("launch", "train", "embedded", "replay.max_staleness=0", "updates=100", "--output", "runs/last"),),
    "calculator": (
        ("examples.calculator.make",),
        ("launch", "sft", "examples/calculator/sft.yaml"),
        ("launch", "train", "examples/calculator/train.yaml", "--output", "runs/last"),
    ),
}
CHECKOUT = Path(__file__).resolve().parent.parent


def run(commands: tuple[tuple[str, ...], ...], work: Path) -> list[float]:
    """Run modules one after the other in `work`; return their seconds. Raises CalledProcessError."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "examples").exists():
        (work / "examples").symlink_to(CHECKOUT / "examples")
    seconds = []
    for command in commands:
        started = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        subprocess.run([sys.executable, "-m", *command], cwd=work, env=environment, check=True)
        seconds.append(time.monotonic() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--work", type=Path, help="directory to run in, kept; unset: a temporary one")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    commands = RUNS[arguments.name]
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        seconds = run(commands, work)
        summary = json.loads((work / "runs" / "last" / "summary.json").read_text())
    result = {
        "machine": record.machine(),
        "versions": package_versions(),
        "commands": [" ".join(("python -m", *command)) for command in commands],
        "seconds": seconds,
        "summary": {key: value for key, value in summary.items() if key != "output"},
    }
    record.write(arguments.output or CHECKOUT / "benchmarks" / "results" / f"{arguments.name}.json", result)


if __name__ == "__main__":
    main()
