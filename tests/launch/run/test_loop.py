"""The whole loop in one process: real buffer, pool and loop around fake generators, judge and learner."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from actors.errors import RunError
from actors.records import Failure, Lease
from actors.replay_buffer.buffer import Batch
from launch.run.loop import TrainingLoop
from launch.run.progress import Progress
from launch.run.protocols import Publication
from launch.run.win_rate import WinRate
from tests.fakes.generators import FakeGenerator, FakePrompts, judged_group
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner, FakeStats
from tests.launch.run.loops import evaluate, loop_of, run, with_evaluation
from tests.launch.run.pools.serving import heard


@pytest.mark.parametrize("order", ["lease", "ready"])
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_pair_is_staler_than_the_bound_and_every_update_is_made(order: str, bound: int) -> None:
    learner = FakeLearner()
    loop = loop_of([FakeGenerator("a"), FakeGenerator("b")], learner, order=order, max_staleness=bound)
    run(loop)
    assert len(learner.batches) == 12
    assert max(loop.progress.staleness) <= bound
    for update, batch in enumerate(learner.batches):
        assert all(0 <= pair.staleness(update) <= bound for pair in batch)


def test_lease_order_trains_every_lease_exactly_once_and_in_order() -> None:
    learner = FakeLearner()
    run(loop_of([FakeGenerator("a"), FakeGenerator("b")], learner, max_staleness=2))
    indices = [pair.lease_index for batch in learner.batches for pair in batch]
    assert indices == list(range(48))


def test_at_bound_zero_every_pair_was_sampled_by_the_version_it_trains() -> None:
    learner = FakeLearner()
    loop = loop_of([FakeGenerator("a")], learner, max_staleness=0)
    run(loop)
    assert loop.progress.staleness == {0: 48}
    assert [{pair.chosen.versions[0] for pair in batch} for batch in learner.batches] == [{v} for v in range(12)]


def test_generation_runs_ahead_of_a_slow_learner_when_the_bound_allows_it() -> None:
    loop = loop_of([FakeGenerator("a")], FakeLearner(update_seconds=0.05), max_staleness=1)
    run(loop)
    assert loop.progress.staleness[1] >= 40


def test_a_generator_that_dies_loses_its_leases_and_not_the_run() -> None:
    dying, learner = FakeGenerator("a", die_after=6), FakeLearner()
    run(loop_of([dying, FakeGenerator("b")], learner, max_staleness=2))
    assert dying.deaths == 1
    assert Counter(pair.lease_index for batch in learner.batches for pair in batch) == Counter(range(48))


def test_a_generator_that_comes_back_takes_the_newest_version_before_it_works() -> None:
    dying = FakeGenerator("a", die_after=20)
    loop = loop_of([dying], FakeLearner(), max_staleness=0)
    run(loop)
    # It dies with 20 answers given, those of updates 0 to 4: version 4 is out, and perhaps version 5.
    assert dying.loads_at_death is not None
    assert dying.loads[dying.loads_at_death] in (4, 5)
    assert loop.progress.staleness == {0: 48}


def test_the_run_fails_with_a_reason_when_no_generator_is_left() -> None:
    loop = loop_of([FakeGenerator("a", die_after=6, dead_for_good=True)], FakeLearner())
    with pytest.raises(RunError, match=r"no generator is left.*--resume"):
        run(loop)


def test_a_failure_of_the_learner_ends_the_run_with_its_own_message() -> None:
    class Broken(FakeLearner):
        async def update(self, items, measure_step=False):
            raise RunError("the learner ran out of memory; lower learner.micro_batch_tokens")

    with pytest.raises(RunError, match=r"lower learner\.micro_batch_tokens"):
        run(loop_of([FakeGenerator("a")], Broken()))


def test_a_batch_is_kept_while_it_is_trained_on_and_the_next_waits_for_that() -> None:
    events: list[str] = []

    class Telling(FakeLearner):
        async def update(self, items, measure_step=False):
            events.append("trains")
            return await super().update(items)

    async def keep(batch: Batch) -> None:
        events.append(f"keeps {batch.update}")
        await asyncio.sleep(0.02)
        events.append(f"kept {batch.update}")

    run(loop_of([FakeGenerator("a")], Telling(), settings={"updates": 2}, keep=keep))
    assert [sorted(events[:2]), events[2], sorted(events[3:5]), events[5]] == [
        ["keeps 0", "trains"],
        "kept 0",
        ["keeps 1", "trains"],
        "kept 1",
    ]


def test_a_batch_that_cannot_be_kept_ends_the_run_unless_the_learner_failed_first() -> None:
    async def keep(batch: Batch) -> None:
        await asyncio.sleep(0.02)
        raise RunError("the disk is full")

    class Failing(FakeLearner):
        async def update(self, items, measure_step=False):
            raise RunError("out of memory")

    with heard(), pytest.raises(RunError, match="the disk is full"):
        run(loop_of([FakeGenerator("a")], FakeLearner(), keep=keep))
    with heard(), pytest.raises(RunError, match="out of memory"):
        run(loop_of([FakeGenerator("a")], Failing(), keep=keep))


def test_superseded_publications_are_retired_and_the_newest_is_kept() -> None:
    learner = FakeLearner()
    loop = loop_of([FakeGenerator("a")], learner, max_staleness=1)
    run(loop)
    assert sorted(learner.exported) == list(range(13))
    assert loop.pool.newest is not None
    assert loop.pool.newest.version == 12
    assert 12 not in learner.retired
    assert set(learner.retired) <= set(range(12))
    assert len(learner.retired) >= 11


def test_several_updates_per_version_publish_once_per_version() -> None:
    learner = FakeLearner()
    loop = loop_of([FakeGenerator("a")], learner, max_staleness=1, updates_per_publish=3)
    run(loop)
    assert learner.exported == [0, 1, 2, 3, 4]
    assert max(loop.progress.staleness) <= 1


def test_stop_ends_after_the_current_update() -> None:
    learner = FakeLearner()
    loop = loop_of([FakeGenerator("a")], learner)

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

    loop = loop_of([FakeGenerator("a")], FakeLearner())
    loop.judge = Silent()
    with pytest.raises(RunError, match=r"3 updates in a row had nothing to train on.*'judge timed out': 1[26]"):
        run(loop)


def test_a_failure_of_the_learner_is_told_even_while_a_superseded_version_is_being_taken() -> None:
    """Retiring the version started a task in a group that was ending, and that error hid the learner's."""

    class SlowTaker(FakeGenerator):
        async def take_weights(self, manifest, chunks):
            if manifest.version > 0:
                await asyncio.Event().wait()
            return await super().take_weights(manifest, chunks)

    class Breaking(FakeLearner):
        async def update(self, items, measure_step=False):
            if len(self.batches) == 3:
                raise RunError("the learner ran out of memory")
            return await super().update(items)

    with pytest.raises(RunError, match="ran out of memory"):
        run(loop_of([SlowTaker("a")], Breaking(), max_staleness=3))


def test_only_the_first_update_of_a_version_measures_the_gap_between_the_engines() -> None:
    class Drifting(FakeLearner):
        async def update(self, items, measure_step=False):
            await super().update(items)
            return FakeStats(log_ratio_max=float(len(self.batches) - 1))

    loop = loop_of([FakeGenerator("a")], Drifting(), max_staleness=0, updates_per_publish=3)
    run(loop)
    assert loop.progress.staleness == {0: 48}
    assert loop.progress.log_ratio_max == 9.0, "update 9 is the first of the last version; 10 and 11 follow it"


def test_the_alarm_is_raised_once_until_the_gap_has_doubled() -> None:
    """At bound zero each batch is fresh; the gap grows by 0.4 nats an update, and float32 allows 0.001."""

    class Drifting(FakeLearner):
        async def update(self, items, measure_step=False):
            await super().update(items)
            return FakeStats(log_ratio_max=0.4 * (len(self.batches) - 1))

    messages: list[str] = []
    run(loop_of([FakeGenerator("a")], Drifting(), messages, {"generators": {"dtype": "float32"}}, max_staleness=0))
    alarms = [text.split(" nats")[0] for text in messages if text.startswith("warning: vLLM and learner")]
    # Of 0.4, 0.8, ... 4.4: the first above 0.001, 0.8, 2.4 (twice 1.2).
    assert [text.removeprefix("warning: vLLM and learner log-probs differ by ") for text in alarms] == [
        "0.4",
        "1.2",
        "2.8",
    ]


def test_no_gap_between_the_engines_is_told_where_no_token_met_the_weights_that_sampled_it() -> None:
    loop = loop_of([FakeGenerator("a")], FakeLearner(), updates_per_publish=3)
    group = judged_group(Lease(0, 0, FakePrompts().prompt(0), 0, 0.0), (0,), (0,))
    asyncio.run(loop._update(Batch(1, 0, (group,), (0,))))
    assert loop.progress.staleness == {0: 1}
    assert loop.progress.log_ratio_max is None


def test_an_evaluation_that_is_still_going_on_does_not_hold_up_the_end() -> None:
    """It waited for generators that had been ended before it, for ever."""
    messages: list[str] = []
    loop = with_evaluation(loop_of([FakeGenerator("a")], FakeLearner(), messages), every_updates=4)

    async def never(prompts, *, min_version):
        await asyncio.Event().wait()

    loop.pool.sample = never
    run(loop)
    assert loop.progress.win_rate is None
    assert any("no evaluation after update 8: the previous one is still running" in text for text in messages)


def test_an_evaluation_outside_the_band_is_acted_upon_after_the_next_update() -> None:
    """The fake's answers have a KL of half a nat per token."""
    band = {"divergence": {"max_kl": 0.1}}
    loop = with_evaluation(loop_of([FakeGenerator("a")], FakeLearner(update_seconds=0.02), settings=band), 4)
    with pytest.raises(AssertionError, match=r"^kl is [\d.]+ at update 4, over 0\.1 \(divergence\.max_kl 0\.1\)$"):
        run(loop)
    assert 4 < loop.buffer.updates < 12


def test_an_evaluation_during_training_gives_a_win_rate() -> None:
    loop = with_evaluation(loop_of([FakeGenerator("a")], FakeLearner(update_seconds=0.02)), every_updates=4)
    run(loop)
    assert loop.progress.win_rate is not None
    # Texts "" and "x" against "" and "": the judge counts characters, so 0.5 + 0.5 + 1 + 1 of 4.
    assert loop.progress.win_rate.value == pytest.approx(0.75)
    assert loop.progress.win_rate.n == 2


@pytest.mark.parametrize(("updates", "kl"), [(12, -1.0 - 0.5 + 3.0), (0, -18.0 + 3.0)], ids=["during", "after"])
def test_the_kl_of_an_evaluation_is_of_the_version_that_sampled(updates: int, kl: float) -> None:
    """During a run the learner goes on while completions are sampled and judged: its own log-probs, -9 a token here,
    are then of a later version. It was told 0.957 for a KL of 1.189 after 16 updates."""

    class Moved(FakeLearner):
        async def score(self, sequences):
            return [([-9.0] * len(response), [-1.5] * len(response)) for _, response, _ in sequences]

    loop = with_evaluation(loop_of([FakeGenerator("a")], Moved()), every_updates=0)
    loop.config = loop.config.model_copy(update={"updates": updates})
    asyncio.run(asyncio.wait_for(loop.run(evaluate), timeout=30))
    assert loop.progress.kl == pytest.approx(kl)


class PartialJudge(FakeJudge):
    """Fails on the first evaluation prompts."""

    def __init__(self, failing: int) -> None:
        self._failing = failing

    async def judge(self, groups):
        failing = [group for group in groups if group.lease.index < 0][: self._failing]
        failures = [Failure(group.lease.index, 0, "judge timed out") for group in failing]
        return [*failures, *(await super().judge(groups))[len(failing) :]]


def test_evaluation_prompts_that_cannot_be_judged_are_left_out_and_counted() -> None:
    messages: list[str] = []
    loop = with_evaluation(loop_of([FakeGenerator("a")], FakeLearner(), messages), every_updates=0)
    loop.judge = PartialJudge(1)
    asyncio.run(asyncio.wait_for(loop.run(evaluate), timeout=30))
    assert loop.progress.win_rate is not None
    assert loop.progress.win_rate.n == 1
    assert "1 of 2 evaluation prompts could not be judged: judge timed out; they are left out" in messages


def test_an_evaluation_of_which_nothing_could_be_judged_fails_the_run() -> None:
    loop = with_evaluation(loop_of([FakeGenerator("a")], FakeLearner()), every_updates=0)
    loop.judge = PartialJudge(2)
    with pytest.raises(RunError, match=r"2 of 2 evaluation prompts could not be judged: judge timed out"):
        asyncio.run(asyncio.wait_for(loop.run(evaluate), timeout=30))


def test_an_evaluation_is_in_the_metrics_of_the_next_update_once() -> None:
    progress = Progress()
    assert progress.new_evaluation() == {}
    progress.win_rate, progress.kl = WinRate(0.75, 0.6, 0.9, 10), 1.5
    assert progress.new_evaluation() == {"win_rate": 0.75, "win_rate_low": 0.6, "win_rate_high": 0.9, "kl": 1.5}
    assert progress.new_evaluation() == {}


class Observer:
    """Measures every `every` updates and after the last; remembers what it was given."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, int]] = []

    def due(self, update: int) -> bool:
        return update % self.every == 0 or update == 12

    async def observe(self, update: int, publication: Publication) -> dict[str, float]:
        self.seen.append((update, publication.version))
        return {"measured": update / 100}


@pytest.mark.parametrize(("every", "due"), [(5, [5, 10, 12]), (4, [4, 8, 12]), (100, [12])])
def test_what_an_observer_measures_is_in_the_metrics_of_the_update_that_it_is_of(every: int, due: list[int]) -> None:
    loop, metrics = loop_of([FakeGenerator("a")], FakeLearner(), max_staleness=1), {}
    observer = Observer(every)
    loop._observers = [observer]
    on_update = lambda progress, values: metrics.update({loop.buffer.updates: values})  # noqa: E731
    loop._events = replace(loop._events, on_update=on_update)
    run(loop)
    assert list(metrics) == list(range(1, 13))
    measured = {update: values["measured"] for update, values in metrics.items() if "measured" in values}
    assert measured == {update: update / 100 for update in due}
    assert observer.seen == [(update, update) for update in due], "the publication of that very update"


def test_an_evaluation_prompt_that_cannot_be_generated_fails_the_run() -> None:
    class Refusing(FakeGenerator):
        async def collect(self, timeout_seconds):
            answers = await super().collect(timeout_seconds)
            refused = Failure(-1, 0, "too long")
            return [refused if answer.lease.index == -1 else answer for answer in answers]

    loop = with_evaluation(loop_of([Refusing("a")], FakeLearner()), every_updates=0)
    with pytest.raises(RunError, match=r"an evaluation prompt could not be generated: too long.*--resume"):
        asyncio.run(asyncio.wait_for(loop.run(evaluate), timeout=30))
