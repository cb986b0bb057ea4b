"""Blocking calls outside the event loop, in threads that can be abandoned."""

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
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised below, in the waiting task
            failures.append(error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name="judge", daemon=True).start()
    await done.wait()
    if failures:
        raise failures[0]
    return results[0]
