"""A standard error whose reader died, stopped reading, or is a full disk; standard streams that were closed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
WRITER = """
import os, sys
from launch.output.process import streams
{before}
streams.install()
from launch.output.board import Board
board = Board()
for number in range({lines}):
    board.message("x" * 1000)
print("still here", file=sys.stderr, flush=True)
os.write({to}, b"done")
"""

BOARD = """
import os, time
from launch.output.process import streams
streams.install()
from launch.output.board import Board, RunSnapshot
def snapshot(updates):
    return RunSnapshot(
        elapsed_seconds=1.0, version=1, updates=updates, total_updates=9, tokens_per_second=1.0, groups_per_second=1.0,
        generators=(), ages=(), max_staleness=1, buffered=0, in_flight=0, learner_state="training", learner_seconds={},
    )
board = Board()
board.update(snapshot(0))
os.write(1, b"drawn\\n")  # the board takes what is printed
os.read(0, 1)
for updates in range(1, 5):
    board.update(snapshot(updates))
    board.message("update")
    time.sleep(0.3)
drawn = board._live is not None
board.close()
print(drawn)
"""


def run(before: str = "", lines: int = 10, **streams: Any) -> bytes:
    """What a writer of many lines tells once it has written all of them."""
    reading, writing = os.pipe()
    try:
        code = WRITER.format(before=before, lines=lines, to=writing)
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, pass_fds=[writing], **streams)
        os.close(writing)
        told = os.read(reading, 100)
        assert process.wait(60) == 0
        return told
    finally:
        os.close(reading)


def test_a_reader_that_died_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(stderr=writing) == b"done"
    os.close(writing)


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    controller, terminal = pty.openpty()
    os.close(controller)
    assert run(stderr=terminal) == b"done"
    os.close(terminal)


def test_a_board_whose_terminal_goes_away_ends_nothing() -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BOARD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "drawn\n"
    os.close(controller)
    out, _ = process.communicate("go on\n", timeout=60)
    assert (process.returncode, out) == (0, "True\n"), "it was a terminal"


def test_output_that_nobody_reads_is_no_error_and_that_a_full_disk_refuses_is_one() -> None:
    code = "from launch.output.process import streams\nstreams.install()\nprint('x' * 100_000, flush=True)"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writing, timeout=60, check=False)
    os.close(writing)
    assert ended.returncode == 0
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert ended.returncode != 0
    assert b"No space left on device" in ended.stderr


def test_a_short_output_that_a_full_disk_refuses_is_told_at_the_end() -> None:
    code = "import sys\nfrom launch.output.process import streams\nstreams.install()\nprint('x')\n"
    code += "sys.exit(streams.finish(int(sys.argv[1])))"
    for given, expected, said in ((0, 1, b"No space left on device; free space"), (2, 2, b"")):
        with open("/dev/full", "wb") as full:
            ended = subprocess.run(
                [sys.executable, "-c", code, str(given)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert ended.returncode == expected
        assert said in ended.stderr
        assert said or not ended.stderr


def test_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "wb") as full:
        assert run(stderr=full) == b"done"


def test_a_reader_that_has_stopped_delays_nothing_and_memory_is_bounded() -> None:
    """A pipe holds 64 KiB, and writing more would wait for its reader."""
    reading, writing = os.pipe()
    began = time.monotonic()
    assert run(lines=3000, stderr=writing) == b"done"
    assert time.monotonic() - began < 30.0
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read().startswith(b"offbeat: xxx")


def test_what_was_said_is_there_when_the_process_ends_at_once() -> None:
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys\nfrom launch.output.process import streams\nstreams.install()\n"
            "print('\\ud800 last', file=sys.stderr)\nif os.fork() == 0:\n    print('child', file=sys.stderr)\n"
            "    os._exit(0)\nos.wait()\nos._exit(3)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (3, "\\ud800 last\nchild\n")


def test_a_full_standard_output_leaves_no_descriptor_open() -> None:
    code = (
        "import os, sys\nfrom launch.output.process import streams\nstreams.install()\n"
        "before = len(os.listdir('/proc/self/fd'))\nprint('x')\ncode = streams.finish(0)\n"
        "print(code, len(os.listdir('/proc/self/fd')) - before, file=sys.stderr)"
    )
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert ended.stderr.splitlines()[-1] == b"1 0"


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_a_file_never_takes_the_place_of_a_closed_stream(closed: tuple[int, ...], tmp_path: Path) -> None:
    """What libraries print would be written into it."""
    before = f"for number in {closed}:\n    os.close(number)\n"
    code = WRITER.format(before=before, lines=1, to="file.fileno()").replace(
        "from launch.output.board", f"file = open({str(tmp_path / 'file')!r}, 'wb')\nfrom launch.output.board"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "file").read_bytes() == b"done"
