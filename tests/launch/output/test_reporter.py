"""What the board shows and the summary says, from a loop whose state was set by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.records import GeneratorStatus, Lease
from actors.replay_buffer.buffer import ReplayBuffer
from launch.output import reporter as report_module
from launch.output.reporter import Reporter, written
from launch.output.run_directory import RunDirectory
from launch.output.summary import Staleness
from launch.run.loop import LoopEvents, TrainingLoop
from launch.run.plugins import plugin_of
from launch.run.pools.judge_pool import JudgePool
from launch.run.pools.reference_pool import ReferencePool
from launch.run.staleness_limit import StalenessLimit
from launch.run.win_rate import WinRate
from launch.run.world import ExactEvaluation, ExactFigures
from launch.settings.run import RunConfig
from learner.records import UpdateStats
from learner.world.policy import TINY, build_policy, train_sft
from tests.fakes.generators import FakeGenerator, FakePrompts, judged_group
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner


class Account:
    """A pool that only has accounts."""

    def __init__(self, *alive: GeneratorStatus, ended: tuple[GeneratorStatus, ...] = ()) -> None:
        self.statuses = alive
        self.accounts = (*ended, *alive)


class Judging(FakeJudge):
    async def seconds(self) -> float:
        return 3.0


def _status(name: str, tokens: int, generating: float = 0.0, updating: float = 0.0, idle: float = 0.0) -> Any:
    return GeneratorStatus(name, 0, 0, 0, tokens, generating, updating, idle, process=name)


def _loop(**settings: Any) -> TrainingLoop:
    base = {"model": {"path": "unused"}, "updates": 10, "replay": {"prompts_per_update": 2, "max_staleness": 3}}
    config = RunConfig.model_validate({**base, **settings})
    return TrainingLoop(
        config,
        buffer=ReplayBuffer(config.replay, FakePrompts(), config.updates),
        generators=[FakeGenerator("a")],
        judge=FakeJudge(),
        learner=FakeLearner(),
        events=LoopEvents(
            on_update=lambda progress, values: None,
            on_watch=lambda loop: None,
            on_checkpoint=None,  # type: ignore[arg-type]
            on_message=lambda text: None,
        ),
    )


def _reporter(loop: TrainingLoop) -> Reporter:
    plugin = plugin_of(loop.config)
    return Reporter(plugin.resolve(loop.config), RunDirectory(Path("somewhere")), plugin)


def _summary(loop: TrainingLoop, reporter: Reporter | None = None, **settings: Any) -> Any:
    settings = {"status": "completed", "error": None} | settings
    return (reporter or _reporter(loop)).summary(loop, **settings)


def test_the_board_s_rates_are_of_the_recent_past(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(report_module.time, "monotonic", lambda: now[0])
    loop = _loop()
    reporter = _reporter(loop)
    rates = []
    # 10 tokens and 1 group per second for 20 seconds, then 40 tokens and no group.
    for second in range(41):
        now[0] = 100.0 + second
        tokens = 10 * min(second, 20) + 40 * max(0, second - 20)
        loop.progress.groups = min(second, 20)
        loop.pool = Account(_status("a", tokens))  # type: ignore[assignment]
        snapshot = reporter.snapshot(loop)
        rates.append((snapshot.tokens_per_second, snapshot.groups_per_second))
    assert rates[20] == pytest.approx((10.0, 1.0))
    assert rates[30] == pytest.approx((25.0, 0.5)), "ten seconds of either"
    assert rates[40] == pytest.approx((40.0, 0.0))
    assert snapshot.elapsed_seconds == 40.0


def test_a_restart_does_not_stop_the_board_s_token_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new process counts from zero, and the rate used to be 0 until it had caught up."""
    now = [0.0]
    monkeypatch.setattr(report_module.time, "monotonic", lambda: now[0])
    loop = _loop()
    reporter = _reporter(loop)
    loop.pool = Account(_status("a", 500))  # type: ignore[assignment]
    reporter.snapshot(loop)
    now[0] = 10.0
    loop.pool = Account(_status("a", 30), ended=(_status("a", 570),))  # type: ignore[assignment]
    snapshot = reporter.snapshot(loop)
    assert snapshot.tokens_per_second == pytest.approx((570 + 30 - 500) / 10)
    assert [status.tokens for status in snapshot.generators] == [30]


def test_the_board_shows_the_buffer_as_the_next_update_would_find_it() -> None:
    loop = _loop()
    loop.pool = Account()  # type: ignore[assignment]
    for lease in loop.buffer.lease(3, 0.0)[:2]:
        assert isinstance(lease, Lease)
        loop.buffer.add(judged_group(lease, (0, 0), (0,)))
    snapshot = _reporter(loop).snapshot(loop)
    assert (snapshot.buffered, snapshot.in_flight, snapshot.ages) == (2, 1, (0, 0))
    assert (snapshot.updates, snapshot.total_updates, snapshot.max_staleness) == (0, 10, 3)
    assert snapshot.scores["loss"] is None
    loop.buffer.batch()
    loop.progress.win_rate = WinRate(0.75, 0.5, 0.9, 8)
    snapshot = _reporter(loop).snapshot(loop)
    assert (snapshot.updates, snapshot.scores["win rate"]) == (1, "0.750 [0.500, 0.900]")


def _stats(**values: float) -> UpdateStats:
    always = {"update": 1, "loss": 0.25, "grad_norm": 1.0, "lr": 1e-4, "log_ratio_max": 0.5, "log_ratio_mean": 0.1}
    counts = {"behaviour_kl": 0.0, "tokens": 8, "padded_tokens": 8, "seconds": 1.0, "skipped": False}
    return UpdateStats(**(always | counts | {"skipped_updates": 0} | values))  # type: ignore[arg-type]


def test_the_board_of_a_loss_on_pairs_is_about_the_reward() -> None:
    loop = _loop()
    loop.pool = Account()  # type: ignore[assignment]
    loop.progress.stats, loop.progress.score = _stats(accuracy=0.75, kl_chosen=1.0, kl_rejected=2.0), 0.5
    assert _reporter(loop).snapshot(loop).scores == {
        "loss": "0.2500",
        "reward": "0.500",
        "accuracy": "0.750",
        "KL": "1.50",
        "max log-ratio": "0.500",
        "win rate": None,
    }


def test_the_board_leaves_out_what_a_batch_of_ties_cannot_tell() -> None:
    """Its means are 0: the board showed an accuracy of 0.000 and a KL of 0.00 beside a policy at 0.26 nats."""
    loop = _loop()
    loop.pool = Account()  # type: ignore[assignment]
    loop.progress.stats = _stats(pairs=4, ties=4, accuracy=0.0, kl_chosen=0.0, kl_rejected=0.0)
    scores = _reporter(loop).snapshot(loop).scores
    assert (scores["loss"], scores["accuracy"], scores["KL"], scores["max log-ratio"]) == ("0.2500", None, None, None)
    loop.progress.kl = 0.5
    assert _reporter(loop).snapshot(loop).scores["KL"] == "0.50", "of the last evaluation"


def test_the_board_of_a_loss_on_games_is_about_preference_and_exploitability() -> None:
    loop = _loop(learner={"loss": {"kind": "nash_pg"}}, prompts={"source": "world"})
    loop.pool = Account()  # type: ignore[assignment]
    reporter = _reporter(loop)
    evaluation = ExactEvaluation("intransitive", 0, Path("unused"))
    reporter._plugin._evaluation = evaluation  # type: ignore[attr-defined]
    assert reporter.snapshot(loop).scores["exploitability"] is None, "nothing was measured yet"
    loop.progress.stats = _stats(player_preference=0.625, kl_players=1.25)
    evaluation.history.append(ExactFigures(5, 0.4, 1.5, 0.75, (0.6, 0.3, 0.1)))
    scores = reporter.snapshot(loop).scores
    assert list(scores) == ["loss", "preference", "exploitability", "KL", "max log-ratio", "win rate"]
    assert (scores["preference"], scores["exploitability"], scores["KL"]) == ("0.625", "0.400", "1.25")


def test_the_time_left_goes_by_the_mean_pace_of_this_process() -> None:
    loop = _loop()
    loop.pool = Account()  # type: ignore[assignment]
    reporter = _reporter(loop)
    assert reporter.snapshot(loop).seconds_left is None, "there is no pace before the first update"
    loop.progress.updates, loop.progress.learning_seconds = 4, 20.0
    assert reporter.snapshot(loop).seconds_left == 10 * 20.0 / 4


def test_the_summary_counts_the_dead_too() -> None:
    """A death is where work is lost: without the account of the dead, the lost tokens were not counted."""
    loop = _loop()
    loop.pool = Account(  # type: ignore[assignment]
        _status("a", 100, generating=5.0, updating=1.0, idle=2.0),
        _status("b", 300, generating=6.0),
        ended=(_status("a", 200, generating=7.0, idle=0.5),),
    )
    loop.progress.tokens, loop.progress.groups, loop.progress.learning_seconds = 450, 90, 9.0
    loop.evaluation_tokens = 50
    reporter = _reporter(loop)
    asyncio.run(reporter.ask(JudgePool([Judging()], print)))
    summary = _summary(loop, reporter)
    assert summary.time_budget["generator"] == {"generating": 18.0, "updating": 1.0, "idle": 2.5}
    assert summary.time_budget["judge"] == {"judging": 3.0}
    assert "reference" not in summary.time_budget
    assert summary.dropped_tokens == 600 - 450 - 50
    assert (summary.groups_per_second, summary.tokens_per_second) == (10.0, 50.0)


def test_the_seconds_of_reference_actors_are_in_the_budget_if_there_are_any() -> None:
    class Scoring:
        async def seconds(self) -> float:
            return 2.5

    loop = _loop()
    reporter = _reporter(loop)
    pool = ReferencePool([Scoring(), Scoring()], print)  # type: ignore[list-item]
    asyncio.run(reporter.ask(JudgePool([Judging()], print), pool))
    assert _summary(loop, reporter).time_budget["reference"] == {"scoring": 5.0}


def test_the_summary_of_a_run_that_consumed_nothing_has_no_numbers_made_up() -> None:
    summary = _summary(_loop(), status="failed", error="no generator is left")
    assert (summary.status, summary.error) == ("failed", "no generator is left")
    assert (summary.staleness.max, summary.staleness.mean) == (None, None)
    assert (summary.groups_per_second, summary.win_rate, summary.kl, summary.log_ratio_max) == (0.0, None, None, None)


def test_the_summary_has_the_last_evaluation_by_enumeration_and_the_mean_of_the_last_ones() -> None:
    """Ten updates: the last tenth is the tenth alone, of which there are two here."""
    loop = _loop(prompts={"source": "world"})
    reporter = _reporter(loop)
    evaluation = ExactEvaluation("intransitive", 0, Path("unused"))
    reporter._plugin._evaluation = evaluation  # type: ignore[attr-defined]
    assert _summary(loop, reporter).exploitability is None, "nothing was measured yet"
    for update, exploitability in ((5, 0.4), (10, 0.3), (10, 0.2)):
        evaluation.history.append(ExactFigures(update, exploitability, 1.5, 0.75, (0.6, 0.3, 0.1)))
    while loop.buffer.updates < 10:
        _consume_one_update(loop)
    summary = _summary(loop, reporter)
    assert (summary.exploitability, summary.exploitability_tail) == (0.2, pytest.approx(0.25))
    assert (summary.exact_kl, summary.preference, summary.family_shares) == (1.5, 0.75, (0.6, 0.3, 0.1))


def _consume_one_update(loop: TrainingLoop) -> None:
    for lease in loop.buffer.lease(2, 0.0):
        version = loop.buffer.version
        loop.buffer.add(judged_group(lease, (version,), (version,)))
    assert loop.buffer.batch() is not None
    loop.buffer.published(loop.buffer.updates)


def test_where_the_game_is_not_known_the_summary_has_none_of_its_figures() -> None:
    judge = {"judge": {"kind": "function", "path": "module:judge"}}
    summary = _summary(_loop(prompts={"source": "prompts.jsonl"}, judging=judge))
    names = ("exploitability", "exploitability_tail", "exact_kl", "preference", "staleness_law")
    assert [getattr(summary, name) for name in names] == [None] * 5
    assert "family_shares" not in summary.model_dump()


@pytest.mark.parametrize(
    ("loss", "opponent", "bound", "told"),
    [
        ("nash_pg", {"kind": "mixture", "max_staleness": 1}, 1, True),
        ("nash_pg", {"kind": "mixture"}, None, True),
        ("nash_pg", {"kind": "weighted", "max_staleness": 0}, 0, True),
        ("nash_pg", {"kind": "weighted"}, None, False),
        ("rloo", {}, None, False),
    ],
)
def test_the_opponents_staleness_is_told_where_they_are_completions_of_their_own(
    loss: str, opponent: dict[str, Any], bound: int | None, told: bool
) -> None:
    loop = _loop(learner={"loss": {"kind": loss, **({"opponent": opponent} if opponent else {})}})
    loop.progress.staleness, loop.progress.opponent_staleness = {2: 4}, {0: 3, 1: 1}
    summary = _summary(loop)
    assert (summary.loss, summary.opponent_bound) == (loss, bound)
    assert summary.opponent_staleness == (Staleness(max=1, mean=0.25, histogram={0: 3, 1: 1}) if told else None)
    assert summary.staleness.max == 2


def test_the_summary_has_the_law_once_it_was_told() -> None:
    loop = _loop(learner={"loss": {"kind": "nash_pg"}})
    loop.limit.limit = StalenessLimit(0.05, 0.125, 0.1, 0.25, 7.0, 3)
    assert _summary(loop).staleness_law == {
        "tau": 0.05,
        "beta": 0.125,
        "step_size": 0.1,
        "frequency": 0.25,
        "largest_lag": 7.0,
        "bound": 3.0,
    }


@pytest.mark.parametrize(
    ("start", "opponent"),
    [("world", "the SFT policy"), ("trained", "the SFT policy"), ("final", "the starting policy")],
)
def test_the_opponent_is_named_for_what_it_is_also_after_a_resume(tmp_path: Path, start: str, opponent: str) -> None:
    """A resumed run finds the world's policy trained, in no time; another run's end is no SFT policy."""
    if start == "trained":
        train_sft(tmp_path / start, updates=1, seed=0, size=TINY)
    elif start == "final":
        build_policy(TINY).save_pretrained(tmp_path / start)
    path = start if start == "world" else str(tmp_path / start)
    assert _summary(_loop(model={"path": path}, prompts={"source": "world"})).opponent == opponent


def test_what_the_judge_counted_reaches_the_summary() -> None:
    class Counting(FakeJudge):
        async def figures(self) -> dict[str, float]:
            return {"groups": 7.0}

    reporter = _reporter(_loop())
    assert _summary(_loop(), reporter).judging == {}
    asyncio.run(reporter.ask(JudgePool([Counting()], print)))
    assert _summary(_loop(), reporter).judging == {"groups": 7.0}


def test_a_figure_that_rounds_to_zero_has_no_sign():
    assert (written(-0.001, ".2f"), written(-0.5, ".2f"), written(None, ".2f")) == ("0.00", "-0.50", None)
