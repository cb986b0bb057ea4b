"""The whole loop in one process: real buffer, pool and loop around fake generators, judge and learner."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from actors.buffer import Batch, ReplayBuffer
from actors.errors import RunError
from actors.records import Failure, Lease
from launch.config import EvaluationConfig, RunConfig
from launch.evaluation import WinRate
from launch.exactness import ExactFigures
from launch.loop import EvaluationSet, Progress, TrainingLoop
from tests.fakes import FakeGenerator, FakeJudge, FakeLearner, FakePrompts, FakeStats, group_of, judged_group


def _loop(generators, learner, messages=None, settings=None, **replay) -> TrainingLoop:
    config = RunConfig.model_validate(
        {
            "model": {"path": "unused"},
            "updates": 12,
            "replay": {"prompts_per_update": 4, **replay},
            "checkpoints": {"every_updates": 0},
            **(settings or {}),
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
        async def update(self, items, measure_step=False):
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
        async def update(self, items, measure_step=False):
            if len(self.batches) == 3:
                raise RunError("the learner ran out of memory")
            return await super().update(items)

    with pytest.raises(RunError, match="ran out of memory"):
        _run(_loop([SlowTaker("a")], Breaking(), max_staleness=3))


def test_only_the_first_update_of_a_version_measures_the_gap_between_the_engines() -> None:
    class Drifting(FakeLearner):
        async def update(self, items, measure_step=False):
            await super().update(items)
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


def _game_loop(generators, learner, opponent=None, settings=None, **replay) -> TrainingLoop:
    settings = {"learner": {"loss": {"kind": "nash_pg"}}, "opponent": opponent or {}} | (settings or {})
    return _loop(generators, learner, settings=settings, **replay)


def _ages(learner: FakeLearner, per_publish: int = 1) -> tuple[Counter[int], Counter[int]]:
    """Staleness of every consumed player and opponent, recomputed from their tokens."""
    players, opponents = Counter(), Counter()
    for update, games in enumerate(learner.batches):
        version = update // per_publish
        for game in games:
            assert (len(game.players), len(game.opponents), len(game.preferences)) == (2, 3, 5)
            assert [each.opponent for each in game.completions] == [False, False, True, True, True]
            # The judge counts characters: two players of 0 and 1, three opponents of 0, 1 and 2.
            assert game.scores == (0.0, 1.0, 0.0, 1.0, 2.0)
            players.update(version - token for each in game.players for token in each.versions)
            opponents.update(version - token for each in game.opponents for token in each.versions)
    return players, opponents


def _nothing_was_lost(loop: TrainingLoop, learner: FakeLearner) -> None:
    assert [game.lease_index for games in learner.batches for game in games] == list(range(48))
    ledger = loop.buffer.ledger()
    assert (ledger["trained"], ledger["returned"], ledger["dropped"]) == (48, {}, {})


@pytest.mark.parametrize(("generation", "update"), [(0.001, 0.03), (0.01, 0.0), (0.003, 0.003)])
@pytest.mark.parametrize("fresh", [0, 1])
def test_freshly_drawn_opponents_keep_their_own_bound_whoever_is_slower(
    generation: float, update: float, fresh: int
) -> None:
    learner = FakeLearner(update_seconds=update)
    generators = [FakeGenerator("a", seconds=generation, opponents=3), FakeGenerator("b", seconds=0.001, opponents=3)]
    loop = _game_loop(generators, learner, {"max_staleness": fresh}, max_staleness=8)
    _run(loop)
    _nothing_was_lost(loop, learner)
    players, opponents = _ages(learner)
    assert max(players) <= 8
    assert max(opponents) <= fresh
    assert min(opponents) >= 0
    # Two tokens per completion, two players and three opponents per game.
    assert loop.progress.staleness == {age: count // 4 for age, count in players.items()}
    assert loop.progress.opponent_staleness == {age: count // 6 for age, count in opponents.items()}
    if update > generation:
        assert max(players) == 8, "generation runs ahead as far as it may, opponents notwithstanding"
        assert loop.progress.opponent_staleness[fresh] >= 40


def test_each_group_is_judged_once_with_its_opponents() -> None:
    seen: Counter[int] = Counter()

    class Watching(FakeJudge):
        async def judge(self, groups):
            seen.update(group.lease.index for group in groups)
            assert all(len(group.completions) == 5 for group in groups)
            return await super().judge(groups)

    loop = _game_loop([FakeGenerator("a", opponents=3)], FakeLearner(), {"max_staleness": 1}, max_staleness=3)
    loop.judge = Watching()
    _run(loop)
    assert seen == Counter(range(48))


@pytest.mark.parametrize(("bound", "fresh"), [(0, 0), (1, 0), (1, 1), (3, 1)])
def test_fresh_opponents_keep_their_bound_with_several_updates_per_version(bound: int, fresh: int) -> None:
    learner = FakeLearner()
    opponent = {"max_staleness": fresh}
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, opponent, max_staleness=bound, updates_per_publish=3)
    _run(loop)
    _nothing_was_lost(loop, learner)
    players, opponents = _ages(learner, per_publish=3)
    assert max(players) <= bound
    assert max(opponents) <= fresh


def test_at_bounds_zero_every_player_and_opponent_is_of_the_version_it_trains() -> None:
    learner = FakeLearner()
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, {"max_staleness": 0}, max_staleness=0)
    _run(loop)
    _nothing_was_lost(loop, learner)
    assert loop.progress.staleness == loop.progress.opponent_staleness == {0: 48}


def test_opponents_of_the_next_update_are_drawn_during_this_one() -> None:
    """The learner here ends no update before the next one's opponents are there: without overlap it waits for ever."""
    generator = FakeGenerator("a", opponents=3)

    class Waiting(FakeLearner):
        async def update(self, items, measure_step=False):
            following = {f"fake:{index}" for index in range(4 * len(self.batches) + 4, 4 * len(self.batches) + 8)}
            while len(self.batches) < 11 and not following <= _drawn(generator):
                await asyncio.sleep(0.001)
            return await super().update(items)

    learner = Waiting()
    loop = _game_loop([generator], learner, {"max_staleness": 1}, max_staleness=2)
    _run(loop)
    _nothing_was_lost(loop, learner)


def _drawn(generator: FakeGenerator) -> set[str]:
    """Prompts of which it has drawn opponents apart."""
    return {lease.prompt.id for lease in generator.answered if lease.draw == "opponents"}


@pytest.mark.parametrize("dead_for_good", [False, True])
def test_a_generator_that_dies_while_it_draws_opponents_costs_no_group(dead_for_good: bool) -> None:
    class DiesDrawing(FakeGenerator):
        drawing = 0

        async def submit(self, leases):
            await super().submit(leases)
            drawing = [lease for lease in leases if lease.draw == "opponents"]
            if drawing and len(self.answered) >= 8 and not self.deaths:
                self.drawing, self._die_after = len(drawing), 0

    dying, learner = DiesDrawing("a", opponents=3, dead_for_good=dead_for_good), FakeLearner()
    loop = _game_loop([dying, FakeGenerator("b", opponents=3)], learner, {"max_staleness": 1}, max_staleness=4)
    _run(loop)
    assert dying.deaths == 1
    assert dying.drawing >= 1
    assert [game.lease_index for games in learner.batches for game in games] == list(range(48))
    ledger = loop.buffer.ledger()
    # What it generated for training goes back; groups whose opponents it drew are kept.
    assert set(ledger["returned"]) <= {"generator died"}
    assert ledger["generated"] == 48
    _, opponents = _ages(learner)
    assert max(opponents) <= 1


def test_opponents_that_cannot_be_drawn_send_the_lease_back_with_the_reason_and_not_the_run() -> None:
    class Refusing(FakeGenerator):
        refused = 0

        async def collect(self, timeout_seconds):
            answers = await super().collect(timeout_seconds)
            for number, answer in enumerate(answers):
                lease = answer.lease
                if lease.draw == "opponents" and lease.prompt.id == "fake:5" and not self.refused:
                    self.refused += 1
                    answers[number] = Failure(lease.index, lease.attempt, "out of cache")
            return answers

    learner = FakeLearner()
    loop = _game_loop([Refusing("a", opponents=3)], learner, {"max_staleness": 1}, max_staleness=2)
    _run(loop)
    assert [game.lease_index for games in learner.batches for game in games] == list(range(48))
    assert loop.buffer.ledger()["returned"] == {"opponents: out of cache": 1}


def test_a_lease_does_not_expire_while_its_group_waits_for_opponents() -> None:
    class Slow(FakeLearner):
        """Its first update takes longer than any lease lasts."""

        async def update(self, items, measure_step=False):
            if not self.batches:
                # Nine versions of four may be out at version 0, and this update has taken the first.
                while len(loop._desk) < 32:
                    await asyncio.sleep(0.001)
                loop.pool._clock = lambda: math.inf
                loop.pool.expire()
                loop.pool._clock = time.monotonic
            return await super().update(items)

    learner = Slow()
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, {"max_staleness": 0}, max_staleness=8)
    _run(loop)
    _nothing_was_lost(loop, learner)


def test_a_run_that_is_stopped_ends_although_groups_wait_for_opponents() -> None:
    class Silent(FakeGenerator):
        """Draws opponents of the first two updates only."""

        async def submit(self, leases):
            await super().submit([each for each in leases if each.draw == "policy" or int(each.prompt.id[5:]) < 8])

    learner = FakeLearner()
    loop = _game_loop([Silent("a", opponents=3)], learner, {"max_staleness": 1}, max_staleness=8)

    async def stop_early(loop: TrainingLoop) -> None:
        await loop.publish()
        learning = asyncio.create_task(loop.learn())
        while len(learner.batches) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        loop.stop()
        await learning

    asyncio.run(asyncio.wait_for(loop.run(stop_early), timeout=10))
    assert loop.buffer.updates == 2
    assert loop.buffer.in_flight >= 4


def test_opponents_without_a_bound_of_their_own_come_with_the_players() -> None:
    generator, learner = FakeGenerator("a", opponents=3), FakeLearner()
    loop = _game_loop([generator], learner, {"kind": "mixture"}, max_staleness=2)
    _run(loop)
    _nothing_was_lost(loop, learner)
    assert {lease.draw for lease in generator.answered} == {"all"}
    players, opponents = _ages(learner)
    assert max(players) <= 2
    assert max(opponents) <= 2


def test_a_loss_without_opponents_draws_none() -> None:
    generator, learner = FakeGenerator("a"), FakeLearner()
    loop = _game_loop([generator], learner, None, {"learner": {"loss": {"kind": "reward_pg"}}})
    _run(loop)
    assert {lease.draw for lease in generator.answered} == {"all"}
    assert all(game.opponents == () for games in learner.batches for game in games)
    assert loop.progress.opponent_staleness == {}


class Measuring(FakeLearner):
    """Its steps are measured where that is asked for."""

    async def update(self, items, measure_step=False):
        return replace(await super().update(items, measure_step), step_size=0.1 if measure_step else None)

    def measured_updates(self, first: int = 0) -> list[int]:
        return [update for update, each in enumerate(self.measured, start=first) if each]


@pytest.mark.parametrize(
    ("kind", "opponent", "measured"),
    [
        ("nash_pg", "weighted", [*range(8), 50, 100]),
        ("nash_pg", "ema", [0, 50, 100]),
        ("reward_pg", "weighted", []),
        ("dpo", "weighted", []),
    ],
)
def test_steps_are_measured_until_the_law_is_told_and_now_and_then(
    kind: str, opponent: str, measured: list[int]
) -> None:
    """For the opponent `ema` no law is known."""
    learner = Measuring(update_seconds=0.0)
    settings = {"updates": 102, "learner": {"loss": {"kind": kind}}}
    generator = FakeGenerator("a", opponents=3 if kind == "nash_pg" else 0)
    opponents = {"kind": opponent, "max_staleness": 8} if kind == "nash_pg" else None
    _run(_game_loop([generator], learner, opponents, settings, prompts_per_update=1, max_staleness=8))
    assert learner.measured_updates() == measured


def test_a_resumed_run_tells_the_law_from_its_own_first_updates() -> None:
    """Only every 50th update was measured after a resume, and the law told some 350 updates late."""

    def loop_of(learner: FakeLearner) -> TrainingLoop:
        settings = {"updates": 40}
        opponent = {"max_staleness": 2}
        return _game_loop([FakeGenerator("a", opponents=3)], learner, opponent, settings, max_staleness=2)

    first = loop_of(FakeLearner())

    async def interrupted(loop: TrainingLoop) -> None:
        await loop.publish()
        learning = asyncio.create_task(loop.learn())
        while loop.buffer.updates < 20:
            await asyncio.sleep(0)
        loop.stop()
        await learning

    asyncio.run(asyncio.wait_for(first.run(interrupted), timeout=30))
    resumed = Measuring()
    second = loop_of(resumed)
    second.buffer.load_state_dict(first.buffer.state_dict())
    began = second.buffer.updates
    assert began >= 20
    _run(second)
    assert resumed.measured_updates(began) == list(range(began, began + 8))
    assert second.law.law is not None


class Exact:
    """An evaluation by enumeration that knows when it was asked, and with which tables."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.tables: list[Any] = []

    def measure(self, update: int, table: Any) -> ExactFigures:
        self.asked.append(update)
        self.tables.append(table)
        return ExactFigures(update, update / 100, 1.5, 0.75, None)


@pytest.mark.parametrize(("every", "asked"), [(5, [5, 10, 12]), (4, [4, 8, 12]), (100, [12]), (0, [])])
def test_exact_figures_reach_the_metrics_now_and_then_and_after_the_last_update(every: int, asked: list[int]) -> None:
    settings = {"evaluation": {"exact_every_updates": every}}
    loop = _loop([FakeGenerator("a")], FakeLearner(), settings=settings, max_staleness=1)
    loop.exact, metrics = Exact(), {}
    loop._on_update = lambda progress, values: metrics.update({loop.buffer.updates: values})
    _run(loop)
    assert list(metrics) == list(range(1, 13))
    told = {update: values["exploitability"] for update, values in metrics.items() if "exploitability" in values}
    assert told == {update: update / 100 for update in asked}
    assert all(metrics[update].items() >= {"exact_kl": 1.5, "exact_preference": 0.75}.items() for update in asked)
    assert loop.exact.asked == asked
    assert all(table.shape == (16, 259, 18) for table in loop.exact.tables), "the learner's table"


def test_where_the_game_is_not_known_the_learner_is_asked_for_no_table() -> None:
    class NoTable(FakeLearner):
        async def exact_table(self):
            raise AssertionError("nobody may ask")

    settings = {"evaluation": {"exact_every_updates": 1}}
    _run(_loop([FakeGenerator("a")], NoTable(), settings=settings))


def test_the_staleness_law_is_told_once_as_a_message() -> None:
    loop = _game_loop([FakeGenerator("a", opponents=3)], Measuring(), {"max_staleness": 1}, max_staleness=2)
    messages: list[str] = []
    loop._on_message = messages.append
    _run(loop)
    assert loop.law.law is not None
    assert [text for text in messages if "staleness law" in text] == [loop.law.law.describe()]


def test_an_evaluation_sets_the_policy_alone_against_its_start() -> None:
    generator = FakeGenerator("a", opponents=3)
    loop = _with_evaluation(_game_loop([generator], FakeLearner(), {"kind": "mixture"}), every_updates=0)
    asyncio.run(asyncio.wait_for(loop.run(_evaluate), timeout=30))
    assert {lease.draw for lease in generator.answered if lease.index < 0} == {"policy"}
    assert loop.progress.win_rate is not None
    assert loop.progress.win_rate.value == pytest.approx(0.75), "two completions of either side, no opponents"


def test_an_evaluation_prompt_that_cannot_be_generated_fails_the_run() -> None:
    class Refusing(FakeGenerator):
        async def collect(self, timeout_seconds):
            answers = await super().collect(timeout_seconds)
            refused = Failure(-1, 0, "too long")
            return [refused if answer.lease.index == -1 else answer for answer in answers]

    loop = _with_evaluation(_loop([Refusing("a")], FakeLearner()), every_updates=0)
    with pytest.raises(RunError, match=r"an evaluation prompt could not be generated: too long.*--resume"):
        asyncio.run(asyncio.wait_for(loop.run(_evaluate), timeout=30))
