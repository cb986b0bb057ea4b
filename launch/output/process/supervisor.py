"""The supervisor of a run: a small process between the terminal and the driver. Must not import anything heavy.

Ray ends a driver whose raylet died at once, without an exception; so does the kernel for want of memory. The driver
runs in a session apart, so that a signal to the terminal's or Slurm's process group does not end Ray's processes under
it. The supervisor passes signals on to the driver alone, and says what happened if the driver ends without a word.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from actors.errors import INTERRUPTED, ray_logs
from actors.files import atomic_write
from actors.foreign.text import shown

VERBS = ("train", "sft", "dpo", "preference", "evaluate", "replay", "demo")
"""Verbs that start Ray."""
VARIABLE = "OFFBEAT_SUPERVISOR"
"""Environment variable of the driver: the descriptor on which it lists for the supervisor what to clean up."""
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGXCPU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that ask a run to save and end: of terminals, of limits of time, and of the schedulers of clusters."""
HEAPS = {"MALLOC_ARENA_MAX": "2"}
"""Fewer heaps of the C library: of one per thread, no other thread uses the free memory, and the driver grows."""
STOP_SECONDS = 12.0
"""Stop of the driver after which the supervisor warns."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_supervisors: list[int] = []
"""The pipe to this process's supervisor, if it has one."""
_runs: list[Path] = []
"""The directories of this process's runs."""


def wanted(arguments: Sequence[str]) -> bool:
    """Return whether a command line starts a run, and this process is not its driver."""
    return starts_run(arguments) and VARIABLE not in os.environ


def starts_run(arguments: Sequence[str]) -> bool:
    """Return whether a command line starts a run."""
    verb = next((each for each in arguments if not each.startswith("-")), None)
    return verb in VERBS and "--help" not in arguments


def be_driver() -> None:
    """Take note of the supervisor, if there is one; processes that this one starts do not inherit it."""
    descriptor = os.environ.pop(VARIABLE, "")
    if descriptor.isdigit():
        _supervisors.append(int(descriptor))


def tell(what: str, value: object = "") -> None:
    """Tell the supervisor, if there is one: `run` its directory, `shared` its folder, `settled`
    whether a run's outcome stands, `end` its exit code."""
    if what == "run":
        _runs.append(Path(str(value)))
    for descriptor in _supervisors:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"{json.dumps([what, str(value)])}\n".encode())


def say_interrupted() -> None:
    """Say last of all what this process's newest run has saved."""
    _print_interrupted(_runs[-1] if _runs else None)


def _print_interrupted(run: Path | None) -> None:
    print(shown(f"offbeat: {last_words(run)}"), file=sys.stderr, flush=True)


def last_words(run: Path | None) -> str:
    """Say what the interrupted run in `run` has saved, and how to continue it."""
    with contextlib.suppress(OSError, TypeError):
        checkpoints = run / "checkpoints"  # type: ignore[operator]
        tag = (checkpoints / "latest").read_text(encoding="utf-8", errors="replace").strip()
        return f"interrupted; checkpoint at {checkpoints / tag}, go on with --resume"
    with contextlib.suppress(OSError, TypeError):
        if (run / "metrics.jsonl").stat().st_size:  # type: ignore[operator]
            return "interrupted; ended at once without a checkpoint, --resume starts over"
    return "interrupted; nothing to save"


def supervise(command: Sequence[str]) -> int:
    """Run `command` as the driver; return the exit code that it reported, or 1 if it ended without a report."""
    signals = _Signals()
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, frame: signals.pass_on(number))
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    reading, writing = os.pipe()
    driver = subprocess.Popen(
        command,
        env=HEAPS | os.environ | {VARIABLE: str(writing)},
        pass_fds=[writing],
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    os.close(writing)
    signals.to(driver)
    told: dict[str, list[str]] = {}
    listener = threading.Thread(target=_listen, args=(reading, told, signals), daemon=True)
    listener.start()
    threading.Thread(target=_notice_stops, args=(driver.pid,), daemon=True).start()
    code = driver.wait()
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    _end_descendants()
    listener.join(timeout=1.0)
    for folder in told.get("shared", []):
        shutil.rmtree(folder, ignore_errors=True)
    if "end" in told:
        return int(told["end"][-1])
    if -code in signals.sent:
        _print_interrupted(Path(told["run"][-1]) if "run" in told else None)
        return INTERRUPTED
    return _say(code, told)


def die_with_parent() -> None:
    """Let the kernel ask a new process to end if this one is killed: a driver saves, and ends Ray in order.

    Ray's agents would outlive a killed driver by a minute, to report its death to a GCS that is dead too.
    """
    _control(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _control(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # of Linux only
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Signals:
    """Signals for the driver. They wait while it takes a run down: there SIGTERM would end its process."""

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self._driver: subprocess.Popen[bytes] | None = None
        self._waiting: list[int] = []
        self._held = False

    def to(self, driver: subprocess.Popen[bytes]) -> None:
        """Send to `driver` from now on, first what came before it was there."""
        self._driver = driver
        self.hold(self._held)

    def pass_on(self, number: int) -> None:
        self._waiting.append(number)
        self.hold(self._held)

    def hold(self, held: bool) -> None:
        self._held = held
        while self._driver is not None and self._waiting and not held:
            with contextlib.suppress(ProcessLookupError, IndexError):  # the listener may have been quicker
                number = self._waiting.pop(0)
                self.sent.add(number)
                self._driver.send_signal(number)


def _listen(descriptor: int, told: dict[str, list[str]], signals: _Signals) -> None:
    with os.fdopen(descriptor, encoding="utf-8") as lines:
        for line in lines:
            what, value = json.loads(line)
            told.setdefault(what, []).append(value)
            if what == "settled":
                signals.hold(value == "True")


def _notice_stops(driver: int) -> None:
    """Say once of each stop of the driver that lasts: it cannot say so itself, and the run waits."""
    since: float | None = None
    while (state := _stat(Path(f"/proc/{driver}/stat"))[:1]) and state != ["Z"]:
        if state[0] not in "Tt":
            since = None
        elif since is None:
            since = time.monotonic()
        elif time.monotonic() - since >= STOP_SECONDS:
            text = f"warning: the driver was stopped {STOP_SECONDS:g} s ago; `kill -CONT {driver}` lets it go on"
            print(shown(f"offbeat: {text}"), file=sys.stderr, flush=True)
            since = float("inf")
        time.sleep(STOP_SECONDS / 10)


def _end_descendants() -> None:
    """End what the driver left, in sessions of their own too: this process has become its parent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        deadline = time.monotonic() + 2.0
        while _children() and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)


def _children() -> list[int]:
    """Return the processes whose parent is this one, dead ones too; none on systems without /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(IndexError):
            if int(_stat(entry)[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


def _stat(path: Path) -> list[str]:
    """Return the state and the parent of a process, and the other fields of its /proc stat; empty if it is gone."""
    try:
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _say(code: int, told: dict[str, list[str]]) -> int:
    """Report a driver that ended without a report, on the terminal and in its summary."""
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    directory = Path(told["run"][-1]) if "run" in told else None
    text = (
        f"the driver ended without a word, with {how}: one of Ray's own processes died (see "
        f"{ray_logs()}), or the kernel ended it for want of memory (see `dmesg`)"
    )
    if directory is not None:
        text += f"; the last checkpoint in {directory} stands, go on with --resume"
        with contextlib.suppress(OSError):
            atomic_write(directory / "summary.json", json.dumps({"status": "failed", "error": text}, indent=2) + "\n")
    print(shown(f"offbeat: error: {text}"), file=sys.stderr, flush=True)
    return 1
