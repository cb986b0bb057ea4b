"""Blocking calls beside the event loop, in threads that can be left behind. It must not know what the calls do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """The result of `call()`, run in a thread of its own; its exceptions are raised here.

    A call that never returns can only be abandoned. An executor's threads are joined when the process ends and would
    keep it alive for ever; a daemon thread is not.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[list[T], BaseException | None]] = loop.create_future()

    def settle(result: list[T], failure: BaseException | None) -> None:
        if not done.done():  # else whoever waited was cancelled
            done.set_result((result, failure))

    def work() -> None:
        result: list[T] = []
        failure = None
        try:
            result.append(call())
        except BaseException as error:  # handed over, not swallowed: raised below in the waiting task
            failure = error
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="judge", daemon=True).start()
    result, failure = await done
    if failure is not None:
        raise failure
    return result[0]
