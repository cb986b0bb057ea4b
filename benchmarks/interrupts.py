"""Interrupts: eight signals at four moments of `train`, `sft` and `dpo`; what each run says, saves and leaves.

    python -m benchmarks.interrupts [--verbs train] [--moments first] [--signals SIGINT] [--most 8] [--again]
                                    [--output benchmarks/results/interrupts.json]

Every signal asks for the same: one checkpoint and exit code 130, or "nothing to save". Runs that have made all updates
may complete instead. `pipe` is Ctrl-C in a pipeline whose reader dies of it first. Trials that the result has already
are skipped, unless they failed and `--again` is given. Exits with 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import record

MARK = "OFFBEAT_INTERRUPTS"
VERBS = ("train", "sft", "dpo")
PIPE, TO_PROCESS, TO_GROUP = "pipe", "process", "group"
SIGNALS = {
    "SIGINT": (signal.SIGINT, TO_PROCESS),
    "SIGINT, pipe": (signal.SIGINT, PIPE),
    "SIGTERM": (signal.SIGTERM, TO_PROCESS),
    "SIGTERM, group": (signal.SIGTERM, TO_GROUP),
    "SIGHUP": (signal.SIGHUP, TO_GROUP),
    "SIGXCPU": (signal.SIGXCPU, TO_PROCESS),
    "SIGUSR1": (signal.SIGUSR1, TO_GROUP),
    "SIGQUIT": (signal.SIGQUIT, TO_GROUP),
}
"""Signal, and to whom: as a terminal, `kill`, `timeout`, a closed terminal, a limit of CPU time and Slurm send it."""
MOMENTS = ("starting", "first", "mid", "final")
"""Before Ray is up; at the first update; a few updates later; after the last one, while the run evaluates and saves."""
UPDATES = {"train": 100_000, "sft": 600, "dpo": 600}
"""Updates that no run reaches before its signal, unless the signal is for the end."""
MANIFEST = "offbeat-manifest.json"
LONGEST = 400.0
ORPHAN_SECONDS = 10.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Trial:
    """One run with one signal."""

    verb: str
    moment: str
    signal: str

    @property
    def name(self) -> str:
        """Key of the trial in the result."""
        return f"{self.verb} | {self.moment} | {self.signal}"


def configuration(trial: Trial, directory: Path, model: Path) -> Path:
    """Write the run's configuration to `directory`; return its path."""
    ends = trial.moment == "final"
    document: dict[str, Any] = {
        "output": str(directory / "run"),
        "model": {"path": str(model)},
        "learner": {"dtype": "float32", "zero_stage": 1},
        "checkpoints": {"every_updates": 0},
        "cluster": {"address": "local", "num_cpus": 2, "object_store_mib": 128},
    }
    if trial.verb == "train":
        document |= {
            "updates": 2 if ends else UPDATES["train"],
            "prompts": {"source": "world", "max_prompt_tokens": 4},
            "sampling": {"completions_per_prompt": 4, "max_new_tokens": 4},
            "generators": {"dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64},
            "replay": {"prompts_per_update": 8, "max_staleness": 1},
            "publication": {"canary_tokens": 16},
            "evaluation": {"prompts": 200 if ends else 4, "exact_every_updates": 0},
        }
        if ends:
            document["generators"]["max_running_prompts"] = 1  # one prompt at a time: a long evaluation
    else:
        rows = directory / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _rows(trial.verb)))
        document |= {
            "data": {"source": str(rows), "validation_fraction": 0.3}
            | ({"max_tokens": 64} if trial.verb == "sft" else {}),
            "training": {"batch_size": 4, "epochs": 1 if ends else 60, "evaluate_every": 0},
        }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _rows(verb: str) -> list[dict[str, str]]:
    answers = ("response",) if verb == "sft" else ("chosen", "rejected")
    return [
        {"prompt": f"{number // 8}+{number % 8}"}
        | {name: f"{(number + place) % 10}" for place, name in enumerate(answers)}
        for number in range(60)
    ]


class Run:
    """`offbeat VERB`, found again by a mark in its processes' environments; its output is a file, through `tee` if
    somebody is to stop reading."""

    def __init__(self, verb: str, config: Path, *more: str, piped: bool = False) -> None:
        self.directory, self.log = config.parent / "run", config.parent / "log"
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch", verb, str(config), *more],
                stdout=subprocess.PIPE if piped else log,
                stderr=subprocess.STDOUT,
                env=environment | {MARK: self.mark},
                process_group=0,
                preexec_fn=_hear_everything,
            )
        self.reader: subprocess.Popen[bytes] | None = None
        if piped:
            with self.log.open("wb") as log:
                self.reader = subprocess.Popen(["tee"], stdin=self.process.stdout, stdout=log)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def updates(self) -> int:
        """Made so far, by the metrics."""
        metrics = self.directory / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return sum('"loss"' in line for line in lines)

    def send(self, number: int, how: str) -> None:
        """Send a signal; for a pipe, its reader dies first."""
        if self.reader is not None:
            self.reader.send_signal(number)
            self.reader.wait()
        with suppress(ProcessLookupError):
            if how == TO_PROCESS:
                self.process.send_signal(number)
            else:
                os.killpg(self.process.pid, number)

    def end(self, seconds: float = LONGEST) -> int:
        """Wait for its end; return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        self.process.kill()
        return self.process.wait()

    def left(self) -> list[str]:
        """Commands of its processes that outlive it; they are killed."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (found := self._running()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        return [process.info["name"] for process in found]

    def _running(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _hear_everything() -> None:
    """Undo what a shell does to what it starts with `&`."""
    for number, _ in SIGNALS.values():
        signal.signal(number, signal.SIG_DFL)


def has_come(trial: Trial, run: Run) -> Callable[[], bool]:
    """Return the condition that holds from the moment of a trial on."""
    if trial.moment == "starting":
        return (run.directory / "config.yaml").is_file
    if trial.moment == "mid":
        return lambda: run.updates() >= 3
    if trial.verb == "train":
        files = {"first": f"evaluation/{MANIFEST}", "final": f"final/{MANIFEST}"}
        return (run.directory / files[trial.moment]).is_file
    if trial.moment == "first":
        return lambda: "update 0/" in run.said()
    return lambda: 0 < run.updates() >= int((re.findall(r"update 0/(\d+)", run.said()) or ["1000000"])[0])


def try_one(trial: Trial, directory: Path, model: Path) -> dict[str, Any]:
    """Run one trial; what was seen, with what is wrong under `wrong`."""
    number, how = SIGNALS[trial.signal]
    config = configuration(trial, directory, model)
    run = Run(trial.verb, config, piped=how == PIPE)
    try:
        come, began = has_come(trial, run), time.monotonic()
        while not come() and run.process.poll() is None and time.monotonic() - began < LONGEST:
            time.sleep(0.02)
        missed = run.process.poll() is not None
        sent = time.monotonic()
        run.send(number, how)
        code = run.end()
        seconds = time.monotonic() - sent
    except BaseException:  # of this process alone
        run.process.kill()
        run.left()
        raise
    found = look(run, code) | {"seconds": round(seconds, 1), "updates": run.updates()}
    found["wrong"] = ["it had ended before the signal"] if missed else judge(trial, found)
    if found["checkpoint"] is not None and code:
        found["resumed"] = resume(trial, config, run.updates())
        found["wrong"] += [] if found["resumed"] == 0 else [f"--resume ended with {found['resumed']}"]
    if found["wrong"]:
        found["said"] = run.said()[-2000:]
    return found


def look(run: Run, code: int) -> dict[str, Any]:
    """Return the traces of a run that has ended."""
    pointer, summary = run.directory / "checkpoints" / "latest", run.directory / "summary.json"
    lines = [line.strip() for line in run.said().splitlines() if line.strip()]
    return {
        "code": code,
        "last_line": lines[-1].replace(str(run.directory.parent), "...") if lines else "",
        "checkpoint": pointer.read_text().strip() if pointer.is_file() else None,
        "status": json.loads(summary.read_text())["status"] if summary.is_file() else None,
        "processes": run.left(),
        "shared_memory": [folder.name for folder in SHARED_MEMORY.glob("*offbeat-*") if _is_of(folder, run.directory)],
    }


def _is_of(folder: Path, directory: Path) -> bool:
    with suppress(OSError):
        return str(directory) in (folder / ".lock").read_text()
    return False


def judge(trial: Trial, found: dict[str, Any]) -> list[str]:
    """Return what is wrong with what a run has left."""
    code, checkpoint, line = found["code"], found["checkpoint"], found["last_line"]
    done = trial.moment == "final" and code == 0
    checks = {
        f"the exit code is {code}": code == 130 or done,
        "it saved nothing": checkpoint is not None or trial.moment == "starting",
        f"the summary says {found['status']}": found["status"] == ("completed" if done else "interrupted")
        or (found["status"] is None and trial.moment == "starting"),
        f"processes are left: {found['processes']}": not found["processes"],
        f"shared memory is left: {found['shared_memory']}": not found["shared_memory"],
    }
    if SIGNALS[trial.signal][1] != PIPE and not done:
        words = "nothing to save" if checkpoint is None else f"checkpoint at .*{re.escape(checkpoint)}"
        checks[f"the last line is {line!r}"] = re.search(words, line) is not None
    return [wrong for wrong, right in checks.items() if not right]


def resume(trial: Trial, config: Path, updates: int) -> int:
    """Go on from a trial's checkpoint to the run's end, which for `train` is near; return the exit code."""
    more = ["--resume"]
    if trial.verb == "train" and trial.moment != "final":
        more += [f"updates={updates + 1}", "evaluation.prompts=0"]
    return Run(trial.verb, config, *more).end()


def starting_model(directory: Path, verb: str) -> Path:
    """Make the model that runs of a verb begin with, once."""
    if not directory.is_dir():
        if verb == "train":
            from learner.world.policy import train_sft

            train_sft(directory, updates=30, seed=0)
        else:
            from learner.stages.config import ScratchConfig
            from learner.stages.scratch import make_model

            make_model(directory, ["0123456789+"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=300))
    return directory


def table(rows: dict[str, Any]) -> str:
    """Return a line for each verb and moment, with what every signal came to."""
    lines = ["verb  | moment   | " + " | ".join(SIGNALS)]
    for verb, moment in product(VERBS, MOMENTS):
        cells = []
        for name in SIGNALS:
            row = rows.get(Trial(verb, moment, name).name)
            kept = "-" if row is None else "WRONG" if row["wrong"] else row["checkpoint"] or "nothing to save"
            cells.append("-" if row is None else f"{row['code']} {kept.replace('update-', '@')}".ljust(len(name)))
        lines.append(f"{verb:5} | {moment:8} | " + " | ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS)
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS)
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=tuple(SIGNALS))
    parser.add_argument(
        "--most", type=int, default=len(VERBS) * len(MOMENTS) * len(SIGNALS), help="trials of this call"
    )
    parser.add_argument("--again", action="store_true", help="repeat trials that failed")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/interrupts.json"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    from launch.output.summary import package_versions

    rows: dict[str, Any] = json.loads(arguments.output.read_text())["trials"] if arguments.output.is_file() else {}
    chosen = [Trial(*each) for each in product(arguments.verbs, arguments.moments, arguments.signals)]
    due = [each for each in chosen if each.name not in rows or (arguments.again and rows[each.name]["wrong"])]
    with tempfile.TemporaryDirectory() as scratch:
        for trial in due[: arguments.most]:
            model = starting_model(Path(scratch) / f"of-{'train' if trial.verb == 'train' else 'stages'}", trial.verb)
            directory = Path(scratch) / "trial"
            directory.mkdir()
            rows[trial.name] = row = try_one(trial, directory, model)
            shutil.rmtree(directory)
            print(f"{trial.name}: {'; '.join(row['wrong']) or row['last_line']} ({row['seconds']} s)", flush=True)
            record.write(
                arguments.output, {"trials": rows, "machine": record.machine(), "versions": package_versions()}
            )
    print(table(rows))
    sys.exit(1 if any(rows[each.name]["wrong"] for each in chosen if each.name in rows) else 0)


if __name__ == "__main__":
    main()
