"""Run sandboxed processes for the judge: a program on an input, or tests against a program's functions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from actors.errors import RunError, UsageError

HERE = Path(__file__).parent
NO_SANDBOX = 125  # exit status of confine.py
MOST_OUTPUT = 1 << 20  # bytes of standard output that are read


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one sandboxed process."""

    seconds: float  # of wall time; CPU time is limited to as much, rounded up, plus one
    mb: int  # address space of each process (MiB)
    processes: int  # processes and threads
    disk_mb: int  # size of the working directory, which is in memory (MiB)


def interpreter() -> tuple[str, list[str]]:
    """Return the bare interpreter and the directories that it needs."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    wanted = ["/usr", "/lib", "/lib64", "/bin", os.path.realpath(sys.base_prefix)]
    outside = [path for path in wanted if os.path.isdir(path) and (path == "/usr" or not path.startswith("/usr/"))]
    return python, outside


def check_sandbox() -> None:
    """Raise UsageError if programs cannot be confined on this machine."""
    python, _ = interpreter()
    command = confined(Limits(5.0, 512, 4, 1), {}, [python, "-I", "-S", "-c", "print(7)"])
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, env={}, check=False)
        reason = "" if done.stdout == b"7\n" else (done.stderr.decode(errors="replace") or f"status {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        raise UsageError(
            f"judging.judge.kind code cannot confine programs on this machine: {reason:.300}; it needs Linux 5.12 or "
            "later and user namespaces (sysctl kernel.unprivileged_userns_clone=1; a container that may make them). "
            "There is no way to run them without; choose another judge or machine"
        )


def confined(limits: Limits, files: dict[str, str], command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` in a sandbox with `files` in its working directory."""
    python, paths = interpreter()
    settings = {
        "paths": paths,
        "mb": limits.mb,
        "processes": limits.processes,
        "cpu_seconds": int(limits.seconds) + 1,
        "disk_mb": limits.disk_mb,
        "files": files,
    }
    return [python, "-I", "-S", str(HERE / "confine.py"), json.dumps(settings), *command]


@contextlib.asynccontextmanager
async def _running(command: Sequence[str], **streams: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a command in a process group of its own; kill the whole group at the end of the context."""
    process = await asyncio.create_subprocess_exec(*command, env={}, cwd="/", start_new_session=True, **streams)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.returncode == NO_SANDBOX:
        raise RunError("a sandbox could not be made any more; look at this machine's memory and number of processes")


async def run_program(program: str, given: str, limits: Limits) -> str | None:
    """Run a program on standard input `given`; return its output, or None if it failed or exceeded a limit."""
    python, _ = interpreter()
    files = {"program": program, "input": given}
    # From a file: a program need not read its input.
    start = "import os, sys; os.dup2(os.open('/box/input', os.O_RDONLY), 0); os.execve(sys.argv[1], sys.argv[1:], {})"
    command = [python, "-I", "-S", "-c", start, python, "-I", "-S", "/box/program"]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(limits.seconds), _running(confined(limits, files, command), **quiet) as process:
            assert process.stdout is not None
            printed = b""
            while len(printed) <= MOST_OUTPUT and (part := await process.stdout.read(1 << 16)):
                printed += part
            if len(printed) <= MOST_OUTPUT and await process.wait() == 0:
                return printed.decode(errors="replace")
    return None


async def run_tests(program: str, tests: Sequence[str], setup: str, limits: Limits) -> int:
    """Return how many tests pass. Program and tests run in two sandboxes, and exchange only lines of data.

    Tests that did not run within the time limit fail.
    """
    python, _ = interpreter()
    server = (HERE / "solution.py").read_text(encoding="utf-8")
    trusted = {
        "actors/judges/sandbox/solution.py": server,
        "actors/judges/sandbox/tester.py": (HERE / "tester.py").read_text(encoding="utf-8"),
        "tests.json": json.dumps({"tests": list(tests), "setup": setup}),
    }
    serve = [python, "-I", "-S", "/box/server", "/box/program"]
    start = (
        "import sys; sys.path.insert(0, '/box'); sys.argv[1:] = ['/box/tests.json']; "
        "from actors.judges.sandbox.tester import main; main()"
    )
    requests, answers = (_pipe() for _ in range(2))
    passed: set[int] = set()
    try:
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(limits.seconds),
                _running(
                    confined(limits, {"server": server, "program": program}, serve),
                    stdin=requests[0],
                    stdout=answers[1],
                    stderr=subprocess.DEVNULL,
                ),
                _running(
                    confined(limits, trusted, [python, "-I", "-S", "-c", start]),
                    stdin=answers[0],
                    stdout=requests[1],
                    stderr=subprocess.PIPE,
                ) as tester,
            ):
                for end in (*requests, *answers):
                    end.close()
                assert tester.stderr is not None
                async for line in tester.stderr:
                    if line.strip().isdigit():
                        passed.add(int(line))
    finally:
        for end in (*requests, *answers):
            end.close()
    return len(passed)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
