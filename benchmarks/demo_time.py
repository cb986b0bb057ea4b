"""The demo's time, now and at another commit, in turns on one machine.

    git worktree add --detach BEFORE COMMIT
    python -m benchmarks.demo_time --before BEFORE [--rounds 2] [--set KEY=VALUE ...]

Each demo runs in a checkout of its own, with the packages of this Python. Of each: wall time of the whole command, of
the supervised start and of both runs, and what the learner, the generator and the judge did in them by their clocks. A
learner's seconds per update are those of its training alone, publications and evaluations not counted.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

NOW, BEFORE = "now", "before"
ROUTES = ("bradley-terry", "nash-md")


def run_demo(checkout: Path, output: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Run one demo in `checkout`. Raises SystemExit with its last words if it fails."""
    command = [sys.executable, "-m", "launch", "demo", *settings, "--output", str(output)]
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"the demo of {checkout} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    whole = read(output)
    return {
        "seconds": seconds,
        "start_seconds": whole["sft_seconds"],
        "routes": {name: figures(read(output / name)) | whole["routes"][name] for name in ROUTES},
    }


def read(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the times in a run's summary."""
    budget = summary["time_budget"]
    return {
        "seconds": summary["wall_seconds"],
        "groups_per_second": summary["groups_per_second"],
        "update_seconds": budget["learner"]["training"] / summary["updates"],
        "budget": budget,
    }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Over rounds: seconds of both, and ratios within a round."""

    def median(value: Any) -> float:
        return round(statistics.median(value(each) for each in rounds), 3)

    def update(each: dict[str, Any], side: str, route: str) -> float:
        return each[side]["routes"][route]["update_seconds"]

    values = {f"{side}, seconds": median(lambda each, side=side: each[side]["seconds"]) for side in (NOW, BEFORE)}
    values["seconds now / before"] = median(lambda each: each[NOW]["seconds"] / each[BEFORE]["seconds"])
    for route in ROUTES:
        values[f"learner of {route}, before / now"] = median(
            lambda each, route=route: update(each, BEFORE, route) / update(each, NOW, route)
        )
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the other commit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of both demos")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/demo_time.json"))
    arguments = parser.parse_args()
    checkouts = {NOW: Path.cwd(), BEFORE: arguments.before.resolve()}
    commits = {
        side: subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True, check=True
        ).stdout.strip()
        for side, path in checkouts.items()
    }
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, arguments.rounds + 1):
            result = {}
            # The first of a round is the other one each time.
            for side in (NOW, BEFORE) if number % 2 else (BEFORE, NOW):
                result[side] = run_demo(checkouts[side], Path(name) / f"{side}-{number}", arguments.set)
                print(f"round {number}, {side}: {result[side]['seconds']:.1f} s", flush=True)
            rounds.append(result)
    result = {"median": medians(rounds), "rounds": rounds, "commits": commits, "settings": arguments.set}
    record.write(arguments.output, result | {"machine": record.machine()})
    print(json.dumps(result["median"], indent=1))


if __name__ == "__main__":
    main()
