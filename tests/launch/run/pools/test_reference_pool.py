"""Reference actors beside a judge: whose answers are joined, what a death costs, and what fails a group."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from actors.errors import RunError
from actors.records import Failure, Group
from launch.run.loop import TrainingLoop
from launch.run.pools.reference_pool import JudgeBesideReference, ReferencePool
from tests.fakes.generators import FakeGenerator, make_group
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner
from tests.launch.run.loops import loop_of, train, with_evaluation


class FakeReference:
    """Scores a token by its number, once the test says so, unless it has died for good."""

    def __init__(self, *, dead: bool = False) -> None:
        self.may, self.dead, self.calls = asyncio.Event(), dead, 0
        self.may.set()

    async def ready(self) -> None: ...

    async def seconds(self) -> float:
        return 1.5

    async def score(self, rollouts: Sequence[Any]) -> list[tuple[float, ...]] | None:
        self.calls += 1
        await self.may.wait()
        if self.dead:
            raise RunError("the reference actor died for good")
        return [tuple(-float(token) for token in response) for _, response, _ in rollouts]


def scored(group: Group) -> Group:
    completions = (
        replace(each, reference_logprobs=tuple(-float(t) for t in each.token_ids)) for each in group.completions
    )
    return replace(group, completions=tuple(completions))


GROUPS = [make_group(["a", "bb"], index=n) for n in range(4)]


def test_groups_come_back_judged_and_with_the_reference_s_log_probs() -> None:
    async def test() -> None:
        judge = JudgeBesideReference(FakeJudge(), ReferencePool([FakeReference()], print))
        await judge.ready()
        judged = await FakeJudge().judge(GROUPS)
        assert await judge.judge(GROUPS) == [scored(group) for group in judged if isinstance(group, Group)]
        assert await judge.seconds() == 0.0
        assert (await judge.figures())["groups"] == 7.0

    asyncio.run(test())


def test_the_reference_scores_while_the_judge_judges_each_group_by_the_least_busy_actor() -> None:
    async def test() -> list[int]:
        references = [FakeReference(), FakeReference()]
        for each in references:
            each.may.clear()
        judging = asyncio.Event()

        class Slow(FakeJudge):
            async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
                await judging.wait()
                return await super().judge(groups)

        both = asyncio.create_task(JudgeBesideReference(Slow(), ReferencePool(references, print)).judge(GROUPS))
        for _ in range(5):
            await asyncio.sleep(0)
        calls = [each.calls for each in references]
        for each in references:
            each.may.set()
        judging.set()
        assert len(await both) == 4
        return calls

    assert asyncio.run(test()) == [2, 2]


def test_an_actor_that_died_for_good_is_told_once_and_the_last_one_s_death_ends_the_run() -> None:
    async def test() -> None:
        messages: list[str] = []
        references = [FakeReference(dead=True), FakeReference()]
        judge = JudgeBesideReference(FakeJudge(), ReferencePool(references, messages.append))
        assert all(isinstance(each, Group) for each in await judge.judge(GROUPS))
        assert messages == ["reference actor 0: the reference actor died for good; 1 left"]
        assert references[1].calls == 4
        references[1].dead = True
        with pytest.raises(RunError, match=r"^the reference actor died for good$"):
            await judge.judge(GROUPS)

    asyncio.run(test())


def test_a_group_that_either_cannot_answer_fails_for_that_reason_and_no_other_group_does() -> None:
    class Refusing(FakeJudge):
        async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
            judged = await super().judge(groups)
            return [Failure(0, 0, "the judge said no"), *judged[1:]]

    class Dying(FakeReference):
        async def score(self, rollouts: Sequence[Any]) -> list[tuple[float, ...]] | None:
            found = await super().score(rollouts)
            return None if self.calls == 2 else found

    async def test() -> list[Any]:
        return await JudgeBesideReference(Refusing(), ReferencePool([Dying()], print)).judge(GROUPS[:3])

    first, second, third = asyncio.run(test())
    assert (first.reason, second.reason) == ("the judge said no", "reference unavailable")
    assert (second.lease_index, second.attempt) == (1, GROUPS[1].lease.attempt)
    assert isinstance(third, Group)


def test_a_loop_trains_on_completions_that_the_reference_scored_and_its_evaluations_are_not_scored_twice() -> None:
    reference = FakeReference()
    learner = FakeLearner()
    loop = with_evaluation(loop_of([FakeGenerator("a")], learner), every_updates=0)
    loop.judge = JudgeBesideReference(FakeJudge(), ReferencePool([reference], print))

    async def main(loop: TrainingLoop) -> None:
        await train(loop)
        scored = reference.calls
        await loop.evaluate()
        assert reference.calls == scored

    asyncio.run(asyncio.wait_for(loop.run(main), timeout=30))
    assert len(learner.batches) == 12
    for batch in learner.batches:
        for completion in (each for pair in batch for each in pair.completions):
            assert completion.reference_logprobs == tuple(-float(token) for token in completion.token_ids)


def test_sampled_tokens_of_an_evaluation_are_scored_prompt_by_prompt_in_order() -> None:
    rollouts = [((1,), (5, 6), ()), ((1,), (7, 8, 9), ((1, 2),)), ((2,), (4,), ())]

    async def test() -> None:
        reference = FakeReference()
        pool = ReferencePool([reference], print)
        assert await pool.sampled(rollouts) == [[-5.0, -6.0], [-7.0, -9.0], [-4.0]]
        assert reference.calls == 2
        assert await pool.seconds() == 1.5

    asyncio.run(test())


def test_an_evaluation_that_cannot_be_scored_ends_the_run() -> None:
    class Dying(FakeReference):
        async def score(self, rollouts: Sequence[Any]) -> None:
            return None

    with pytest.raises(RunError, match=r"reference unavailable; .*--resume"):
        asyncio.run(ReferencePool([Dying()], print).sampled([((1,), (2,), ())]))
