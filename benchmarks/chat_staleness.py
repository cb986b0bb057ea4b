"""Cost of old samples on a real model: the runs of `offbeat sweep chat-staleness`, and their models compared.

    offbeat sweep chat-staleness
    python -m benchmarks.chat_staleness runs/chat-staleness [--answers 8] [--output FILE]

Reads each run's summary. Then, for each seed, `offbeat compare` lets all its final models answer the held-out prompts,
and the judge compares the answers. Intervals are over prompts; the models of a seed answer the same ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from launch.output.summary import package_versions

KEPT = ("updates", "wall_seconds", "reward", "win_rate", "kl", "staleness", "time_budget", "ties", "tokens_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="directory of the sweep")
    parser.add_argument("--answers", type=int, default=8, help="of each model to a prompt; 0: no comparison")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/chat_staleness.json"))
    arguments = parser.parse_args()
    summaries = {
        path.parent: json.loads(path.read_text("utf-8")) for path in arguments.sweep.glob("runs/*/*/summary.json")
    }
    done = {run: each for run, each in sorted(summaries.items()) if each["status"] == "completed"}
    result: dict[str, Any] = {"machine": record.machine(), "versions": package_versions()}
    result["runs"] = [
        {"row": run.parent.name, "seed": _seed(run), **{key: summary[key] for key in KEPT}}
        for run, summary in done.items()
    ]
    result["comparisons"] = []
    for seed in sorted(set(map(_seed, done))) if arguments.answers else ():
        own = [run for run in done if _seed(run) == seed]
        found = _compared(own, arguments.answers)
        result["comparisons"].append({"seed": seed, **found, "models": [run.parent.name for run in own]})
    record.write(arguments.output, result)


def _seed(run: Path) -> int:
    return int(run.name.removeprefix("seed-"))


def _compared(runs: list[Path], answers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "matrix.json"
        command = [sys.executable, "-m", "launch", "compare", *map(str, runs)]
        subprocess.run([*command, "--answers", str(answers), "--output", str(path)], check=True)
        return dict(json.loads(path.read_text("utf-8")))


if __name__ == "__main__":
    main()
