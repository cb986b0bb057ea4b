"""What tests of the generator pools share: a pool that serves, and waiting for what it does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from actors.records import Canary, Manifest
from launch.run.pools.generator_pool import GeneratorPool
from launch.run.protocols import Publication


def offer(pool: GeneratorPool, version: int) -> None:
    """A publication without tensors."""
    pool.offer(Publication(Manifest(version, (), Canary((), ()), "shm")))


@contextlib.asynccontextmanager
async def serving(pool: GeneratorPool) -> AsyncIterator[asyncio.Task[None]]:
    """While it serves; version 0 is offered."""
    task = asyncio.create_task(pool.run())
    offer(pool, 0)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Fail if asyncio reports an error that nobody asked for: a user would read its traceback after the real cause."""
    reported: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("asyncio")
    log.addHandler(handler)
    try:
        yield
        gc.collect()
    finally:
        log.removeHandler(handler)
    assert not reported


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout=5))
