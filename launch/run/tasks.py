"""Helpers of the driver's asyncio tasks: a signal, and ways to end a task without losing or inventing an error."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Signal:
    """Wakes every waiter when something changed. Check the condition, then `wait` without an await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


def give_up(work: asyncio.Future[Any]) -> None:
    """Cancel `work`. Ask for its error if it has one: asyncio would print a traceback later."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    work.cancel()


async def shielded(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, and pass every cancellation on to the caller.

    A task group swallows a cancellation that arrives together with an error; so does `asyncio.wait_for`. The canceller
    would wait forever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # asyncio would print an error that nobody asks for
        raise
    task.result()


def first_failure(error: BaseException) -> BaseException:
    """Return the failure that ended a task group: the first leaf of `error` that is not a cancellation."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if not isinstance(leaf, asyncio.CancelledError)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]
