"""Ends of asyncio tasks: no error is lost, and none is printed that nobody asked for."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from launch.run.tasks import first_failure, give_up, shielded
from tests.launch.run.pools.serving import heard, run


def test_the_first_failure_of_nested_groups_is_no_cancellation_unless_there_is_nothing_else() -> None:
    cause, cancelled = ValueError("the cause"), asyncio.CancelledError()
    inner = BaseExceptionGroup("", [cancelled, BaseExceptionGroup("", [cause, KeyError("later")])])
    assert first_failure(inner) is cause
    assert first_failure(BaseExceptionGroup("", [cancelled])) is cancelled
    assert first_failure(cause) is cause


@pytest.mark.parametrize("failed_before", [True, False])
def test_work_that_was_given_up_leaves_no_traceback(failed_before: bool) -> None:
    async def fails() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0 if failed_before else 60)
        raise ValueError

    async def test() -> None:
        work = asyncio.ensure_future(fails())
        await asyncio.sleep(0.01)
        give_up(work)
        await asyncio.sleep(0.01)
        assert work.done()

    with heard():
        run(test)


def test_shielded_work_passes_its_error_and_a_cancellation_on() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError from None

    async def test() -> None:
        with pytest.raises(ValueError, match="its own"):
            await shielded(fails())
        waiting = asyncio.ensure_future(shielded(fails_when_cancelled()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with heard():
        run(test)
