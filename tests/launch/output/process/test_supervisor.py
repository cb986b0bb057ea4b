"""A driver that ends without a word: what is said, what is written and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from launch.output.process import supervisor

ROOT = Path(__file__).parents[4]
SUPERVISOR = """
import signal, sys
from launch.output.process import supervisor
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, has it ignored
sys.exit(supervisor.supervise([sys.executable, "-c", {!r}]))
"""
DRIVER = """
import os, signal, subprocess, sys, time
from launch.output.process import supervisor
supervisor.be_driver()
def left():  # as a judge's own server would be
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    print(process.pid, flush=True)
"""


def start(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR.format(DRIVER + body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gone(process: int) -> bool:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("end", "how"),
    [("os._exit(1)", "exit code 1"), ("os.kill(os.getpid(), signal.SIGKILL)", r"signal 9 (SIGKILL)")],
    ids=["as Ray ends it", "as the kernel ends it"],
)
def test_a_driver_that_ends_without_a_word_is_told_and_leaves_nothing(tmp_path: Path, end: str, how: str) -> None:
    run, shared = tmp_path / "run", tmp_path / "shared"
    for folder in (run, shared):
        folder.mkdir()
    (shared / "weights").write_text("x")
    told = f"supervisor.tell('run', {str(run)!r}); supervisor.tell('shared', {str(shared)!r}); left(); {end}"
    process = start(told)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith(
        f"offbeat: error: the driver ended without a word, with {how}: one of Ray's own processes died"
    )
    assert err.endswith(f"the last checkpoint in {run} stands, go on with --resume\n")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], f"offbeat: error: {summary['error']}\n") == ("failed", err)
    assert gone(int(out))
    assert not shared.exists()


@pytest.mark.parametrize("code", [0, 2, 130])
def test_the_exit_code_is_the_one_that_the_driver_told_however_its_process_ends(code: int) -> None:
    process = start(f"supervisor.tell('end', {code}); os.kill(os.getpid(), signal.SIGKILL)")
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == code


def test_a_driver_that_a_signal_ends_before_it_listens_was_interrupted() -> None:
    process = start("signal.signal(signal.SIGTERM, signal.SIG_DFL); print('ready', flush=True); time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=120) == ("", "offbeat: interrupted; nothing to save\n")
    assert process.returncode == 130


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1]
)
def test_a_signal_to_the_process_group_reaches_the_driver_alone(sent: signal.Signals) -> None:
    """What the driver starts, as Ray's processes, must outlive it until the driver ends them."""
    process = start(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)
def hear(number, frame):
    print(signal.Signals(number).name, child.poll(), flush=True)
    child.kill()
    supervisor.tell("end", 130)
    sys.exit(130)
for number in supervisor.FORWARDED:
    signal.signal(number, hear)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", flush=True)
time.sleep(60)
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, sent)
    assert process.stdout.readline() == f"{sent.name} None\n"
    assert process.wait(timeout=120) == 130
    process.communicate()


def test_a_signal_that_comes_before_the_driver_is_there_reaches_it() -> None:
    """It could be sent to nobody, and would end the supervisor, whose driver nobody then waits for."""
    early = SUPERVISOR.replace(
        "sys.exit",
        "real = supervisor._control\ndef control(*given):\n    import os\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    real(*given)\nsupervisor._control = control\nsys.exit",
    )
    body = "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)"
    process = subprocess.run(
        [sys.executable, "-c", early.format(DRIVER + body)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (130, "offbeat: interrupted; nothing to save\n")


@pytest.mark.parametrize("updates", [0, 1])
def test_the_last_words_say_what_a_run_has_saved(tmp_path: Path, updates: int) -> None:
    assert supervisor.last_words(None) == supervisor.last_words(tmp_path) == "interrupted; nothing to save"
    (tmp_path / "metrics.jsonl").write_text("{}\n" * updates)
    without = "nothing to save" if not updates else "ended at once without a checkpoint, --resume starts over"
    assert supervisor.last_words(tmp_path) == f"interrupted; {without}"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("update-0000007\n")
    said = f"interrupted; checkpoint at {tmp_path}/checkpoints/update-0000007, go on with --resume"
    assert supervisor.last_words(tmp_path) == said


def test_a_signal_waits_while_the_outcome_of_a_run_stands_and_reaches_the_next_run() -> None:
    process = start(
        """
supervisor.tell("settled", True)
signal.signal(signal.SIGTERM, lambda number, frame: print("heard", flush=True))
time.sleep(0.5)  # until the supervisor knows
print("ready", flush=True)
time.sleep(1.0)
print("next", flush=True)
supervisor.tell("settled", False)
time.sleep(0.5)
supervisor.tell("end", 0)
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=120) == ("next\nheard\n", "")
    assert process.returncode == 0


def test_signals_that_waited_come_in_the_order_in_which_they_were_sent() -> None:
    class Driver:
        heard: ClassVar[list[int]] = []

        def send_signal(self, number: int) -> None:
            self.heard.append(number)

    signals = supervisor._Signals()
    signals.hold(True)
    signals.to(cast(Any, Driver()))
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        signals.pass_on(number)
    assert Driver.heard == []
    signals.hold(False)
    assert Driver.heard == [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM]


def test_the_driver_hears_sigterm_if_its_supervisor_is_killed(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    process = start(
        f"""
def save(number, frame):
    open({str(saved)!r}, "w").close()
    os._exit(130)
signal.signal(signal.SIGTERM, save)
print(os.getpid(), flush=True)
time.sleep(600)
"""
    )
    assert process.stdout is not None
    driver = int(process.stdout.readline())
    process.kill()
    process.communicate()
    assert gone(driver)
    assert saved.exists()


def test_a_driver_that_is_stopped_is_told_of_once() -> None:
    quick = "supervisor.STOP_SECONDS = 0.3\nsys.exit"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SUPERVISOR.replace("sys.exit", quick).format(DRIVER + "print(os.getpid(), flush=True); time.sleep(600)"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    driver = int(process.stdout.readline())
    told = f"offbeat: warning: the driver was stopped 0.3 s ago; `kill -CONT {driver}` lets it go on\n"
    try:
        os.kill(driver, signal.SIGSTOP)
        assert process.stderr.readline() == told
        time.sleep(1.0)
    finally:
        os.kill(driver, signal.SIGKILL)
    assert "was stopped" not in process.communicate(timeout=120)[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "embedded"], True),
        (["--debug", "sft", "c.yaml"], True),
        (["train", "--help"], False),
        (["doctor", "train"], False),
        (["config", "embedded"], False),
        ([], False),
    ],
)
def test_only_verbs_that_start_ray_are_supervised(
    arguments: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(supervisor.VARIABLE, raising=False)
    assert supervisor.wanted(arguments) == expected
    monkeypatch.setenv(supervisor.VARIABLE, "7")
    assert not supervisor.wanted(arguments)


def test_what_the_driver_starts_has_a_supervisor_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor's number means another file there."""
    monkeypatch.setattr(supervisor, "_supervisors", [])
    monkeypatch.setenv(supervisor.VARIABLE, "7")
    supervisor.be_driver()
    assert supervisor._supervisors == [7]
    assert supervisor.VARIABLE not in os.environ
    supervisor._supervisors.clear()
