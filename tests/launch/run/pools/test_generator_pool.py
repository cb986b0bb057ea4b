"""The generator pool on its own: who gets which lease, what a death costs, when a publication may go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from actors.errors import TransferInterruptedError, WeightMismatchError
from actors.records import Canary, Failure, GeneratorStatus, Group, Judgement, Lease, Manifest, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from launch.run.pools import generator_pool as pool_module
from launch.run.pools import waiting
from launch.run.pools.generator_pool import GeneratorPool
from launch.run.protocols import GeneratorDeadError, GeneratorUnavailableError, PoolEvents, PoolLimits, Publication
from launch.run.tasks import first_failure
from tests.fakes.generators import FakeGenerator, FakePrompts, group_of
from tests.launch.run.pools.serving import heard, offer, run, serving, until


class Manual(FakeGenerator):
    """A generator that answers, takes weights and dies when the test says so."""

    def __init__(self, name: str = "a") -> None:
        super().__init__(name)
        self.leases: list[Lease] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.taking: list[int] = []

    async def submit(self, leases: Any) -> None:
        self.leases.extend(leases)

    async def collect(self, timeout_seconds: float) -> list[Any]:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        self.taking.append(manifest.version)
        await self.may_take.wait()
        return await super().take_weights(manifest, chunks)

    def indices(self) -> list[int]:
        return [lease.index for lease in self.leases]


class Pool:
    """A pool around generators, and what left it."""

    def __init__(self, *generators: Any, total_updates: int = 100, updates: int = 0, **settings: Any) -> None:
        replay = {"prompts_per_update": 8, "max_staleness": 0, "lease_seconds": 60.0}
        replay |= {name: settings.pop(name) for name in list(settings) if name in ReplayConfig.model_fields}
        self.groups: list[Group] = []
        self.retired: list[int] = []
        self.messages: list[str] = []
        self._generators = generators
        self.now = 0.0
        self.buffer = ReplayBuffer(ReplayConfig(**replay), FakePrompts(), total_updates)
        self.buffer.updates = updates
        self.pool = GeneratorPool(
            generators,
            self.buffer,
            PoolLimits(
                **{"max_running": 16, "take_seconds": 5.0, "lease_seconds": replay["lease_seconds"], **settings}
            ),
            PoolEvents(on_group=self.groups.append, on_retire=self.retired.append, on_message=self.messages.append),
            clock=lambda: self.now,
        )

    def offer(self, version: int) -> None:
        offer(self.pool, version)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """While it serves; all generators have version 0."""
        async with serving(self.pool) as task:
            await until(lambda: all(generator.loads for generator in self._generators))
            yield task


def _answer(lease: Lease, version: int = 0) -> Group:
    return group_of(lease, (version, version), (version, version))


PROMPTS = [Prompt(f"evaluation:{i}", (1, 2), "") for i in range(4)]


def test_a_batch_smaller_than_one_generator_s_room_is_shared_evenly() -> None:
    """The first generator to wake used to take a whole small batch, and the others idled."""

    async def test() -> None:
        a, b = Manual("a"), Manual("b")
        pool = Pool(a, b)
        async with pool.running():
            await until(lambda: len(a.leases) + len(b.leases) == 8)
            for generator in (a, b):
                for lease in generator.leases:
                    generator.answers.put_nowait(_answer(lease))
            await until(lambda: len(pool.groups) == 8)
            a.leases.clear()
            b.leases.clear()
            _train(pool, 1)
            await until(lambda: len(a.leases) + len(b.leases) == 8)
            assert (len(a.leases), len(b.leases)) == (4, 4)

    run(test)


def _train(pool: Pool, version: int) -> None:
    """Judges and consumes what was generated, and publishes `version`."""
    for group in pool.groups:
        pool.buffer.add(replace(group, judgement=Judgement((0.0, 1.0))))
    pool.groups.clear()
    assert pool.buffer.batch() is not None
    pool.offer(version)


def test_a_faster_generator_gets_more() -> None:
    async def test() -> None:
        fast, slow = Manual("fast"), Manual("slow")
        pool = Pool(fast, slow, prompts_per_update=32, max_running=4)
        async with pool.running():
            await until(lambda: len(fast.leases) == 4 and len(slow.leases) == 4)
            for _ in range(12):
                served = len(fast.leases)
                fast.answers.put_nowait(_answer(fast.leases[served - 4]))
                await until(lambda served=served: len(fast.leases) == served + 1)
            assert (len(fast.leases), len(slow.leases)) == (16, 4)

    run(test)


def test_no_generator_holds_more_than_its_room() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, prompts_per_update=8, max_running=3)
        async with pool.running():
            await until(lambda: len(a.leases) == 3)
            await asyncio.sleep(0.01)
            assert a.indices() == [0, 1, 2]
            a.answers.put_nowait(_answer(a.leases[1]))
            await until(lambda: len(a.leases) == 4)
            assert a.indices() == [0, 1, 2, 3]

    run(test)


def test_a_lease_past_its_deadline_goes_to_a_generator_again_and_its_first_answer_counts_once() -> None:
    """Whole groups that came late were dropped, and a prompt that needs longer than a lease was never trained on."""

    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, prompts_per_update=2)
        async with pool.running():
            await until(lambda: len(a.leases) == 2)
            first = a.leases[0]
            pool.now = 59.0
            pool.pool.expire()
            assert pool.messages == []
            pool.now = 60.0
            pool.pool.expire()
            assert "2 leases expired; reissuing" in pool.messages[0]
            await until(lambda: len(a.leases) == 4)
            assert [(lease.index, lease.attempt) for lease in a.leases[2:]] == [(0, 1), (1, 1)]
            a.answers.put_nowait(_answer(first))
            a.answers.put_nowait(_answer(a.leases[2]))
            await until(lambda: pool.groups)
            assert [(group.lease.index, group.lease.attempt) for group in pool.groups] == [(0, 1)]
            await until(lambda: pool.buffer.ledger()["late"] == 1)
            assert pool.buffer.ledger()["generated"] == 1

    run(test)


def test_attempts_that_another_generator_s_answer_made_useless_are_stopped() -> None:
    """They sampled to their end beside whatever was granted next."""

    async def test() -> None:
        a, b = Manual("a"), Manual("b")
        pool = Pool(a, b, prompts_per_update=2, max_running=1)
        async with pool.running():
            await until(lambda: len(a.leases) == len(b.leases) == 1)
            pool.now = 60.0
            pool.pool.expire()
            await until(lambda: len(a.leases) == len(b.leases) == 2)
            assert a.withdrawn == b.withdrawn == []
            late = a.leases[0]
            holder = next(each for each in (a, b) if each.leases[1].index == late.index)
            a.answers.put_nowait(_answer(late))
            await until(lambda: holder.withdrawn)
            assert [(group.lease.index, group.lease.attempt) for group in pool.groups] == [(late.index, 1)]
            assert holder.withdrawn == [(late.index, 1)]
            other = b if holder is a else a
            assert other.withdrawn == []

    run(test)


def test_an_attempt_at_a_prompt_that_was_given_up_is_stopped() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, prompts_per_update=1, max_attempts=2)
        async with pool.running():
            for attempts in (1, 2):
                await until(lambda attempts=attempts: len(a.leases) == attempts)
                pool.now += 60.0
                pool.pool.expire()
            await until(lambda: a.withdrawn)
            assert sorted(a.withdrawn) == [(0, 0), (0, 1)]
            assert pool.buffer.ledger()["dropped"] == {"expired": 1}

    run(test)


def test_a_late_answer_outside_the_buffer_stops_the_attempt_after_it() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, prompts_per_update=1)
        async with pool.running():
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:1], min_version=0))
            await until(lambda: len(_asides(a)) == 1)
            pool.now = 60.0
            pool.pool.expire()
            await until(lambda: len(_asides(a)) == 2)
            a.answers.put_nowait(_answer(_asides(a)[0]))
            await sampling
            await until(lambda: a.withdrawn)
            assert a.withdrawn == [(-1, 1)]

    run(test)


def test_evaluation_prompts_go_before_training_leases_and_come_back_in_order() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, max_running=4)
        async with pool.running():
            await until(lambda: len(a.leases) == 4)
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:2], min_version=0))
            await asyncio.sleep(0)
            for lease in a.leases[:2]:
                a.answers.put_nowait(_answer(lease))
            await until(lambda: len(a.leases) == 6)
            asides = a.leases[4:]
            assert [lease.prompt for lease in asides] == PROMPTS[:2]
            for lease in reversed(asides):
                a.answers.put_nowait(_answer(lease))
            assert [group.lease.prompt for group in await sampling] == PROMPTS[:2]
            assert all(group.lease.index >= 0 for group in pool.groups)

    run(test)


def test_an_evaluation_after_a_resume_never_has_the_seeds_of_one_before_it() -> None:
    """Seeds are of the lease's index, which began anew: the last evaluation drew the numbers of the baseline."""

    async def indices(*updates: int) -> list[list[int]]:
        """Of one evaluation after each of these updates."""
        a = Manual("a")
        pool = Pool(a, updates=updates[0], max_running=100)
        found = []
        async with pool.running():
            for update in updates:
                pool.buffer.updates = update
                before = len(_asides(a))
                sampling = asyncio.create_task(pool.pool.sample(PROMPTS, min_version=0))
                await until(lambda: len(_asides(a)) == before + len(PROMPTS))  # noqa: B023
                found.append([lease.index for lease in _asides(a)[before:]])
                sampling.cancel()
        return found

    async def test() -> None:
        whole, resumed = await indices(0, 0, 3, 7), await indices(3, 7)
        assert whole[0] == [-1 - number for number in range(len(PROMPTS))]
        assert len({index for each in whole for index in each}) == 4 * len(PROMPTS)
        assert resumed == whole[2:]

    run(test)


def test_evaluation_prompts_of_a_dead_generator_are_answered_by_another_one() -> None:
    async def test() -> None:
        a, b = Manual("a"), Manual("b")
        pool = Pool(a, b, prompts_per_update=1)
        async with pool.running():
            await until(lambda: len(pool.pool._loads._held) == 2)
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS, min_version=0))
            await until(lambda: len(_asides(a)) + len(_asides(b)) == 4)
            assert 1 <= len(_asides(a)) <= 2
            a.answers.put_nowait(GeneratorDeadError("a"))
            await until(lambda: len(_asides(b)) == 4)
            for lease in _asides(b):
                b.answers.put_nowait(_answer(lease))
            assert [group.lease.prompt for group in await sampling] == PROMPTS

    run(test)


def _asides(generator: Manual) -> list[Lease]:
    return [lease for lease in generator.leases if lease.index < 0]


def test_a_second_answer_to_an_evaluation_prompt_is_ignored() -> None:
    """A generator that was only unreachable for a moment answers what another one has answered meanwhile."""

    async def test() -> None:
        a = Manual("a")
        pool = Pool(a)
        async with pool.running() as running:
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:1], min_version=0))
            await until(lambda: _asides(a))
            (lease,) = _asides(a)
            a.answers.put_nowait(_answer(lease))
            a.answers.put_nowait(_answer(lease))
            await sampling
            training = next(lease for lease in a.leases if lease.index >= 0)
            a.answers.put_nowait(_answer(training))
            await until(lambda: pool.groups)
            assert not running.done()

    run(test)


def test_answers_to_an_evaluation_that_was_given_up_are_ignored() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a)
        async with pool.running() as running:
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:1], min_version=0))
            await until(lambda: _asides(a))
            sampling.cancel()
            a.answers.put_nowait(_answer(_asides(a)[0]))
            a.answers.put_nowait(_answer(next(lease for lease in a.leases if lease.index >= 0)))
            await until(lambda: pool.groups)
            assert not running.done()

    run(test)


def test_a_prompt_outside_the_buffer_without_an_answer_is_granted_again_and_at_last_given_up() -> None:
    """They had no deadline: one lost answer held up the end of a run for ever."""

    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, lease_seconds=10.0, prompts_per_update=1, max_attempts=9)
        async with pool.running() as running:
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:2], min_version=0))
            await until(lambda: len(_asides(a)) == 2)
            a.answers.put_nowait(_answer(_asides(a)[1]))
            for attempt in range(3):
                await until(lambda attempt=attempt: len(_asides(a)) == attempt + 2)
                assert not sampling.done()
                pool.now += 10.0
                pool.pool.expire()
            failure, group = await sampling
            assert failure == Failure(-1, 2, "no answer after 3 grants of 10 s each")
            assert group.lease.prompt == PROMPTS[1]
            assert not running.done()

    run(test)


def test_a_refused_prompt_outside_the_buffer_is_told_to_whoever_asked() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a)
        async with pool.running() as running:
            sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:2], min_version=0))
            await until(lambda: len(_asides(a)) == 2)
            a.answers.put_nowait(Failure(-1, 0, "too long"))
            a.answers.put_nowait(_answer(_asides(a)[1]))
            failure, group = await sampling
            assert failure == Failure(-1, 0, "too long")
            assert group.lease.prompt == PROMPTS[1]
            a.answers.put_nowait(Failure(-1, 0, "too long"))
            await asyncio.sleep(0.005)
            assert not running.done()

    run(test)


def test_leases_ask_for_what_they_are_meant_to_draw() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, draw="policy", prompts_per_update=2)
        async with pool.running():
            for draw in ("policy", "opponents"):
                sampling = asyncio.create_task(pool.pool.sample(PROMPTS[:1], min_version=0, draw=draw))
                await until(lambda draw=draw: _asides(a) and _asides(a)[-1].draw == draw)
                a.answers.put_nowait(_answer(_asides(a)[-1]))
                await sampling
            await until(lambda: len(a.leases) == 4)
            assert [lease.draw for lease in a.leases if lease.index >= 0] == ["policy", "policy"]
        default = Manual("b")
        async with Pool(default, prompts_per_update=1).running():
            await until(lambda: default.leases)
            assert default.leases[0].draw == "all"

    run(test)


def test_opponents_go_before_an_evaluation_that_was_asked_for_earlier() -> None:
    """Training groups waited for their opponents until a whole evaluation was sampled."""

    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, max_running=1, draw="policy")
        async with pool.running():
            await until(lambda: len(a.leases) == 1)
            evaluating = asyncio.create_task(pool.pool.sample(PROMPTS[:2], min_version=0))
            await asyncio.sleep(0)
            drawing = [
                asyncio.create_task(pool.pool.sample([prompt], min_version=0, draw="opponents"))
                for prompt in PROMPTS[2:]
            ]
            await asyncio.sleep(0)
            for held in range(1, 6):
                await until(lambda held=held: len(a.leases) == held)
                a.answers.put_nowait(_answer(a.leases[-1]))
            await asyncio.gather(evaluating, *drawing)
            asked = [(lease.prompt.id, lease.draw) for lease in a.leases[1:5]]
            assert asked == [
                ("evaluation:2", "opponents"),
                ("evaluation:3", "opponents"),
                ("evaluation:0", "policy"),
                ("evaluation:1", "policy"),
            ]

    run(test)


def test_a_slow_generator_skips_to_the_newest_version() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a, prompts_per_update=1, max_staleness=4)
        async with pool.running():
            await until(lambda: len(a.leases) == 5)
            for lease in a.leases[:4]:
                a.answers.put_nowait(_answer(lease))
            await until(lambda: len(pool.groups) == 4)
            a.may_take.clear()
            _train(pool, 1)
            await until(lambda: a.taking == [0, 1])
            for version in (2, 3, 4):
                _train(pool, version)
            a.may_take.set()
            await pool.pool.acknowledged(4)
            assert a.taking == [0, 1, 4]
            assert sorted(pool.retired) == [0, 1, 2, 3]

    run(test)


def test_a_publication_is_retired_once_superseded_and_no_sooner_than_its_last_taker_is_done() -> None:
    async def test() -> None:
        a = Manual("a")
        pool = Pool(a)
        a.may_take.clear()
        running = asyncio.create_task(pool.pool.run())
        pool.offer(0)
        await until(lambda: a.taking == [0])
        pool.offer(1)
        pool.offer(2)
        assert pool.retired == [1], "0 is being taken, 2 is the newest"
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert pool.retired == [1, 0]
        assert pool.pool.newest is not None
        assert pool.pool.newest.version == 2

    run(test)


class Hanging(Manual):
    """A generator that does not return from taking `hangs_at` until it is killed, `hangs` times in all. Its process is
    started again `restarts` times."""

    def __init__(self, name: str, *, hangs_at: int, hangs: int = 1, restarts: int = 1) -> None:
        super().__init__(name)
        self.kills = 0
        self._hangs_at, self._hangs, self._restarts = hangs_at, hangs, restarts
        self._killed = asyncio.Event()

    async def ready(self) -> None:
        if self.kills > self._restarts:
            raise GeneratorDeadError("no restart is left")
        self._killed.clear()

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        if manifest.version != self._hangs_at or self.kills == self._hangs:
            return await super().take_weights(manifest, chunks)
        self.taking.append(manifest.version)
        await self._killed.wait()
        raise GeneratorUnavailableError(self.name)

    def kill(self) -> None:
        self.kills += 1
        self._killed.set()


def test_a_generator_that_does_not_take_weights_in_time_is_killed_alone_and_comes_back_with_the_newest() -> None:
    """It used to end the whole run."""

    async def test() -> None:
        well, hung = Manual("well"), Hanging("hung", hangs_at=1)
        pool = Pool(well, hung, take_seconds=0.2, max_running=4)
        async with pool.running() as running:
            await until(lambda: len(well.leases) == len(hung.leases) == 4)
            held = hung.indices()
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: hung.loads == [0, 1])
            assert well.loads == [0, 1]
            assert (hung.kills, hung.taking) == (1, [0, 1, 1])
            assert [message.partition(";")[0] for message in pool.messages] == [
                "hung did not take policy version 1 within 0.2 s and is killed",
                "hung died and is being restarted",
            ]
            assert "raise publication.timeout_seconds if the model is large" in pool.messages[0]
            await until(lambda: len(well.leases) + len(hung.leases) == 12)
            again = [*well.leases[4:], *hung.leases[4:]]
            assert sorted((lease.index, lease.attempt) for lease in again) == [(index, 1) for index in sorted(held)]
            assert not running.done()

    run(test)


def test_a_hanging_generator_without_restarts_is_dropped_and_the_others_go_on() -> None:
    async def test() -> None:
        well, hung = Manual("well"), Hanging("hung", hangs_at=1, restarts=0)
        pool = Pool(well, hung, take_seconds=0.2, max_running=4)
        async with pool.running() as running:
            await until(lambda: len(well.leases) == len(hung.leases) == 4)
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: "hung died for good: no restart is left" in pool.messages)
            for lease in well.leases[:4]:
                well.answers.put_nowait(_answer(lease))
            await until(lambda: len(well.leases) == 8)
            assert sorted(well.indices()) == list(range(8))
            pool.offer(2)
            await pool.pool.acknowledged(2)
            assert not running.done()

    run(test)


def test_a_run_whose_only_generator_hangs_at_every_start_ends_when_its_restarts_are_used_up() -> None:
    async def test() -> None:
        hung = Hanging("hung", hangs_at=0, hangs=9, restarts=2)
        pool = Pool(hung, take_seconds=0.01)
        pool.offer(0)
        try:
            await pool.pool.run()
        finally:
            assert hung.kills == 3

    with pytest.raises(BaseExceptionGroup) as caught:
        run(test)
    (message,) = [str(error) for error in _leaves(caught.value)]
    assert message.startswith("no generator is left: no restart is left; look in ")


def test_a_killed_generator_whose_call_does_not_end_holds_up_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Hanging):
        def kill(self) -> None:
            self.kills += 1

    monkeypatch.setattr(pool_module, "END_SECONDS", 0.02)

    async def test() -> None:
        well, deaf = Manual("well"), Deaf("deaf", hangs_at=0)
        pool = Pool(well, deaf, take_seconds=0.2)
        async with pool.running():
            assert (deaf.kills, deaf.taking) == (1, [0, 0])

    run(test)


def test_a_generator_that_says_it_works_with_another_version_than_it_was_given_ends_the_run() -> None:
    """A version was skipped: the acknowledgement must name the one that was offered, none between."""

    class Muddled(Manual):
        async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
            return await super().take_weights(manifest, chunks) - (manifest.version == 2)

    async def test() -> None:
        pool = Pool(Muddled("muddled"))
        async with pool.running() as running:
            pool.offer(2)
            await asyncio.wait({running})
            assert pool.buffer.version == 0, "nothing was acknowledged"
            running.result()

    with pytest.raises(BaseExceptionGroup) as caught:
        run(test)
    (message,) = [str(error) for error in _leaves(caught.value)]
    assert message.startswith("muddled took policy version 2 and reports 1")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


def test_a_pool_that_is_cancelled_while_a_generator_dies_ends() -> None:
    """The death used to swallow the cancellation, and the run waited for its pool for ever."""

    class SlowToCancel(Manual):
        async def submit(self, leases: Any) -> None:
            await super().submit(leases)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.02)
                raise

    async def test() -> None:
        a = SlowToCancel("a")
        pool = Pool(a)
        async with pool.running() as running:
            await until(lambda: a.leases)
            a.answers.put_nowait(GeneratorUnavailableError("a"))
            await asyncio.sleep(0.005)
            running.cancel()
            done, _ = await asyncio.wait({running}, timeout=1)
            assert done

    with heard():
        run(test)


def test_a_pool_that_is_cancelled_just_as_a_transfer_fails_leaves_no_traceback() -> None:
    class Failing(Manual):
        async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
            self.taking.append(manifest.version)
            if manifest.version == 0:
                return await super().take_weights(manifest, chunks)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise GeneratorUnavailableError("a") from None
            return 0

    async def test() -> None:
        a = Failing("a")
        pool = Pool(a)
        async with pool.running() as running:
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: 1 in a.taking)
            running.cancel()
            await asyncio.wait({running}, timeout=1)

    with heard():
        run(test)


def test_a_generator_that_does_not_start_is_named_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pending(Manual):
        async def ready(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.005)

    async def test() -> None:
        pool = Pool(Pending("late-one"))
        running = asyncio.create_task(pool.pool.run())
        await until(lambda: len(pool.messages) >= 2)
        assert all("late-one has not answered" in message for message in pool.messages)
        assert all("it is still loading its engine" in message for message in pool.messages)
        running.cancel()

    run(test)


def test_many_generators_are_asked_for_their_status_in_turn() -> None:
    asked: list[str] = []

    class Asked(Manual):
        async def status(self) -> GeneratorStatus:
            asked.append(self.name)
            return await super().status()

    async def test() -> None:
        pool = Pool(*map(Asked, "abcde"))
        async with pool.running():
            slices = []
            for most in (2, 2, 2, 5, None, 9):
                asked.clear()
                await pool.pool.refresh(most)
                slices.append("".join(asked))
            assert slices == ["ab", "cd", "ea", "abcde", "abcde", "abcde"]

    run(test)


def test_the_account_of_a_generator_outlives_its_deaths() -> None:
    def account_of(process: str, tokens: int, seconds: float) -> GeneratorStatus:
        return GeneratorStatus("a", 0, 0, 0, tokens, seconds, 0.0, 0.0, process)

    class Counting(Manual):
        account = account_of("first", 0, 0.0)

        async def status(self) -> GeneratorStatus:
            return self.account

    async def test() -> None:
        a, b = Counting("a"), Counting("b")
        pool = Pool(a, b)
        async with pool.running():
            accounts = ("first", 10, 1.0), ("first", 30, 3.0), ("second", 5, 0.5), ("second", 40, 4.0)
            for account in accounts:
                a.account = account_of(*account)
                await pool.pool.refresh()
            assert sum(each.tokens for each in pool.pool.accounts) == 30 + 40
            assert sum(each.generating_seconds for each in pool.pool.accounts) == 3.0 + 4.0
            assert sum(each.tokens for each in pool.pool.statuses) == 40, "the board shows what is alive"
            a.answers.put_nowait(GeneratorDeadError("a"))
            await until(lambda: any("died for good" in message for message in pool.messages))
            assert sum(each.tokens for each in pool.pool.accounts) == 30 + 40
            assert [each.tokens for each in pool.pool.statuses] == [0]

    run(test)


@pytest.mark.parametrize("turns", range(6))
def test_a_pool_that_is_cancelled_just_as_weights_are_taken_ends(turns: int) -> None:
    """`asyncio.wait_for` used to return the version and swallow the cancellation when both came in one turn."""

    class Immediate(Manual):
        async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
            self.taking.append(manifest.version)
            await self.may_take.wait()
            self.loads.append(manifest.version)
            return manifest.version

    async def test() -> None:
        a = Immediate("a")
        pool = Pool(a)
        async with pool.running() as running:
            a.may_take.clear()
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: a.taking == [0, 1])
            running.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            a.may_take.set()
            done, _ = await asyncio.wait({running}, timeout=1)
            assert done

    run(test)


class Refusing(Manual):
    """A generator that refuses versions, until it is killed."""

    def __init__(self, name: str, *, versions: set[int], for_ever: bool = False) -> None:
        super().__init__(name)
        self.versions, self._for_ever, self.kills = versions, for_ever, 0

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        if manifest.version in self.versions:
            raise WeightMismatchError(f"version {manifest.version}: tensor 'a' is missing")
        return await super().take_weights(manifest, chunks)

    def kill(self) -> None:
        self.kills += 1
        self.versions = self.versions if self._for_ever else set()


def test_a_generator_that_refuses_what_another_takes_is_restarted_with_its_reason_told() -> None:
    """It used to end the whole run."""

    async def test() -> None:
        well, refuses = Manual("well"), Refusing("refuses", versions={1})
        pool = Pool(well, refuses)
        async with pool.running() as running:
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: refuses.loads == [0, 1])
            assert well.loads == [0, 1]
            assert pool.messages == [
                "refuses refused policy version 1 and is restarted: version 1: tensor 'a' is missing",
                "refuses died and is being restarted",
            ]
            assert not running.done()

    run(test)


def test_a_version_that_every_generator_refuses_ends_the_run_with_the_refusal() -> None:
    async def test() -> None:
        a, b = Refusing("a", versions={1}, for_ever=True), Refusing("b", versions={1}, for_ever=True)
        pool = Pool(a, b)
        async with pool.running() as running:
            pool.offer(1)
            await running

    with pytest.raises(BaseExceptionGroup) as raised:
        run(test)
    assert str(first_failure(raised.value)) == "version 1: tensor 'a' is missing"


def test_an_interrupted_transfer_is_tried_again_and_told_once() -> None:
    class Interrupted(Manual):
        interruptions = 1

        async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
            if manifest.version == 1 and self.interruptions:
                self.interruptions = 0
                raise TransferInterruptedError("generator-2 failed: no memory")
            return await super().take_weights(manifest, chunks)

    async def test() -> None:
        a, b = Interrupted("a"), Interrupted("b")
        pool = Pool(a, b)
        async with pool.running():
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.offer(1)
            await until(lambda: a.loads == b.loads == [0, 1])
            assert pool.messages == ["the transfer of policy version 1 is repeated: generator-2 failed: no memory"]

    run(test)


def test_the_wait_for_a_transfer_is_not_part_of_the_time_to_take_weights() -> None:
    """With many generators, those at the end of the queue were killed for waiting."""

    async def test() -> None:
        a = Manual("a")
        pool, turn = Pool(a, take_seconds=0.1), asyncio.Event()

        async def wait_for_turn(port: Any) -> None:
            assert port is a
            await turn.wait()

        async with pool.running() as running:
            pool.buffer.published = lambda version: None  # type: ignore[method-assign]  # no update made version 1
            pool.pool.offer(Publication(Manifest(1, (), Canary((), ()), "gloo"), turn=wait_for_turn))
            await asyncio.sleep(0.3)
            assert (a.loads, pool.messages) == ([0], [])
            pool.offer(2)
            assert 1 not in pool.retired, "somebody still waits for it"
            turn.set()
            await until(lambda: a.loads == [0, 1, 2])
            assert not running.done()

    run(test)
