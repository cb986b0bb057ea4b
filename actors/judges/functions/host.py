"""Manage a function's process from the judge's side: start, requests, limits, and the reason of its end.

Everything runs in one event loop in a thread of its own, which lives as long as this process: the kernel ends a
supervisor when the thread that started it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from actors.errors import RunError, UsageError
from actors.judges.config import FunctionJudgeConfig
from actors.judges.functions import wire
from actors.judges.protocol import JudgeDeathError
from actors.judges.sandbox.process import interpreter
from actors.records import Group, Judgement
from actors.user_code import UserCodeError

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MOST_PRINTED = 8 << 20
"""Most bytes that one process may print; the rest is dropped."""
END_SECONDS = 5.0
"""Longest wait for a process and its children to end by themselves."""
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from actors.judges.functions.child import main; "
_START += "main(int(sys.argv[1]), sys.argv[2])"


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judge functions", daemon=True).start()
    return loop


def hosted(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run `work` in the event loop of the functions' processes."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


class AnotherBatchError(JudgeDeathError):
    """The process was ended because another batch ran out of time."""


class FunctionProcess:
    """One process with the function in it. Made by `start`; every method runs in the event loop of `hosted`."""

    def __init__(self, config: FunctionJudgeConfig, supervisor: asyncio.subprocess.Process, ours: Streams) -> None:
        self._config = config
        self._supervisor = supervisor
        reader, self._writer = ours
        self._exited = asyncio.create_task(supervisor.wait())
        self._listening = asyncio.create_task(self._listen(reader))
        self._ending: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting = {0: self._loaded}
        self._numbers = itertools.count(1)
        self._cause: JudgeDeathError | None = None
        """Error with the reason why we ended it; None if it ended by itself."""
        self._lost = False  # True once it has ended, or no longer answers
        self._how = ""
        self.name = f"judge function '{config.path}'"
        self.signature = ""

    @classmethod
    async def start(cls, config: FunctionJudgeConfig) -> FunctionProcess:
        """Start a process and wait until it has imported the function.

        Raises UsageError if the function cannot be used, its process ends, or the import takes too long.
        """
        ours, theirs = socket.socketpair()
        output, printed = os.pipe()
        try:
            supervisor = await asyncio.create_subprocess_exec(
                *_command(config, theirs.fileno()),
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(printed)
        process = cls(config, supervisor, await asyncio.open_connection(sock=ours))
        threading.Thread(target=_copy, args=(output, process.name), name="judge output", daemon=True).start()
        try:
            loaded = await process._imported()
            process.name += f" ({loaded.place})"
            process.signature = loaded.signature
        except BaseException:
            await process.end("it was not loaded")
            raise
        return process

    async def _imported(self) -> wire.Loaded:
        limit = self._config.import_timeout_seconds
        if not (await asyncio.wait([self._loaded], timeout=limit))[0]:
            raise UsageError(
                f"judging.judge.path '{self._config.path}': its module was not imported within "
                f"judging.judge.import_timeout_seconds {limit:g}; see what it does at its import, or raise the limit"
            )
        return self._loaded.result()

    @property
    def ended(self) -> bool:
        """Return whether the process has ended or is about to end."""
        return self._cause is not None or self._lost

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Send the groups and wait for their judgements. Cancelling this call ends the process.

        Raises the error of `Function.judge` in the process, and JudgeDeathError or AnotherBatchError if that ends.
        """
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        try:
            content = wire.request_frame(number, groups)
        except (TypeError, UnicodeEncodeError) as error:
            raise UsageError(f"a prompt has a value that {self.name} cannot be given: {error}") from error
        self._waiting[number] = answer
        try:
            self._writer.write(content)
            return await answer
        except asyncio.CancelledError:
            self._condemn("another batch ran out of time", AnotherBatchError)
            self._ending = asyncio.create_task(self._stop())
            raise
        finally:
            del self._waiting[number]

    async def end(self, cause: str) -> None:
        """End the process and all its children; waiting requests fail with `cause`."""
        self._condemn(cause, JudgeDeathError)
        await self._stop()
        await self.gone()

    async def gone(self) -> None:
        """Wait until a process that has `ended` is gone, and its waiting requests have failed."""
        await self._listening

    def _condemn(self, cause: str, kind: type[JudgeDeathError]) -> None:
        self._cause = self._cause or kind(f"the process of {self.name} was ended: {cause}")

    async def _stop(self) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if not self._exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._supervisor.send_signal(signal_number)
                await asyncio.wait([self._exited], timeout=END_SECONDS)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Read answers until the process has ended; then fail all waiting requests."""
        reading = asyncio.create_task(self._read(reader))
        await asyncio.wait([reading, self._exited], return_when=asyncio.FIRST_COMPLETED)
        self._lost = True
        await asyncio.wait([reading, self._exited], timeout=1.0)  # for answers under way, or the exit that follows
        if not self._exited.done():
            self._how = "closed or broke the connection to its judge"
        await self._stop()
        reading.cancel()
        self._writer.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._death())
        self._loaded.exception()  # seen: nobody may be waiting for it

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            while (size := int.from_bytes(await reader.readexactly(wire.LENGTH_BYTES), "big")) < wire.LONGEST_ANSWER:
                self._take(wire.read_answer(await reader.readexactly(size)))

    def _take(self, answer: wire.Loaded | wire.Judged | wire.Failed) -> None:
        waiting = self._waiting.get(answer.number)
        if waiting is None or waiting.done():
            return
        if isinstance(answer, wire.Loaded):
            waiting.set_result(answer)
        elif isinstance(answer, wire.Judged):
            waiting.set_result(answer.judgements)
        elif answer.trace:
            waiting.set_exception(UserCodeError(answer.message, answer.trace))
        else:
            waiting.set_exception((UsageError if answer.usage else RunError)(answer.message))

    def _death(self) -> JudgeDeathError | UsageError:
        """Say why the process ended."""
        if self._cause:
            return self._cause
        how = self._how or _ending_of(self._supervisor.returncode or 0)
        if self._config.memory_mb is not None:
            how += f" under judging.judge.memory_mb {self._config.memory_mb}"
        if not self._loaded.done():
            return UsageError(
                f"judging.judge.path '{self._config.path}': the process that imports it {how}; correct the module: its "
                "import must not end the process"
            )
        return JudgeDeathError(f"the process of {self.name} {how}; correct the function: it must return or raise")


def _ending_of(code: int) -> str:
    """Say how a process with this return code ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {next((each.name for each in signal.Signals if each == -code), f'signal {-code}')}"


def _command(config: FunctionJudgeConfig, descriptor: int) -> list[str]:
    bare, _ = interpreter()
    supervisor = [bare, "-I", "-S", str(Path(__file__).with_name("supervisor.py"))]
    numbers = [str(number) for number in (os.getpid(), config.memory_mb or 0, descriptor)]
    return [*supervisor, *numbers, sys.executable, "-c", _START, str(descriptor), config.path, json.dumps(sys.path)]


def _copy(output: int, name: str) -> None:
    """Copy the process's output to standard error until it has ended. Never blocks the process for long."""
    left = MOST_PRINTED
    with os.fdopen(output, "rb", 0) as file, contextlib.suppress(OSError):
        while part := file.read(1 << 16):
            if left > 0:
                os.write(2, part[:left])
                left -= len(part)
                if left <= 0:
                    os.write(2, f"\n{name} has printed {MOST_PRINTED >> 20} MiB; the rest is dropped\n".encode())
