"""Run a user's function in its process: import it once, and answer requests until its judge is gone.

Must not import anything heavy: imports here delay every start of a judge.
"""

import asyncio
import inspect
import os
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges import threads
from actors.judges.functions import wire
from actors.judges.functions.answers import read_answer
from actors.judges.functions.signatures import LISTS, RECORDS, Signature, load_function
from actors.judges.threads import in_daemon_thread
from actors.records import Group, Judgement
from actors.user_code import UserCodeError, place_of, raised


class Function:
    """The user's function: called in a thread if it is plain, in the event loop if it is async."""

    def __init__(self, path: str) -> None:
        """Import the function. Raises UsageError if it cannot be called with either signature."""
        self._path = path
        self._function = load_function(path)
        self._signature = Signature(self._function, path)
        self.signature = LISTS if self._signature.lists else RECORDS
        self.place = place_of(self._function)

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Judge the groups one after another.

        Raises UserCodeError if the function raises, RunError if an answer is neither one finite number per completion
        nor a preference table, UsageError if the function names a column that is not read from the data.
        """
        judgements = []
        for group in groups:
            arguments, named = self._signature.arguments(group.lease.prompt, group.completions)
            try:
                judgements.append(await self._called(arguments, named, len(group.completions)))
            except OffbeatError:
                raise
            except BaseException as error:  # a function may raise SystemExit, or an exception of its own
                raise _of_function(self._path, error) from None
        return judgements

    async def _called(self, arguments: tuple[Any, ...], named: dict[str, Any], count: int) -> Judgement:
        def read(answer: Any) -> Judgement:
            return read_answer(self._path, answer, count, lists=self._signature.lists)

        if inspect.iscoroutinefunction(self._function):
            return read(await self._function(*arguments, **named))
        answer = await in_daemon_thread(lambda: self._function(*arguments, **named))
        return read(await answer if inspect.isawaitable(answer) else answer)


def main(descriptor: int, path: str) -> None:
    """Import the function at `path` and answer the requests that come through the socket of `descriptor`."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    try:
        function = Function(path)
    except UsageError as error:
        connection.sendall(wire.frame(wire.Failed(0, usage=True, message=str(error))))
        return
    connection.sendall(wire.frame(wire.Loaded(function.place, function.signature)))
    # Not asyncio.run: if a task of the user's raises SystemExit, asyncio.run would cancel the function instead.
    asyncio.new_event_loop().run_until_complete(_serve(connection, function))


async def _serve(connection: socket.socket, function: Function) -> None:
    """Answer requests as they come, several at a time, until the judge closes the connection."""
    reader, writer = await asyncio.open_connection(sock=connection)
    answering = set()
    while True:
        try:
            size = int.from_bytes(await reader.readexactly(wire.LENGTH_BYTES), "big")
            request = wire.read_request(await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            os._exit(0)  # the user's threads would keep the interpreter alive
        task = asyncio.create_task(_answer(request, function, writer.write))
        answering.add(task)
        task.add_done_callback(answering.discard)


async def _answer(request: wire.Request, function: Function, write: Callable[[bytes], None]) -> None:
    answer: msgspec.Struct
    try:
        answer = wire.Judged(request.number, await function.judge(request.groups))
    except OffbeatError as error:
        trace = error.trace if isinstance(error, UserCodeError) else ""
        answer = wire.Failed(request.number, isinstance(error, UsageError), str(error), trace)
    write(wire.frame(answer))


def _of_function(path: str, error: BaseException) -> RunError:
    described = raised(f"judge function '{path}'", error, __file__, threads.__file__)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if isinstance(error, MemoryError) and limit != resource.RLIM_INFINITY:
        limited = f"; its process may use judging.judge.memory_mb {limit >> 20} of address space"
        return UserCodeError(str(described) + limited, described.trace)
    return described


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
