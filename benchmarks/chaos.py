"""Chaos: faults at random among all processes of one run, which must end as if nothing had happened.

    python -m benchmarks.chaos [--kills 30] [--seed 0] [--updates 1200] [--output benchmarks/results/chaos.json]

Two generators, two judges, one learner rank, a small model, on Ray, vLLM and DeepSpeed. A fault is

- kill -9 of one of these, of the driver or its supervisor, or of Ray's raylet, GCS or agents;
- SIGSTOP of an actor, which the watchdog has to notice, with SIGCONT when it has, or without;
- a full disk, if root may mount a small file system for the run's directory.

It is drawn at random and comes at a random update, or when its process is there again; a driver that ended, for
whatever reason, is started again with `--resume`. At the end the run must have made all its updates, every staleness
within the bound, the ledger balanced, and by the journal every prompt trained exactly once and in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import record

MARK = "OFFBEAT_CHAOS"
ROLES = {
    "ray::RemoteGenerator": "generator",
    "ray::JudgeWorker": "judge",
    "ray::LearnerWorker": "learner",
    "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "agent",
}
RAY = {"raylet": "raylet", "gcs_server": "gcs"}
"""Ray's own processes, by the name of their program."""
STOPPED, PAUSED = "stopped ", "paused "
DISK = "disk"
FAULTS = {
    **{"generator": 4, "judge": 4, "learner": 2, "driver": 2, "supervisor": 1, "raylet": 2, "gcs": 2, "agent": 2},
    **{"stopped generator": 2, "stopped judge": 2, "stopped learner": 1},
    **{"paused generator": 1, "paused judge": 1, "paused learner": 1, DISK: 2},
}
"""Faults and their weights: a process of a role ends, stops, stops for a while, or the disk is full."""
DISK_MIB = 512
"""Size of the file system of a run's directory."""
PROMPTS_PER_UPDATE = 8
STALENESS = 2
LAST_KILL = 0.9
"""Share of the updates that are made before it."""
START_SECONDS = 180.0
"""Longest wait for a process to kill."""


@dataclass
class Account:
    """Faults and starts of a run so far."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    orphans: int = 0
    """Processes that outlived a killed driver for `ORPHAN_SECONDS`."""


ORPHAN_SECONDS = 20.0
PAUSE_SECONDS = 6.0
"""Length of a pause: more than `watchdog.warn_seconds`, less than `watchdog.end_seconds`."""


class Driver:
    """`offbeat train`, started again and again; its processes are found by a mark in their environment."""

    def __init__(self, config: Path, log: Path) -> None:
        self._config = config
        self._metrics = config.parent / "run" / "metrics.jsonl"
        self._begun = config.parent / "run" / "config.yaml"
        self._log = log
        self._mark = secrets.token_hex(8)
        self._known: set[psutil.Process] = set()
        self._process: subprocess.Popen[bytes]
        self.starts = 0

    def start(self) -> None:
        resume = ["--resume"] if self._begun.is_file() else []
        command = [sys.executable, "-m", "launch", "train", str(self._config), *resume]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {MARK: self._mark}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.starts += 1

    @property
    def pid(self) -> int:
        """Process that was started last: the supervisor, whose child is the driver."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def updates(self) -> int:
        """Made so far, by the metrics."""
        return self._metrics.read_bytes().count(b"\n") if self._metrics.is_file() else 0

    def fill_disk(self) -> None:
        """Fills the file system of the run's directory until the run has ended, and frees it again."""
        ballast = self._metrics.with_name("ballast")
        try:
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=START_SECONDS)
        finally:
            ballast.unlink()

    def running(self) -> Iterator[psutil.Process]:
        """Yield the processes with the mark, and their children: Ray's agents overwrite their environment."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    self._known |= {process, *(process.children() if process.name() == "raylet" else ())}
        for process in list(self._known):
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
                    continue
            self._known.discard(process)

    def victims(self) -> list[tuple[str, psutil.Process]]:
        """Living processes that a fault may strike, with their roles."""
        found = [("supervisor", psutil.Process(self._process.pid))] if self.code is None else []
        for process in self.running():
            with suppress(psutil.Error):
                program, *rest = process.cmdline() or [""]
                if process.ppid() == self._process.pid and rest[:3] == ["-m", "launch", "train"]:
                    found.append(("driver", process))
                found += [
                    (role, process) for name, role in ROLES.items() if " ".join([program, *rest]).startswith(name)
                ]
                found += [(RAY[name], process) for name in RAY if Path(program).name == name]
        return found

    def end(self) -> None:
        """Interrupts the run, and kills what is left of it after a while."""
        if self.code is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=60.0)
        self._process.kill()
        self.await_end()

    def await_end(self) -> int:
        """Exit code, once all its processes are gone too; those that stay are counted and killed."""
        self._process.wait()
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := list(self.running())) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        return len(left)


def configuration(directory: Path, model: Path, updates: int) -> Path:
    """A small run on CPU of two generators and two judges, written to `directory`."""
    document = {
        "model": {"path": str(model)},
        "updates": updates,
        "output": str(directory / "run"),
        "prompts": {"source": "world", "max_prompt_tokens": 4},
        "sampling": {"completions_per_prompt": 4, "max_new_tokens": 4},
        "generators": {"count": 2, "dtype": "float32", "max_model_len": 32, "kv_cache_mib": 64, "max_restarts": 1000},
        "judging": {"count": 2, "max_restarts": 1000},
        "replay": {"prompts_per_update": PROMPTS_PER_UPDATE, "max_staleness": STALENESS, "max_attempts": 20},
        "learner": {"dtype": "float32", "zero_stage": 1, "optimizer": {"lr": 1e-3}},
        "publication": {"canary_tokens": 16},
        "checkpoints": {"every_updates": 20},
        "evaluation": {"prompts": 0, "exact_every_updates": 0},
        "cluster": {"address": "local", "num_cpus": 4, "object_store_mib": 128},
        "watchdog": {"warn_seconds": 3.0, "end_seconds": 10.0},
    }
    path = directory / "chaos.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """A file system of its own for `directory`; yields whether it could be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def torment(driver: Driver, kills: Sequence[tuple[str, int]], rng: random.Random, longest_wait: float) -> Account:
    """Runs to the end, with a kill for each role in `kills`: once the run has made so many updates, and a random part
    of `longest_wait` seconds after the kill before."""
    account = Account()
    driver.start()
    for role, updates in kills:
        due = time.monotonic() + rng.uniform(0.0, longest_wait)
        victim = _await_victim(driver, role, rng, due, updates, account)
        if role == DISK:
            driver.fill_disk()
        with suppress(psutil.Error):
            _strike(victim, role)
        account.kills[role] += 1
        print(f"fault {account.kills.total()} of {len(kills)}: {role}", flush=True)
    while driver.await_end() or driver.code != 0:
        _again(driver, account)
    account.starts = driver.starts
    return account


def _strike(victim: psutil.Process, role: str) -> None:
    if role.startswith(STOPPED):
        victim.suspend()
    elif role.startswith(PAUSED):
        victim.suspend()
        time.sleep(PAUSE_SECONDS)
        victim.resume()
    elif role != DISK:
        victim.kill()


def _await_victim(
    driver: Driver, role: str, rng: random.Random, due: float, updates: int, account: Account
) -> psutil.Process:
    """Return a process of `role` once the time is `due` and `updates` are made, or the next one to appear."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if driver.code is not None:
            if driver.code == 0:
                raise SystemExit(f"the run ended after {account.kills.total()} kills; raise --updates")
            _again(driver, account)
        if time.monotonic() >= due and driver.updates() >= updates:
            wanted = "driver" if role == DISK else role.removeprefix(STOPPED).removeprefix(PAUSED)
            victims = [process for name, process in driver.victims() if name == wanted]
            if victims:
                return rng.choice(victims)
        time.sleep(0.05)
    raise SystemExit(f"no {role} to kill within {START_SECONDS:g} s")


def _again(driver: Driver, account: Account) -> None:
    account.orphans += driver.await_end()
    driver.start()


def findings(run: Path, updates: int) -> dict[str, Any]:
    """Read the run's own files; return its figures, and under `violations` its faults."""
    from launch.output.journal_reader import JournalReader

    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    batches = JournalReader(run / "journal").rows
    trained = [index for row in batches for index in row.lease_indices]
    staleness = Counter(age for row in batches for age in row.staleness)
    wanted = list(range(updates * PROMPTS_PER_UPDATE))
    ledger = summary["ledger"]
    checks = {
        "status is completed": summary["status"] == "completed",
        "all updates are made": summary["updates"] == updates == len(batches),
        "each update has one line of metrics": [row["step"] for row in rows] == list(range(1, updates + 1)),
        "every staleness is within the bound": max(staleness) <= STALENESS,
        "every lease is trained once, in its place": trained == wanted,
        "the ledger has them all": ledger["trained"] == ledger["offered"] == len(wanted),
        "nothing is dropped": not ledger["dropped"],
        "nothing is left over": ledger["waiting"] == ledger["in_flight"] == ledger["buffered"] == 0,
    }
    return {
        "updates": summary["updates"],
        "staleness": {str(age): count for age, count in sorted(staleness.items())},
        "ledger": ledger,
        "violations": [name for name, holds in checks.items() if not holds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--longest-wait", type=float, default=2.0, metavar="SECONDS", help="between two kills")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/chaos.json"))
    arguments = parser.parse_args()
    from launch.output.summary import package_versions
    from learner.world.policy import train_sft

    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        directory = Path(scratch)
        train_sft(directory / "start", updates=30, seed=arguments.seed)
        can_fill = stack.enter_context(small_disk(directory / "run"))
        config = configuration(directory, directory / "start", arguments.updates)
        started = time.monotonic()
        driver = Driver(config, arguments.output.with_suffix(".log"))
        rng = random.Random(arguments.seed)
        faults = {role: weight for role, weight in FAULTS.items() if role != DISK or can_fill}
        roles = rng.choices(list(faults), weights=list(faults.values()), k=arguments.kills)
        moments = sorted(rng.randrange(int(LAST_KILL * arguments.updates)) for _ in roles)
        account = torment(driver, list(zip(roles, moments, strict=True)), rng, arguments.longest_wait)
        result = {
            "seed": arguments.seed,
            "kills": dict(account.kills),
            "driver_starts": account.starts,
            "orphans": account.orphans,
            "wall_seconds": time.monotonic() - started,
            **findings(directory / "run", arguments.updates),
            "machine": record.machine(),
            "versions": package_versions(),
        }
    record.write(arguments.output, result)
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["violations"] or account.orphans else 0)


if __name__ == "__main__":
    main()
