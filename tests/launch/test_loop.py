"""The whole loop in one process: real buffer, pool and loop around fake generators, judge and learner."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from actors.buffer import Batch, ReplayBuffer
from actors.errors import RunError
from actors.records import Failure, Lease
from launch.config import EvaluationConfig, RunConfig
from launch.evaluation import WinRate
from launch.loop import EvaluationSet, Progress, TrainingLoop
from tests.fakes import FakeGenerator, FakeJudge, FakeLearner, FakePrompts, FakeStats, group_of, judged_group


def _loop(generators, learner, messages=None, **replay) -> TrainingLoop:
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
        on_message=(messages if messages is not None else []).append,
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


def test_a_failure_of_the_learner_is_told_even_while_a_superseded_version_is_being_taken() -> None:
    """Retiring the version started a task in a group that was ending, and that error hid the learner's."""

    class SlowTaker(FakeGenerator):
        async def take_weights(self, manifest, chunks):
            if manifest.version > 0:
                await asyncio.Event().wait()
            return await super().take_weights(manifest, chunks)

    class Breaking(FakeLearner):
        async def update(self, pairs):
            if len(self.batches) == 3:
                raise RunError("the learner ran out of memory")
            return await super().update(pairs)

    with pytest.raises(RunError, match="ran out of memory"):
        _run(_loop([SlowTaker("a")], Breaking(), max_staleness=3))


def test_only_the_first_update_of_a_version_measures_the_gap_between_the_engines() -> None:
    class Drifting(FakeLearner):
        async def update(self, pairs):
            await super().update(pairs)
            return FakeStats(log_ratio_max=float(len(self.batches) - 1))

    loop = _loop([FakeGenerator("a")], Drifting(), max_staleness=0, updates_per_publish=3)
    _run(loop)
    assert loop.progress.staleness == {0: 48}
    assert loop.progress.log_ratio_max == 9.0, "update 9 is the first of the last version; 10 and 11 follow it"


def test_no_gap_between_the_engines_is_told_where_no_token_met_the_weights_that_sampled_it() -> None:
    loop = _loop([FakeGenerator("a")], FakeLearner(), updates_per_publish=3)
    group = judged_group(Lease(0, 0, FakePrompts().prompt(0), 0, 0.0), (0,), (0,))
    asyncio.run(loop._update(Batch(1, 0, (group,), (0,))))
    assert loop.progress.staleness == {0: 1}
    assert loop.progress.log_ratio_max is None


def _with_evaluation(loop: TrainingLoop, every_updates: int) -> TrainingLoop:
    evaluation = EvaluationConfig(prompts=2, every_updates=every_updates)
    loop.config = loop.config.model_copy(update={"evaluation": evaluation})
    prompts = [FakePrompts().prompt(i) for i in range(2)]
    baseline = [group_of(Lease(-1, 0, prompt, 0, 0.0), (0,), (0,)) for prompt in prompts]
    loop.evaluation_set = EvaluationSet(prompts, baseline)
    return loop


def test_an_evaluation_that_is_still_going_on_does_not_hold_up_the_end() -> None:
    """It waited for generators that had been ended before it, for ever."""
    messages: list[str] = []
    loop = _with_evaluation(_loop([FakeGenerator("a")], FakeLearner(), messages), every_updates=4)

    async def never(prompts, *, min_version):
        await asyncio.Event().wait()

    loop.pool.sample = never
    _run(loop)
    assert loop.progress.win_rate is None
    assert any("no evaluation after update 8: the one before is still going on" in text for text in messages)


def test_an_evaluation_during_training_gives_a_win_rate() -> None:
    loop = _with_evaluation(_loop([FakeGenerator("a")], FakeLearner(update_seconds=0.02)), every_updates=4)
    _run(loop)
    assert loop.progress.win_rate is not None
    # Texts "" and "x" against "" and "": the judge counts characters, so 0.5 + 0.5 + 1 + 1 of 4.
    assert loop.progress.win_rate.value == pytest.approx(0.75)
    assert loop.progress.win_rate.n == 2


class PartialJudge(FakeJudge):
    """Fails on the first evaluation prompts."""

    def __init__(self, failing: int) -> None:
        self._failing = failing

    async def judge(self, groups):
        failing = [group for group in groups if group.lease.index < 0][: self._failing]
        failures = [Failure(group.lease.index, 0, "judge timed out") for group in failing]
        return [*failures, *(await super().judge(groups))[len(failing) :]]


async def _evaluate(loop: TrainingLoop) -> None:
    await loop.publish()
    await loop.evaluate()


def test_evaluation_prompts_that_cannot_be_judged_are_left_out_and_counted() -> None:
    messages: list[str] = []
    loop = _with_evaluation(_loop([FakeGenerator("a")], FakeLearner(), messages), every_updates=0)
    loop.judge = PartialJudge(1)
    asyncio.run(asyncio.wait_for(loop.run(_evaluate), timeout=30))
    assert loop.progress.win_rate is not None
    assert loop.progress.win_rate.n == 1
    assert "1 of 2 evaluation prompts could not be judged: judge timed out; they are left out" in messages


def test_an_evaluation_of_which_nothing_could_be_judged_fails_the_run() -> None:
    loop = _with_evaluation(_loop([FakeGenerator("a")], FakeLearner()), every_updates=0)
    loop.judge = PartialJudge(2)
    with pytest.raises(RunError, match=r"2 of 2 evaluation prompts could not be judged: judge timed out"):
        asyncio.run(asyncio.wait_for(loop.run(_evaluate), timeout=30))


def test_an_evaluation_is_in_the_metrics_of_the_next_update_once() -> None:
    progress = Progress()
    assert progress.new_evaluation() == {}
    progress.win_rate, progress.kl = WinRate(0.75, 0.6, 0.9, 10), 1.5
    assert progress.new_evaluation() == {"win_rate": 0.75, "win_rate_low": 0.6, "win_rate_high": 0.9, "kl": 1.5}
    assert progress.new_evaluation() == {}
