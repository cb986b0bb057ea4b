"""Runs parts one after the other, each in a process group of its own with a time limit, within a total of minutes.

Whatever a part does, the others run, the JSON holds everything that was found so far, and nothing of it is left behind.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu_acceptance.parts import PARTS, Setup, reason_to_skip
from launch.output.run_directory import SharedMemory

ROOT = Path(__file__).resolve().parents[2]
LEAST_SECONDS = {True: 45.0, False: 8.0}
"""Least time in which a part is worth starting, on a GPU and without one."""
PROBE_SECONDS, MODEL_SECONDS = 90.0, 180.0
LOG_LINES = 40
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class Outcome:
    """Result of one part."""

    part: str
    model: str
    dtype: str
    status: str  # ok, failed or skipped
    reason: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    log: str = ""  # the end of what a part that failed wrote


def run_part(
    name: str,
    given: dict[str, Any],
    folder: Path,
    seconds: float,
    running: set[subprocess.Popen[str]] | None = None,
) -> dict[str, Any]:
    """Run one part; return its status, reason, figures and log. `overtime` is true if it was stopped at its limit.

    Its process is in `running` as long as it runs.
    """
    running = set() if running is None else running
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log"
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance.part", name, str(result)]
    environment = os.environ | ENVIRONMENT
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=ROOT, env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip
        overtime = False
        running.add(process)
        try:
            process.communicate(json.dumps(given), timeout=seconds)
        except subprocess.TimeoutExpired:
            overtime = True
        finally:
            end_group(process)
            running.discard(process)
    found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {"status": "running"}
    found.setdefault("figures", {})
    if found["status"] == "running":
        what = f"it was stopped after {seconds:.0f} s" if overtime else f"its process ended with {process.returncode}"
        found |= {"status": "failed", "reason": f"{what}; see its log"}
    return found | {"overtime": overtime, "log": _tail(log) if found["status"] == "failed" else ""}


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and everything that it started; return when all of it is gone, after three seconds at most."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(30):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder in shared memory, as a run has one: removed at the end, on SIGTERM too, or by whoever comes next."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = SharedMemory(out)
    try:
        yield folder.path
    finally:
        folder.close()


class Acceptance:
    """All parts for all models, within `minutes` from `began` (`time.monotonic`).

    `settings`: the fields of `Setup` that are the same for every part.
    """

    def __init__(
        self, settings: dict[str, Any], machine: dict[str, Any], scratch: Path, minutes: float, began: float
    ) -> None:
        self._settings, self._machine, self._scratch = settings, machine, scratch
        self._deadline = began + 60.0 * minutes
        self._minutes = minutes
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.outcomes: list[Outcome] = []

    def run(
        self, models: dict[str, dict[str, str]], names: Sequence[str], dtypes: Sequence[str], jobs: int, report: Any
    ) -> None:
        """Run the parts `names` for each of `models`, `jobs` at a time; call `report` with each outcome.

        `dtypes`: of `mixture`; the other parts are in bfloat16.
        """
        tasks = [
            (name, model, dtype)
            for name in PARTS
            if name in names
            for model in (list(models)[:1] if PARTS[name].once else models)
            for dtype in (dtypes if PARTS[name].in_both_dtypes else ("bfloat16",))
        ]

        def one(number: int) -> None:
            name, model, dtype = tasks[number]
            outcome = self._one(name, model, dtype, models[model] | {"scratch": str(self._scratch / str(number))})
            with self._lock:
                self.outcomes.append(outcome)
                report(outcome)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                for done in [pool.submit(one, number) for number in range(len(tasks))]:
                    done.result()
            except BaseException:  # an interrupt too: the pool waits for what runs, and would start the rest
                self._deadline = 0.0
                for process in list(self._running):
                    end_group(process)
                raise

    def _one(self, name: str, model: str, dtype: str, given: dict[str, Any]) -> Outcome:
        part, left = PARTS[name], self._deadline - time.monotonic()
        outcome = Outcome(name, model, dtype, "skipped")
        over = f"the {self._minutes:g} minutes"
        if impossible := reason_to_skip(part, self._machine):
            outcome.reason = impossible
        elif "failure" in given:
            outcome.status, outcome.reason = "failed", given["failure"]
        elif left < LEAST_SECONDS[self._machine["cuda"]]:
            outcome.reason = f"{max(0.0, left):.0f} s are left of {over}"
        else:
            seconds = min(part.limit, left)
            setup = Setup(
                part=name, dtype=dtype, cuda=self._machine["cuda"], seconds=seconds, **given, **self._settings
            )
            began = time.monotonic()
            found = run_part(name, asdict(setup), Path(given["scratch"]), seconds, self._running)
            outcome.seconds = round(time.monotonic() - began, 1)
            outcome.status, outcome.reason, outcome.figures = found["status"], found["reason"], found["figures"]
            outcome.log = found["log"]
            if found["overtime"] and outcome.status == "failed" and seconds < part.limit:
                outcome.status, outcome.reason = "skipped", f"stopped after {seconds:.0f} s, when {over} were over"
            shutil.rmtree(given["scratch"], ignore_errors=True)
        return outcome

    def write(self, path: Path, head: dict[str, Any]) -> None:
        """Write everything that was found so far, as a whole or not at all."""
        temporary = path.with_suffix(".tmp")
        record.write(temporary, head | {"parts": [asdict(outcome) for outcome in self.outcomes]})
        temporary.replace(path)
