"""The pool with a fixed schedule: what a round holds, and in what order weights, leases and groups come."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from actors.records import Group, Judgement, Lease, Manifest, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from launch.run.pools.generator_pool import PoolEvents, PoolLimits
from launch.run.pools.lockstep import LockstepPool
from launch.run.protocols import GeneratorUnavailableError
from tests.fakes.generators import FakeGenerator, FakePrompts, group_of
from tests.launch.run.pools.serving import offer, run, serving, until

BATCH = 4


class Manual(FakeGenerator):
    """Answers when the test says so; notes what it is told, in order."""

    def __init__(self) -> None:
        super().__init__("a")
        self.told: list[Any] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.leases: list[Lease] = []

    async def submit(self, leases: Any) -> None:
        self.leases = list(leases)
        self.told.append([lease.index for lease in leases])

    async def collect(self, timeout_seconds: float) -> list[Any]:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        self.told.append(f"v{manifest.version}")
        return await super().take_weights(manifest, chunks)

    def answer(self, *positions: int) -> None:
        """Those of the last round, in this order."""
        for position in positions:
            self.answers.put_nowait(group_of(self.leases[position], (0,)))


class Rig:
    def __init__(self, staleness: int) -> None:
        config = ReplayConfig(prompts_per_update=BATCH, max_staleness=staleness)
        self.generator = Manual()
        self.buffer = ReplayBuffer(config, FakePrompts(), 100)
        self.judged: list[int] = []
        self.unjudged: list[Group] = []
        self.retired: list[int] = []
        self.messages: list[str] = []
        self.pool = LockstepPool(
            [self.generator],
            self.buffer,
            PoolLimits(max_running=1, take_seconds=5.0, lease_seconds=60.0),
            PoolEvents(on_group=self.unjudged.append, on_retire=self.retired.append, on_message=self.messages.append),
        )

    def offer(self, version: int) -> None:
        offer(self.pool, version)

    def judge(self) -> None:
        groups = self.unjudged[:]
        self.unjudged.clear()
        self.judged += [group.lease.index for group in groups]
        for group in groups:
            self.buffer.add(replace(group, judgement=Judgement((0.0,) * len(group.completions))))
        self.pool.changed.notify()

    async def told(self, count: int) -> list[Any]:
        await until(lambda: len(self.generator.told) >= count)
        return self.generator.told

    async def nothing_more(self) -> None:
        """Whatever could happen has happened."""
        before = list(self.generator.told)
        for _ in range(50):
            await asyncio.sleep(0)
        assert self.generator.told == before

    def running(self) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        return serving(self.pool)


def test_each_version_samples_the_leases_that_no_earlier_one_may_and_all_of_them_at_once() -> None:
    """S = 1, 4 prompts a version: leases 0-7 are of version 0, 8-11 of version 1, 12-15 of version 2. The last two were
    there before the first round ended, and neither was skipped or taken early."""

    async def test() -> None:
        rig = Rig(staleness=1)
        async with rig.running():
            assert await rig.told(2) == ["v0", list(range(8))]
            rig.generator.answer(*range(8))
            await until(lambda: len(rig.unjudged) == 8)
            rig.judge()
            _learn(rig, 2)
            assert await rig.told(4) == ["v0", list(range(8)), "v1", [8, 9, 10, 11]]
            await rig.nothing_more()
            rig.generator.answer(0, 1, 2, 3)
            await until(lambda: len(rig.unjudged) == 4)
            rig.judge()
            assert (await rig.told(6))[4:] == ["v2", [12, 13, 14, 15]]
            assert rig.retired == [0, 1]

    run(test)


def _learn(rig: Rig, versions: int) -> None:
    for version in range(1, versions + 1):
        assert rig.buffer.batch() is not None
        rig.offer(version)


def test_groups_go_to_the_judge_together_by_index_whenever_they_were_finished() -> None:
    async def test() -> None:
        rig = Rig(staleness=0)
        async with rig.running():
            await rig.told(2)
            rig.generator.answer(2, 0, 3)
            await rig.nothing_more()
            assert rig.unjudged == []
            rig.generator.answer(1)
            await until(lambda: rig.unjudged)
            assert [group.lease.index for group in rig.unjudged] == [0, 1, 2, 3]

    run(test)


def test_a_round_waits_until_the_one_before_is_judged() -> None:
    async def test() -> None:
        rig = Rig(staleness=1)
        async with rig.running():
            await rig.told(2)
            rig.generator.answer(*range(8))
            await until(lambda: len(rig.unjudged) == 8)
            rig.offer(1)
            await rig.nothing_more()
            rig.judge()
            assert rig.buffer.batch() is not None
            assert await rig.told(3) == ["v0", list(range(8)), "v1"]

    run(test)


def test_what_an_evaluation_wants_is_a_round_of_its_own_at_the_version_that_it_asks_for() -> None:
    async def test() -> None:
        rig = Rig(staleness=0)
        async with rig.running():
            await rig.told(2)
            sample = asyncio.create_task(rig.pool.sample([Prompt("e", (1,), "")] * 2, min_version=1))
            await rig.nothing_more()
            rig.generator.answer(0, 1, 2, 3)
            await until(lambda: rig.unjudged)
            rig.judge()
            await rig.nothing_more()
            _learn(rig, 1)
            assert (await rig.told(4))[2:] == ["v1", [-1, -2]]
            rig.generator.answer(1, 0)
            assert [group.lease.index for group in await sample if isinstance(group, Group)] == [-1, -2]
            assert (await rig.told(5))[4] == [4, 5, 6, 7]

    run(test)


def test_a_generator_that_comes_back_takes_the_version_at_work_and_what_was_lost() -> None:
    """It dies with lease 1 and 3 of version 0 unanswered, while version 1 waits."""

    async def test() -> None:
        rig = Rig(staleness=1)
        async with rig.running():
            await rig.told(2)
            rig.generator.answer(0, 2, 4, 5, 6, 7)
            await rig.nothing_more()
            rig.offer(1)
            rig.generator.answers.put_nowait(GeneratorUnavailableError("a"))
            await until(lambda: len(rig.unjudged) == 6)
            rig.judge()
            assert (await rig.told(4))[2:] == ["v0", [1, 3]]
            assert rig.retired == []

    run(test)
