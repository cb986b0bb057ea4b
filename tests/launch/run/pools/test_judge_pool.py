"""Several judges as one: who gets a batch, what a death costs, whose figures are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from actors.errors import RunError
from actors.records import Group
from launch.run.pools.judge_pool import JudgePool, merged
from tests.fakes.generators import make_group
from tests.fakes.judges import FakeJudge


class Slow(FakeJudge):
    """Judges when the test says so, unless it has died for good."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()
        self.batches = 0
        self.dead = False

    async def judge(self, groups: Sequence[Group]) -> Any:
        self.batches += 1
        await self.may.wait()
        if self.dead:
            raise RunError("the judge died for good")
        return await super().judge(groups)


def test_a_batch_goes_to_the_judge_with_the_fewest() -> None:
    async def test() -> list[int]:
        judges = [Slow(), Slow()]
        pool = JudgePool(judges, print)
        batches = [asyncio.create_task(pool.judge([make_group(["a", "b"], index=n)])) for n in range(4)]
        await asyncio.sleep(0)
        counts = [judge.batches for judge in judges]
        for judge in judges:
            judge.may.set()
        answers = await asyncio.gather(*batches)
        assert [group.lease.index for (group,) in answers] == [0, 1, 2, 3]
        return counts

    assert asyncio.run(test()) == [2, 2]


def test_the_batches_of_a_judge_that_died_for_good_go_to_another_with_one_message() -> None:
    async def test() -> list[str]:
        messages: list[str] = []
        judges = [Slow(), Slow()]
        judges[0].dead = True
        pool = JudgePool(judges, messages.append)
        for judge in judges:
            judge.may.set()
        answers = await asyncio.gather(*[pool.judge([make_group(["a", "b"], index=n)]) for n in range(4)])
        assert [group.lease.index for (group,) in answers] == [0, 1, 2, 3]
        assert judges[1].batches == 4
        return messages

    assert asyncio.run(test()) == ["judge 0: the judge died for good; 1 left"]


def test_the_last_judge_s_death_is_told() -> None:
    async def test() -> None:
        judges = [Slow(), Slow()]
        for judge in judges:
            judge.dead = True
            judge.may.set()
        await JudgePool(judges, lambda text: None).judge([make_group(["a", "b"])])

    with pytest.raises(RunError, match="died for good"):
        asyncio.run(test())


def test_figures_add_up_but_means_are_weighted_and_maxima_the_largest() -> None:
    one = {"requests": 5.0, "answered": 3.0, "latency_mean_seconds": 1.0, "latency_max_seconds": 2.0, "a.answered": 1.0}
    other = {"requests": 1.0, "answered": 1.0, "latency_mean_seconds": 5.0, "latency_max_seconds": 9.0}
    one["a.latency_mean_seconds"] = 7.0
    assert merged([one, other]) == {
        "requests": 6.0,
        "answered": 4.0,
        "latency_mean_seconds": 2.0,
        "latency_max_seconds": 9.0,
        "a.answered": 1.0,
        "a.latency_mean_seconds": 7.0,
    }
    assert merged([one]) == one
    assert merged([{"latency_mean_seconds": 0.0}, {"latency_mean_seconds": 0.0}]) == {"latency_mean_seconds": 0.0}


def test_frequent_abstentions_are_told_while_the_run_goes_on_once() -> None:
    class Abstaining(FakeJudge):
        async def figures(self) -> dict[str, float]:
            return {"2_endpoint.verdicts": 100.0, "2_endpoint.abstentions": 12.0, "2_endpoint.cut_off": 11.0}

    async def test() -> list[str]:
        messages: list[str] = []
        pool = JudgePool([Abstaining()], messages.append)
        for n in range(9):
            await pool.judge([make_group(["a", "b"], index=n)])
        return messages

    assert asyncio.run(test()) == [
        "judge 2_endpoint: 12% of the answers had no verdict: 11 were stopped by the limit on tokens (raise "
        "judging.judge.max_tokens)"
    ]


def test_shares_are_of_all_judges_together() -> None:
    class Counting(Slow):
        def __init__(self, abstentions: float) -> None:
            super().__init__()
            self.abstentions = abstentions

        async def figures(self) -> dict[str, float]:
            return {"verdicts": 10.0, "abstentions": self.abstentions}

    figures = asyncio.run(JudgePool([Counting(1.0), Counting(4.0)], lambda text: None).figures())
    assert figures == {"verdicts": 20.0, "abstentions": 5.0, "abstention_rate": 0.25}
