"""Sweeps of two rows, a stand-in for `offbeat train` that leaves what a run leaves, and outcomes of given figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.sweep.config import SweepConfig
from launch.sweep.plan import PlannedRun, plan_rows, plan_runs
from launch.sweep.results import Outcome, Point

TRAIN = """
import json, pathlib, signal, sys, time

directory, seed, label, resumed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
behaviour = json.loads(sys.argv[5]).get(label, "ends")
directory.mkdir(parents=True, exist_ok=True)
(directory / "config.yaml").write_text("name: run")
print(f"starts {'again' if resumed else 'anew'}", flush=True)


def summary(status, **more):
    written = {"status": status, "updates": 20, "wall_seconds": 10.0 + seed, **more}
    (directory / "summary.json").write_text(json.dumps(written))


def stop(number, frame):
    summary("interrupted")
    print("offbeat: interrupted", flush=True)
    sys.exit(130)


if behaviour == "refuses":
    print("offbeat: error: no GPU is free; wait\\n`offbeat train --help` lists every setting", file=sys.stderr)
    sys.exit(2)
if behaviour == "fails" and not resumed:
    summary("failed", error="the disk is full")
    print("offbeat: error: the disk is full; free space there\\nfull traceback in error.txt", file=sys.stderr)
    sys.exit(1)
if behaviour == "waits" and not resumed:
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    (directory / "waiting").touch()
    time.sleep(60)
value = 0.1 * (int(label) + 1) + 0.01 * seed
lines = [{"step": step, "tokens": 100, "exploitability": value + 0.1 / step} for step in (10, 20)]
(directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
summary("completed", exploitability_tail=value, exact_kl=2.0 + seed, preference=0.7)
"""


def sweep_file(directory: Path, **changes: Any) -> str:
    """Writes a sweep of the rows `staleness=0` and `staleness=4`, with the seeds 0 and 1."""
    tree: dict[str, Any] = {
        "name": "small",
        "base": "embedded-nash-md",
        "set": {"updates": 20},
        "axes": {"staleness": {"replay.max_staleness": [0, 4]}},
        "seeds": [0, 1],
        "output": str(directory / "sweep"),
    }
    path = directory / "sweep-file.yaml"
    path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return str(path)


def runs_of(sweep: SweepConfig) -> list[PlannedRun]:
    return plan_runs(sweep, plan_rows(sweep), sweep.directory)


class FakeTrain:
    """The command of a stand-in; `behaviours` by label of `staleness`: it `fails`, `refuses`, `waits`, or just ends."""

    def __init__(self, directory: Path, **behaviours: str) -> None:
        self.behaviours = {label.removeprefix("_"): behaviour for label, behaviour in behaviours.items()}
        self.started: list[tuple[str, bool]] = []
        self._script = directory / "train_stand_in"
        self._script.write_text(TRAIN)

    def __call__(self, run: PlannedRun) -> list[str]:
        resumed = (run.directory / "config.yaml").is_file()
        self.started.append((run.name, resumed))
        label = run.row.labels["staleness"]
        words = [str(run.directory), str(run.seed), label, str(resumed), json.dumps(self.behaviours)]
        return [sys.executable, "-S", str(self._script), *words]


def outcome(label: str, seed: int, figures: Mapping[str, float], **more: Any) -> Outcome:
    """A completed run of the row `loss=LABEL`."""
    labels = more.pop("labels", {"loss": label})
    name = ",".join(f"{axis}={value}" for axis, value in labels.items())
    known = {"status": "completed", "directory": f"runs/{name}/seed-{seed}"} | more
    return Outcome(row=name, labels=labels, seed=seed, figures=dict(figures), **known)


def curve(*points: tuple[int, float, float], name: str = "exploitability") -> Sequence[Point]:
    """Points of update, tokens and value."""
    return [Point(update, tokens, {name: value}) for update, tokens, value in points]
