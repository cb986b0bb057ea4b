"""Starts the ranks of a test as forks of one process that has torch, transformers and DeepSpeed imported.

`python -m tests.learner.backend.rank_server` reads a `Request` a line and answers with the exit codes; `run` asks the
server of this test process. An import of all three takes some five seconds of a core, and hundreds of ranks start.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imported with an engine; compiles on import, for two seconds
    "learner.stages.worker",
    "learner.training.engine",
    "learner.training.worker",
    "peft",
    "transformers.models.llama.modeling_llama",
)
SECONDS = 200.0
"""Longest time for all ranks of a request."""
ROOT = Path(__file__).parents[3]

_server: subprocess.Popen[str] | None = None


def run(program: str, arguments: list[list[str]], logs: list[Path], environment: dict[str, str]) -> list[int]:
    """Run `python -m PROGRAM ARGUMENTS` once per element, side by side; return the exit codes.

    What a rank prints goes to its log. Raises TimeoutError after `SECONDS`, with the ranks killed.
    """
    request = {"program": program, "arguments": arguments, "logs": [*map(str, logs)], "environment": environment}
    server = _started(environment)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError(f"the server of ranks ended with code {server.wait()}")
    codes: list[int] = json.loads(answer)
    if None in codes:
        raise TimeoutError(f"ranks still ran after {SECONDS:g} seconds: {codes}; see {logs[0]}")
    return codes


def _started(environment: dict[str, str]) -> subprocess.Popen[str]:
    global _server
    if _server is None or _server.poll() is not None:
        _server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_end, _server)
    return _server


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait()


def _serve() -> None:
    """Answer until the tests' process ends. Only this thread exists: a fork would lose others, and keep their locks."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in PRELOADED:
        __import__(name)
    gc.freeze()  # DeepSpeed collects garbage for every engine, in the time that looking at all modules takes
    tests = os.getppid()
    for line in sys.stdin:
        request = json.loads(line)
        ranks = [_fork(request, number) for number in range(len(request["arguments"]))]
        answers.write(json.dumps(_codes(ranks, tests)) + "\n")
        answers.flush()


def _fork(request: dict[str, Any], number: int) -> int:
    process = os.fork()
    if process == 0:
        _be_rank(request, number)
    return process


def _be_rank(request: dict[str, Any], number: int) -> NoReturn:
    code = 1
    try:
        log = os.open(request["logs"][number], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [request["program"], *request["arguments"][number]]
        runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _codes(ranks: list[int], tests: int) -> list[int | None]:
    """Wait for all ranks. None for those that time killed, or the end of the tests' process."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + SECONDS
    while len(codes) < len(ranks):
        for rank in ranks:
            if rank not in codes and (ended := os.waitpid(rank, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline or os.getppid() != tests:
            for rank in set(ranks) - set(codes):
                os.kill(rank, signal.SIGKILL)
                os.waitpid(rank, 0)
                codes[rank] = None
        time.sleep(0.01)
    return [codes[rank] for rank in ranks]


if __name__ == "__main__":
    _serve()
