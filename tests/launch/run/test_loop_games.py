"""The loop with losses on games: opponents drawn apart and in time, and the staleness limit."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import replace

import pytest

from actors.records import Failure, Judgement
from launch.run.loop import TrainingLoop
from tests.fakes.generators import FakeGenerator
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner
from tests.launch.run.loops import evaluate, loop_of, run, with_evaluation
from tests.settings import nested


def _game_loop(generators, learner, opponent=None, settings=None, **replay) -> TrainingLoop:
    settings = {"learner": {"loss": {"kind": "nash_pg"}}, "opponent": opponent or {}} | (settings or {})
    return loop_of(generators, learner, settings=nested(settings), **replay)


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
    run(loop)
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
    run(loop)
    assert seen == Counter(range(48))


@pytest.mark.parametrize(("bound", "fresh"), [(0, 0), (1, 0), (1, 1), (3, 1)])
def test_fresh_opponents_keep_their_bound_with_several_updates_per_version(bound: int, fresh: int) -> None:
    learner = FakeLearner()
    opponent = {"max_staleness": fresh}
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, opponent, max_staleness=bound, updates_per_publish=3)
    run(loop)
    _nothing_was_lost(loop, learner)
    players, opponents = _ages(learner, per_publish=3)
    assert max(players) <= bound
    assert max(opponents) <= fresh


def test_at_bounds_zero_every_player_and_opponent_is_of_the_version_it_trains() -> None:
    learner = FakeLearner()
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, {"max_staleness": 0}, max_staleness=0)
    run(loop)
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
    run(loop)
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
    run(loop)
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
    run(loop)
    assert [game.lease_index for games in learner.batches for game in games] == list(range(48))
    assert loop.buffer.ledger()["returned"] == {"opponents: out of cache": 1}


def test_a_lease_does_not_expire_while_its_group_waits_for_opponents() -> None:
    class Slow(FakeLearner):
        """Its first update takes longer than any lease lasts."""

        async def update(self, items, measure_step=False):
            if not self.batches:
                # Nine versions of four may be out at version 0, and this update has taken the first.
                while len(loop._scheduler) < 32:
                    await asyncio.sleep(0.001)
                loop.pool._clock = lambda: math.inf
                loop.pool.expire()
                loop.pool._clock = time.monotonic
            return await super().update(items)

    learner = Slow()
    loop = _game_loop([FakeGenerator("a", opponents=3)], learner, {"max_staleness": 0}, max_staleness=8)
    run(loop)
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
    run(loop)
    _nothing_was_lost(loop, learner)
    assert {lease.draw for lease in generator.answered} == {"all"}
    players, opponents = _ages(learner)
    assert max(players) <= 2
    assert max(opponents) <= 2


def test_a_loss_without_opponents_draws_none() -> None:
    generator, learner = FakeGenerator("a"), FakeLearner()
    loop = _game_loop([generator], learner, None, {"learner": {"loss": {"kind": "rloo"}}})
    run(loop)
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
        ("nash_pg", "weighted", [*range(8), *range(10, 102, 10)]),
        ("nash_pg", "ema", [*range(0, 102, 10)]),
        ("rloo", "weighted", []),
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
    run(_game_loop([generator], learner, opponents, settings, prompts_per_update=1, max_staleness=8))
    assert learner.measured_updates() == measured


def test_a_resumed_run_tells_the_law_from_its_own_first_updates() -> None:
    """Only every 50th update was measured after a resume, and the law told some 350 updates late."""

    def resumable(learner: FakeLearner) -> TrainingLoop:
        settings = {"updates": 40}
        opponent = {"max_staleness": 2}
        return _game_loop([FakeGenerator("a", opponents=3)], learner, opponent, settings, max_staleness=2)

    first = resumable(FakeLearner())

    async def interrupted(loop: TrainingLoop) -> None:
        await loop.publish()
        learning = asyncio.create_task(loop.learn())
        while loop.buffer.updates < 20:
            await asyncio.sleep(0)
        loop.stop()
        await learning

    asyncio.run(asyncio.wait_for(first.run(interrupted), timeout=30))
    resumed = Measuring()
    second = resumable(resumed)
    second.buffer.load_state_dict(first.buffer.state_dict())
    began = second.buffer.updates
    assert began >= 20
    run(second)
    assert resumed.measured_updates(began) == [*range(began, began + 8), *range(30, 40, 10)]
    assert second.limit.limit is not None


def test_the_staleness_law_is_told_once_as_a_message() -> None:
    loop = _game_loop([FakeGenerator("a", opponents=3)], Measuring(), {"max_staleness": 1}, max_staleness=2)
    messages: list[str] = []
    loop._on_message = messages.append
    run(loop)
    assert loop.limit.limit is not None
    assert [text for text in messages if "staleness limit" in text] == [loop.limit.limit.describe()]


class Comparing:
    """Prefers the first of three completions to the second, that to the third, and the third to the first."""

    async def judge(self, groups):
        cycle = Judgement((0.5, 0.5, 0.4), ((0.5, 0.9, 0.1), (0.1, 0.5, 0.9), (0.9, 0.1, 0.5)))
        return [replace(group, judgement=cycle) for group in groups]


def test_a_run_on_compared_pairs_measures_from_its_second_update_and_tells_the_limit_once() -> None:
    learner, messages = Measuring(update_seconds=0.0), []
    settings = {"updates": 22, "learner": {"loss": {"kind": "dpo"}}, "sampling": {"completions_per_prompt": 3}}
    loop = _game_loop([FakeGenerator("a", players=3)], learner, settings=settings, prompts_per_update=1)
    loop.judge, loop._on_message = Comparing(), messages.append
    run(loop)
    assert learner.measured_updates() == [*range(1, 9), 10, 20]
    assert loop.limit.limit is not None
    assert loop.limit.limit.frequency == pytest.approx(math.sqrt(3 / 8))
    assert [text for text in messages if "staleness limit" in text] == [loop.limit.limit.describe()]


def test_an_evaluation_sets_the_policy_alone_against_its_start() -> None:
    generator = FakeGenerator("a", opponents=3)
    loop = with_evaluation(_game_loop([generator], FakeLearner(), {"kind": "mixture"}), every_updates=0)
    asyncio.run(asyncio.wait_for(loop.run(evaluate), timeout=30))
    assert {lease.draw for lease in generator.answered if lease.index < 0} == {"policy"}
    assert loop.progress.win_rate is not None
    assert loop.progress.win_rate.value == pytest.approx(0.75), "two completions of either side, no opponents"
