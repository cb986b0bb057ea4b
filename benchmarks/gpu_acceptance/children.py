"""A process with an environment of its own, at the other end of a pipe.

Its environment is there when its interpreter starts: CUDA reads which GPUs it may see once, at the first question about
them, and `multiprocessing` starts a process with this one's environment and imports this one's modules first. Must not
import anything heavy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0


class ChildGoneError(RuntimeError):
    """The process ended, or does not answer."""


def gpu_environment(index: int) -> dict[str, str]:
    """Return the variable that lets a process see only GPU `index` of those that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    own = [name.strip() for name in visible.split(",")] if visible else None
    return {"CUDA_VISIBLE_DEVICES": str(index) if own is None else own[index]}


class Child:
    """Serves the methods of a class of `served.py`, which is made from `arguments` there.

    The constructor returns at once; `ready` waits. `hello`: what the process said before its first import of ours.
    """

    def __init__(self, served: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self._pipe, theirs = Pipe()
        self._name = served
        command = [sys.executable, "-m", "benchmarks.gpu_acceptance.served", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, env=os.environ | dict(environment or {}), pass_fds=[theirs.fileno()], cwd=ROOT
        )
        theirs.close()
        self._pipe.send((served, arguments))
        self.hello: dict[str, Any] = {}

    def ready(self) -> Self:
        """Return when the object is made. Raises its error, or ChildGoneError."""
        if not self.hello:
            self.hello = self.answer(START_SECONDS)
            self.answer(START_SECONDS)
        return self

    def call(self, method: str, *arguments: Any, seconds: float = START_SECONDS) -> Any:
        """Return what a method returns, or raise what it raises."""
        self.ask(method, *arguments)
        return self.answer(seconds)

    def ask(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting for its `answer`."""
        self.ready()
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._gone() from error

    def answer(self, seconds: float = START_SECONDS) -> Any:
        """Return the answer to the oldest call."""
        try:
            if not self._pipe.poll(seconds):
                raise ChildGoneError(f"{self._name} does not answer within {seconds:g} s")
            result, error = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if error is not None:
            raise error
        return result

    def _gone(self) -> ChildGoneError:
        return ChildGoneError(f"{self._name}'s process ended with exit code {self._process.wait(10)}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the process: by itself, or by force after ten seconds."""
        self._pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
