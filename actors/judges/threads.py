"""Blocking calls outside the event loop, in threads that can be abandoned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """Run `call()` in a new thread and return its result or raise its exception here.

    A call that never returns can only be abandoned. The interpreter joins an executor's threads at exit and would then
    hang; it does not join daemon threads.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[list[T], BaseException | None]] = loop.create_future()

    def settle(result: list[T], failure: BaseException | None) -> None:
        if not done.done():  # done: the waiting task was cancelled
            done.set_result((result, failure))

    def work() -> None:
        result: list[T] = []
        failure = None
        try:
            result.append(call())
        except BaseException as error:  # raised below, in the waiting task
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="judge", daemon=True).start()
    # Not set_exception: a future refuses StopIteration.
    result, failure = await done
    if failure is not None:
        raise failure
    return result[0]
