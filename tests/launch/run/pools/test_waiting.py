"""Waiting for a process that loads: what is said meanwhile, and what ends it."""

import asyncio

import pytest

from launch.run.pools import waiting
from launch.run.pools.waiting import until_ready


def test_a_process_that_answers_at_once_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    said: list[str] = []

    async def test() -> None:
        await until_ready(asyncio.sleep(0), "the learner", "loading its model", said.append)
        await asyncio.sleep(0.05)

    asyncio.run(test())
    assert said == []


def test_a_long_wait_is_told_with_what_may_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.01)
    said: list[str] = []

    async def test() -> None:
        ready = asyncio.Event()

        def say(text: str) -> None:
            said.append(text)
            if len(said) == 2:
                ready.set()

        async def answer() -> None:
            await ready.wait()

        await until_ready(answer(), "the learner", "loading its model", say)

    asyncio.run(test())
    assert len(said) == 2
    assert said[0] == (
        "the learner has not answered for 0 s: it is still loading its model, or Ray has no room for it (see "
        "`ray status`)"
    )


def test_the_error_of_a_process_that_never_will_is_raised() -> None:
    async def fail() -> None:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        asyncio.run(until_ready(fail(), "the learner", "loading its model", print))
