"""The whole loop in one process: real buffer, pool and loop around fake generators, judge and learner."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from actors.buffer import ReplayBuffer
from actors.errors import RunError
from actors.records import Failure
from launch.config import RunConfig
from launch.loop import TrainingLoop
from tests.fakes import FakeGenerator, FakeJudge, FakeLearner, FakePrompts


def _loop(generators, learner, **replay) -> TrainingLoop:
    config = RunConfig.model_validate(
        {
            "model": {"path": "unused"},
            "updates": 12,
            "replay": {"prompts_per_update": 4, **replay},
            "checkpoints": {"every_updates": 0},
        }
    )

    async def no_checkpoint(loop: TrainingLoop) -> None:
        raise AssertionError("no checkpoint was asked for")

    return TrainingLoop(
        config,
        buffer=ReplayBuffer(config.replay, FakePrompts(), config.updates),
        generators=generators,
        judge=FakeJudge(),
        learner=learner,
        on_update=lambda progress, values: None,
        on_watch=lambda loop: None,
        on_checkpoint=no_checkpoint,
        on_message=lambda text: None,
    )


async def _train(loop: TrainingLoop) -> None:
    await loop.publish()
    await loop.learn()


def _run(loop: TrainingLoop) -> None:
    asyncio.run(asyncio.wait_for(loop.run(_train), timeout=30))


@pytest.mark.parametrize("order", ["lease", "ready"])
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_pair_is_staler_than_the_bound_and_every_update_is_made(order: str, bound: int) -> None:
    learner = FakeLearner()
    loop = _loop([FakeGenerator("a"), FakeGenerator("b")], learner, order=order, max_staleness=bound)
    _run(loop)
    assert len(learner.batches) == 12
    assert max(loop.progress.staleness) <= bound
    for update, batch in enumerate(learner.batches):
        assert all(0 <= pair.staleness(update) <= bound for pair in batch)


def test_lease_order_trains_every_lease_exactly_once_and_in_order() -> None:
    learner = FakeLearner()
    _run(_loop([FakeGenerator("a"), FakeGenerator("b")], learner, max_staleness=2))
    indices = [pair.lease_index for batch in learner.batches for pair in batch]
    assert indices == list(range(48))


def test_at_bound_zero_every_pair_was_sampled_by_the_version_it_trains() -> None:
    learner = FakeLearner()
    loop = _loop([FakeGenerator("a")], learner, max_staleness=0)
    _run(loop)
    assert loop.progress.staleness == {0: 48}
    assert [{pair.chosen.versions[0] for pair in batch} for batch in learner.batches] == [{v} for v in range(12)]


def test_generation_runs_ahead_of_a_slow_learner_when_the_bound_allows_it() -> None:
    loop = _loop([FakeGenerator("a")], FakeLearner(update_seconds=0.05), max_staleness=1)
    _run(loop)
    assert loop.progress.staleness[1] >= 40


def test_a_generator_that_dies_loses_its_leases_and_not_the_run() -> None:
    dying, learner = FakeGenerator("a", die_after=6), FakeLearner()
    _run(_loop([dying, FakeGenerator("b")], learner, max_staleness=2))
    assert dying.deaths == 1
    assert Counter(pair.lease_index for batch in learner.batches for pair in batch) == Counter(range(48))


def test_a_generator_that_comes_back_takes_the_newest_version_before_it_works() -> None:
    dying = FakeGenerator("a", die_after=20)
    loop = _loop([dying], FakeLearner(), max_staleness=0)
    _run(loop)
    # It dies with 20 answers given, those of updates 0 to 4: version 4 is out, and perhaps version 5.
    assert dying.loads_at_death is not None
    assert dying.loads[dying.loads_at_death] in (4, 5)
    assert loop.progress.staleness == {0: 48}


def test_the_run_fails_with_a_reason_when_no_generator_is_left() -> None:
    loop = _loop([FakeGenerator("a", die_after=6, dead_for_good=True)], FakeLearner())
    with pytest.raises(RunError, match=r"no generator is left.*--resume"):
        _run(loop)


def test_a_failure_of_the_learner_ends_the_run_with_its_own_message() -> None:
    class Broken(FakeLearner):
        async def update(self, pairs):
            raise RunError("the learner ran out of memory; lower learner.micro_batch_tokens")

    with pytest.raises(RunError, match=r"lower learner\.micro_batch_tokens"):
        _run(_loop([FakeGenerator("a")], Broken()))


def test_superseded_publications_are_retired_and_the_newest_is_kept() -> None:
    learner = FakeLearner()
    loop = _loop([FakeGenerator("a")], learner, max_staleness=1)
    _run(loop)
    assert sorted(learner.exported) == list(range(13))
    assert loop.pool.newest is not None
    assert loop.pool.newest.version == 12
    assert 12 not in learner.retired
    assert set(learner.retired) <= set(range(12))
    assert len(learner.retired) >= 11


def test_several_updates_per_version_publish_once_per_version() -> None:
    learner = FakeLearner()
    loop = _loop([FakeGenerator("a")], learner, max_staleness=1, updates_per_publish=3)
    _run(loop)
    assert learner.exported == [0, 1, 2, 3, 4]
    assert max(loop.progress.staleness) <= 1


def test_stop_ends_after_the_current_update() -> None:
    learner = FakeLearner()
    loop = _loop([FakeGenerator("a")], learner)

    async def stop_early(loop: TrainingLoop) -> None:
        await loop.publish()
        learning = asyncio.create_task(loop.learn())
        while len(learner.batches) < 3:
            await asyncio.sleep(0.001)
        loop.stop()
        await learning

    asyncio.run(asyncio.wait_for(loop.run(stop_early), timeout=30))
    assert 3 <= len(learner.batches) <= 4


def test_a_judge_that_never_answers_fails_the_run_with_the_reasons() -> None:
    class Silent(FakeJudge):
        async def judge(self, groups):
            return [Failure(group.lease.index, group.lease.attempt, "judge timed out") for group in groups]

    loop = _loop([FakeGenerator("a")], FakeLearner())
    loop.judge = Silent()
    with pytest.raises(RunError, match=r"3 updates in a row had nothing to train on.*'judge timed out': 1[26]"):
        _run(loop)
