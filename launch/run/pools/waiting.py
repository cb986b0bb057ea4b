"""A wait for a process that loads: say now and then that it goes on, and what may hold it up."""

import asyncio
import time
from collections.abc import Awaitable, Callable

FIRST_SECONDS = 25.0
"""Time until the first message; doubles each time, because waiting for a node may take days."""


async def until_ready(ready: Awaitable[None], name: str, doing: str, say: Callable[[str], None]) -> None:
    """Wait for `ready`; report to `say` how long `name` has been `doing` its step. Raises what `ready` raises."""
    telling = asyncio.create_task(_tell(name, doing, say))
    try:
        await ready
    finally:
        telling.cancel()


async def _tell(name: str, doing: str, say: Callable[[str], None]) -> None:
    started, pause = time.monotonic(), FIRST_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause *= 2.0
        say(
            f"{name} has not answered for {time.monotonic() - started:.0f} s: it is still {doing}, or Ray has no room "
            "for it (see `ray status`)"
        )
