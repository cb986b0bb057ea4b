"""Stops: SIGSTOP of each process of a run, with SIGCONT after a minute and without; warnings, times, outcomes.

    python -m benchmarks.stops [--only with|without] [--roles ROLE ...] [--output benchmarks/results/stops.json]

The run of `benchmarks.chaos`, with the watchdog's default for warnings. With SIGCONT all roles are stopped in one run,
which must go on each time. Without it the watchdog ends the process; a run that ends with it is started again with
`--resume`. With `--only` and `--roles` the other results stay as they were. Exits with 1 if the warning of a stop came
later than after 20 s or not at all, or a run neither went on nor could be resumed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import record
from benchmarks.chaos import Driver, configuration

ROLES = ("generator", "judge", "learner", "raylet", "gcs", "driver")
VITAL = ROLES[2:]
"""Roles without which a run ends."""
PAUSE_SECONDS = 60.0
WARN_SECONDS = 12.0
END_SECONDS = 40.0
"""Limit of the trials without SIGCONT; with it, one above `PAUSE_SECONDS`."""
MOST_SECONDS = 20.0
"""Longest time from a stop to its warning."""
UPDATES = 5
"""Updates that show that a run goes on."""
LONGEST = 240.0
TOLD = re.compile(r"warning: (.*) (has not answered|has made no progress|was stopped)")


def stop(driver: Driver, log: Path, role: str, *, again: bool) -> dict[str, Any]:
    """Stop one process of `role`, for a minute if `again`; return the warning, its time and the outcome."""
    made = driver.updates()
    _until(lambda: driver.updates() > made and bool(_at_work(driver, role)), driver)
    victim = _at_work(driver, role)[0]
    seen, began = log.stat().st_size, time.monotonic()
    victim.suspend()
    found: dict[str, Any] = {"role": role, "continued": again, "told_seconds": None, "told": None}
    try:
        while time.monotonic() - began < PAUSE_SECONDS and driver.code is None:
            if found["told"] is None and (match := TOLD.search(_since(log, seen))):
                found |= {"told_seconds": round(time.monotonic() - began, 1), "told": match[0]}
            time.sleep(0.1)
    finally:
        if again:
            with suppress(psutil.Error):
                victim.resume()
    if not again and role == "driver" and driver.code is None:  # nobody ends it
        victim.kill()
    made = driver.updates()
    with suppress(TimeoutError):
        _until(lambda: driver.updates() >= made + UPDATES and (again or role not in VITAL), driver)
    found["run"] = "went on" if driver.code is None else f"ended with exit code {driver.code}"
    lines = [line for line in _since(log, seen).splitlines() if line.startswith("offbeat: ") and "update " not in line]
    found["said"] = lines[:6]
    return found


def _at_work(driver: Driver, role: str) -> list[psutil.Process]:
    """Processes of a role that have started: Ray names those that have not after their constructor."""
    found = []
    for name, process in driver.victims():
        with suppress(psutil.Error):
            found += [process] if name == role and "__init__" not in "".join(process.cmdline()) else []
    return found


def _resumed(driver: Driver) -> bool:
    """Starts the run again; whether it makes updates."""
    made = driver.updates()
    driver.start()
    with suppress(TimeoutError):
        _until(lambda: driver.updates() > made, driver)
    return driver.code is None


def _until(true: Any, driver: Driver) -> None:
    deadline = time.monotonic() + LONGEST
    while not true() and driver.code is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def _since(log: Path, place: int) -> str:
    with log.open("rb") as file:
        file.seek(place)
        return file.read().decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stops.json"))
    parser.add_argument("--only", choices=("with", "without"))
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=ROLES)
    arguments = parser.parse_args()
    from launch.output.summary import package_versions
    from learner.world.policy import train_sft

    log = arguments.output.with_suffix(".log")
    halves = {"with": (True,), "without": (False,), None: (True, False)}[arguments.only]
    earlier = json.loads(arguments.output.read_text())["trials"] if arguments.output.is_file() else []
    trials = [each for each in earlier if each["continued"] not in halves or each["role"] not in arguments.roles]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        train_sft(directory / "start", updates=30, seed=0)
        config = configuration(directory, directory / "start", 1_000_000)
        for again in halves:
            settings = yaml.safe_load(config.read_text())
            settings["watchdog"] = {
                "warn_seconds": WARN_SECONDS,
                "end_seconds": 10 * END_SECONDS if again else END_SECONDS,
            }
            config.write_text(yaml.safe_dump(settings))
            driver = Driver(config, log)
            driver.start()
            try:
                for role in arguments.roles:
                    trials.append(stop(driver, log, role, again=again))
                    print(json.dumps(trials[-1]), flush=True)
                    if driver.code is not None:
                        trials[-1] |= {"orphans": driver.await_end(), "resumed": _resumed(driver)}
            finally:
                driver.end()
    bad = [
        f"{each['role']}, {'with' if each['continued'] else 'without'} SIGCONT"
        for each in trials
        if each["told_seconds"] is None
        or each["told_seconds"] > MOST_SECONDS
        or each.get("orphans")
        or not each.get("resumed", each["run"] == "went on")
        or (each["continued"] and each["run"] != "went on")
    ]
    result = {"trials": trials, "bad": bad, "machine": record.machine(), "versions": package_versions()}
    record.write(arguments.output, result)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
