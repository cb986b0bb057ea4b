"""Which generators share a broadcast, and what becomes of the others when one fails. Ports are stand-ins; no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors.errors import RunError, TransferInterruptedError, WeightMismatchError
from actors.records import Canary, Manifest, Seat
from launch.cluster import broadcasts as module
from launch.cluster.broadcasts import Broadcasts


def manifest(version: int) -> Manifest:
    return Manifest(version, (), Canary((), ()), "gloo")


class Learner:
    """Its transfers take until all members are there, and end when they are given up."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []  # versions and groups
        self.sizes: list[int] = []
        self.seconds: list[float] = []
        self.given_up: dict[str, str] = {}
        self.present: dict[str, set[int]] = {}
        self.changed = asyncio.Condition()
        self.error: Exception | None = None

    async def open_group(self, size: int, seconds: float) -> Seat:
        self.sizes.append(size)
        self.seconds.append(seconds)
        return Seat(f"group {len(self.sizes)}", "", 0, seconds, size)

    async def send(self, manifest: Manifest, seat: Seat) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((manifest.version, seat.group))
        await self.meet(seat, {0})

    async def give_up(self, seat: Seat, reason: str) -> None:
        async with self.changed:
            self.given_up[seat.group] = reason
            self.changed.notify_all()

    async def meet(self, seat: Seat, ranks: set[int]) -> None:
        async with self.changed:
            here = self.present.setdefault(seat.group, set())
            here |= ranks
            self.changed.notify_all()
            try:
                async with asyncio.timeout(seat.seconds):
                    await self.changed.wait_for(lambda: len(here) == seat.size or seat.group in self.given_up)
            except TimeoutError:
                raise TransferInterruptedError("it took longer") from None
        if len(here) < seat.size:
            raise TransferInterruptedError(self.given_up[seat.group])


class Generator:
    """Takes versions with the others of its group, unless `fails` says what happens to it there."""

    def __init__(self, name: str, learner: Learner, workers: int = 1) -> None:
        self.name, self.process = name, "first"
        self.learner, self.workers = learner, workers
        self.refuses: Exception | None = None
        self.fails: Exception | type[Ellipsis] | None = None
        self.groups: list[str] = []

    async def check(self, manifest: Manifest) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def receive(self, manifest: Manifest, seat: Seat) -> int:
        self.groups.append(seat.group)
        if self.fails is Ellipsis:
            await asyncio.Event().wait()
        if isinstance(self.fails, Exception):
            raise self.fails
        await self.learner.meet(seat, set(range(seat.rank, seat.rank + self.workers)))
        return manifest.version


async def take(broadcasts: Broadcasts, generator: Generator, version: int) -> int:
    await broadcasts.turn(generator, manifest(version))
    return await broadcasts.taken(generator)


def run(test: Callable[[Learner, Broadcasts, Callable[[str], Generator]], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        learner = Learner()
        broadcasts = Broadcasts(learner, **{"workers": 1, "seconds": 1.0} | settings)
        made: Any = lambda name: Generator(name, learner, settings.get("workers", 1))  # noqa: E731
        return await asyncio.wait_for(test(learner, broadcasts, made), timeout=5)

    return asyncio.run(main())


def test_all_that_want_a_version_share_one_transfer_and_keep_their_group_for_the_next() -> None:
    async def test(learner, broadcasts, make) -> None:
        generators = [make(f"g{i}") for i in range(4)]
        for version in (1, 2):
            assert await asyncio.gather(*(take(broadcasts, g, version) for g in generators)) == [version] * 4
        assert learner.sent == [(1, "group 1"), (2, "group 1")]
        assert learner.sizes == [9]
        assert learner.seconds == [8.0]  # the rest of the ten seconds is for loading

    run(test, workers=2, seconds=10.0)


def test_a_late_joiner_gets_a_transfer_of_its_own_and_is_in_the_next_one() -> None:
    async def test(learner, broadcasts, make) -> None:
        a, late = make("a"), make("late")
        assert await take(broadcasts, a, 1) == 1
        assert await take(broadcasts, late, 1) == 1
        assert await asyncio.gather(take(broadcasts, a, 2), take(broadcasts, late, 2)) == [2, 2]
        assert learner.sent == [(1, "group 1"), (1, "group 2"), (2, "group 3")]
        assert learner.sizes == [2, 2, 3]

    run(test)


def test_one_that_dies_in_a_transfer_releases_the_others_at_once_with_its_reason() -> None:
    """The learner used to wait in its broadcast for ever, and the reason was never seen."""

    async def test(learner, broadcasts, make) -> None:
        well, dies = make("well"), make("dies")
        dies.fails = RunError("no memory")
        results = await asyncio.gather(*(take(broadcasts, g, 1) for g in (well, dies)), return_exceptions=True)
        assert isinstance(results[0], TransferInterruptedError)
        assert str(results[0]) == "dies failed: no memory"
        assert results[1] is dies.fails
        assert await take(broadcasts, well, 1) == 1
        assert learner.sent == [(1, "group 1"), (1, "group 2")]

    run(test, seconds=1000.0)


@pytest.mark.parametrize(("error", "told"), [("dies", "dies died"), ("dies: no room", "dies failed: dies: no room")])
def test_a_death_without_words_is_told_as_one(error: str, told: str) -> None:
    """A process that is killed leaves nothing but its name."""

    async def test(learner, broadcasts, make) -> None:
        dies = make("dies")
        dies.fails = RunError(error)
        with pytest.raises(RunError):
            await take(broadcasts, dies, 1)
        assert learner.given_up == {"group 1": told}

    run(test)


def test_one_that_hangs_is_no_obstacle_once_its_transfer_has_ended() -> None:
    async def test(learner, broadcasts, make) -> None:
        well, hangs = make("well"), make("hangs")
        hangs.fails = Ellipsis
        hanging = asyncio.create_task(take(broadcasts, hangs, 1))
        with pytest.raises(TransferInterruptedError):
            await take(broadcasts, well, 1)
        assert await take(broadcasts, well, 1) == 1
        assert not hanging.done()
        hanging.cancel()

    run(test, seconds=0.2)


def test_one_that_would_refuse_never_joins() -> None:
    async def test(learner, broadcasts, make) -> None:
        well, refuses = make("well"), make("refuses")
        refuses.refuses = WeightMismatchError("'a' is missing")
        results = await asyncio.gather(*(take(broadcasts, g, 1) for g in (well, refuses)), return_exceptions=True)
        assert results == [1, refuses.refuses]
        assert learner.sent == [(1, "group 1")]
        assert (learner.sizes, refuses.groups) == ([2], [])

    run(test)


def test_a_restarted_process_is_another_member() -> None:
    async def test(learner, broadcasts, make) -> None:
        a = make("a")
        assert await take(broadcasts, a, 1) == 1
        a.process = "second"
        assert await take(broadcasts, a, 2) == 2
        assert learner.sent == [(1, "group 1"), (2, "group 2")]

    run(test)


def test_a_process_that_was_out_of_reach_for_a_moment_finds_a_new_group() -> None:
    """The old one was given up, so that the next transfer would have ended before it began."""

    async def test(learner, broadcasts, make) -> None:
        a, b = make("a"), make("b")
        assert await asyncio.gather(take(broadcasts, a, 1), take(broadcasts, b, 1)) == [1, 1]
        receive = a.receive

        async def lost_answer(manifest: Manifest, seat: Seat) -> int:
            await receive(manifest, seat)
            raise RunError("unreachable")

        a.receive = lost_answer
        results = await asyncio.gather(*(take(broadcasts, g, 2) for g in (a, b)), return_exceptions=True)
        assert results[1] == 2
        assert isinstance(results[0], RunError)
        a.receive = receive
        assert await asyncio.gather(take(broadcasts, a, 3), take(broadcasts, b, 3)) == [3, 3]
        assert learner.sent == [(1, "group 1"), (2, "group 1"), (3, "group 2")]

    run(test)


def test_whoever_gives_up_waiting_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.1)

    async def test(learner, broadcasts, make) -> None:
        stays, leaves = make("stays"), make("leaves")
        left = asyncio.create_task(broadcasts.turn(leaves, manifest(1)))
        staying = asyncio.create_task(take(broadcasts, stays, 1))
        await asyncio.sleep(0.02)
        left.cancel()
        assert await staying == 1
        assert learner.sizes == [2]

    run(test)


def test_a_dead_learner_is_told_to_all() -> None:
    async def test(learner, broadcasts, make) -> None:
        learner.error = RunError("a learner process died")
        a, b = make("a"), make("b")
        results = await asyncio.gather(*(take(broadcasts, g, 1) for g in (a, b)), return_exceptions=True)
        assert results == [learner.error] * 2

    run(test)
