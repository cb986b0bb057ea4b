"""Retries, time limits and the check of answers, against a judge that misbehaves on cue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.judges.answers.config import CodeJudgeConfig
from actors.judges.config import JudgingConfig
from actors.judges.protocol import check_answers
from actors.judges.worker import JudgeWorker, batches
from actors.records import Failure, Group, Judgement
from actors.user_code import UserCodeError
from tests.fakes.generators import make_group
from tests.fakes.judges import ScriptedJudge

GROUPS = [make_group(["a", "b"], index=index) for index in range(4)]


def scores_of(groups: Sequence[Group]) -> list[Judgement]:
    """What a sane judge answers: lease index + completion number."""
    return [Judgement(tuple(float(group.lease.index + i) for i in range(2))) for group in groups]


def run(judge: Any, groups: Sequence[Group] = GROUPS, **settings: Any) -> tuple[list[Group | Failure], list[float]]:
    """Results, and the pauses that were asked for."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    config = JudgingConfig(**{"timeout_seconds": 0.05, "retries": 2, "retry_backoff_seconds": 0.5} | settings)
    return asyncio.run(JudgeWorker(config, judge=judge, sleep=note).judge(groups)), pauses


def scores(results: Sequence[Group | Failure]) -> list[tuple[float, ...]]:
    return [result.judgement.scores for result in results if isinstance(result, Group) and result.judgement is not None]


ALL_JUDGED = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]


def test_a_sane_judge_is_asked_once_and_its_scores_reach_their_groups_in_order() -> None:
    judge = ScriptedJudge(lambda call, groups: scores_of(groups))
    results, pauses = run(judge)
    assert scores(results) == ALL_JUDGED
    assert [result.lease.index for result in results if isinstance(result, Group)] == [0, 1, 2, 3]
    assert judge.calls == [[0, 1, 2, 3]]
    assert pauses == []


def test_a_reason_is_cut_and_escaped_before_it_travels() -> None:
    def fail(call: int, groups: Sequence[Group]) -> Any:
        raise ValueError("\x1b" + "x" * 200_000)

    results, _ = run(ScriptedJudge(fail), GROUPS[:1])
    (failure,) = results
    assert isinstance(failure, Failure)
    assert failure.reason.startswith(r"the judge raised ValueError: \x1bxxx")
    assert len(failure.reason) == 1000


def test_batches_hold_at_most_the_configured_groups() -> None:
    judge = ScriptedJudge(lambda call, groups: scores_of(groups))
    results, _ = run(judge, max_batch_groups=3)
    assert judge.calls == [[0, 1, 2], [3]]
    assert scores(results) == ALL_JUDGED


def test_nothing_to_judge_asks_nobody() -> None:
    judge = ScriptedJudge(lambda call, groups: scores_of(groups))
    assert run(judge, groups=[]) == ([], [])
    assert judge.calls == []


def test_pauses_between_attempts_double() -> None:
    judge = ScriptedJudge(lambda call, groups: OSError("connection reset") if call < 3 else scores_of(groups))
    results, pauses = run(judge, retries=3)
    assert pauses == [0.5, 1.0, 2.0]
    assert scores(results) == ALL_JUDGED


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (TypeError("no len()"), 2),
        (RunError("the judge answered 3 judgements for 1 group"), 2),
        (UserCodeError("judge m:f raised ZeroDivisionError: division by zero (m.py:3)", ""), 2),
        (UserCodeError("judge m:f raised ConnectionError: refused (m.py:3)", ""), 4),
        (ConnectionRefusedError("refused"), 4),
    ],
)
def test_an_error_of_the_judge_s_own_code_that_comes_twice_is_not_asked_for_again(error: Exception, asked: int) -> None:
    """A service may be back at the next try; the same code meets the same error."""
    judge = ScriptedJudge(lambda call, groups: error)
    (failure,), _ = run(judge, GROUPS[:1], retries=3)
    assert len(judge.calls) == asked
    assert isinstance(failure, Failure)
    assert str(error) in failure.reason


def test_a_judge_that_hangs_once_is_asked_again() -> None:
    judge = ScriptedJudge(lambda call, groups: None if call == 0 else scores_of(groups))
    results, pauses = run(judge)
    assert scores(results) == ALL_JUDGED
    assert pauses == [0.5]


NONSENSE = {
    "too few judgements": lambda groups: scores_of(groups)[:-1],
    "too many judgements": lambda groups: [*scores_of(groups), Judgement((0.0, 0.0))],
    "no list": lambda groups: 3.0,
    "a missing score": lambda groups: [Judgement((1.0,))] * len(groups),
    "nan": lambda groups: [Judgement((1.0, float("nan")))] * len(groups),
    "infinity": lambda groups: [Judgement((1.0, float("inf")))] * len(groups),
    "text": lambda groups: [Judgement(("1.0", "2.0"))] * len(groups),
    "preferences of another size": lambda groups: [Judgement((1.0, 2.0), ((0.5, 0.5),))] * len(groups),
    "preferences that do not add up": lambda groups: [Judgement((1.0, 2.0), ((0.5, 0.9), (0.2, 0.5)))] * len(groups),
    "preferences above one": lambda groups: [Judgement((1.0, 2.0), ((0.5, 1.5), (-0.5, 0.5)))] * len(groups),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_counts_as_an_error_and_is_asked_again(nonsense: Any) -> None:
    judge = ScriptedJudge(lambda call, groups: nonsense(groups) if call == 0 else scores_of(groups))
    results, pauses = run(judge)
    assert scores(results) == ALL_JUDGED
    assert pauses == [0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused_even_where_it_would_be_replaced(bad: float) -> None:
    """Pairing, which trusts judgements, would replace the score of an unfinished completion."""
    with pytest.raises(RunError, match="gave a score that is NaN or infinite"):
        check_answers([Judgement((1.0, bad))], [make_group(["a", "b"], index=7, finished=(True, False))])


def test_a_judgement_of_another_length_is_refused() -> None:
    with pytest.raises(RunError, match="gave 3 scores for 2 completions"):
        check_answers([Judgement((1.0, 2.0, 3.0))], GROUPS[:1])


def test_one_bad_group_does_not_take_its_batch_with_it() -> None:
    def script(call: int, groups: Sequence[Group]) -> Any:
        return ValueError("cannot read") if any(group.lease.index == 2 for group in groups) else scores_of(groups)

    judge = ScriptedJudge(script)
    results, _ = run(judge)
    assert judge.calls == [[0, 1, 2, 3]] * 2 + [[0], [1], [2], [3]]
    assert scores(results) == [ALL_JUDGED[0], ALL_JUDGED[1], ALL_JUDGED[3]]
    assert results[2] == Failure(lease_index=2, attempt=0, reason="the judge raised ValueError: cannot read")


def test_a_group_that_fails_is_never_scored() -> None:
    results, pauses = run(ScriptedJudge(lambda call, groups: RuntimeError("down")))
    assert [type(result) for result in results] == [Failure] * 4
    assert pauses == [0.5, 1.0]


def test_a_single_group_is_not_asked_again_after_its_last_retry() -> None:
    judge = ScriptedJudge(lambda call, groups: RuntimeError("down"))
    results, _ = run(judge, groups=GROUPS[:1], retries=1)
    assert len(judge.calls) == 2
    assert results == [Failure(0, 0, "the judge raised RuntimeError: down")]


def test_a_failure_carries_the_attempt_of_its_lease() -> None:
    group = make_group(["a", "b"], index=9)
    object.__setattr__(group.lease, "attempt", 3)
    results, _ = run(ScriptedJudge(lambda call, groups: None), groups=[group], retries=0)
    assert results == [Failure(9, 3, "the judge did not answer within 0.05 s")]


def test_a_dead_silent_judge_is_not_waited_for_on_every_single_group() -> None:
    groups = [make_group(["a", "b"], index=index) for index in range(64)]
    judge = ScriptedJudge(lambda call, groups: None)
    results, _ = run(judge, groups=groups, retries=1)
    assert [len(call) for call in judge.calls] == [64, 64, 1, 1]
    assert all(isinstance(result, Failure) for result in results)
    assert "timed out on 2 groups in a row" in results[-1].reason  # type: ignore[union-attr]


def test_the_judges_own_timeout_error_is_reported_as_its_own() -> None:
    judge = ScriptedJudge(lambda call, groups: TimeoutError("socket"))
    results, _ = run(judge, groups=GROUPS[:1], retries=0)
    assert results == [Failure(0, 0, "the judge raised TimeoutError: socket")]


def test_a_wrong_request_is_not_repeated_but_the_other_groups_are_judged() -> None:
    def script(call: int, groups: Sequence[Group]) -> Any:
        return UsageError("no gold answer") if groups[0].lease.index == 0 else scores_of(groups)

    judge = ScriptedJudge(script)
    results, pauses = run(judge)
    assert pauses == []
    assert judge.calls == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert results[0] == Failure(0, 0, "no gold answer")
    assert scores(results) == ALL_JUDGED[1:]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, asyncio.CancelledError])
def test_being_told_to_stop_is_not_taken_for_a_failing_judge(stop: type[BaseException]) -> None:
    judge = ScriptedJudge(lambda call, groups: stop())
    with pytest.raises(stop):
        run(judge)
    assert len(judge.calls) == 1


def test_cancelling_the_caller_ends_the_wait_for_a_silent_judge() -> None:
    async def scenario() -> None:
        judge = ScriptedJudge(lambda call, groups: None)
        task = asyncio.create_task(JudgeWorker(JudgingConfig(), judge=judge).judge(GROUPS))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ([4] * 7, [3, 3, 1]),  # 12 programs, 4 at a time beside 12 others, are 6 turns of 10 s
        ([12, 1, 1], [1, 2]),
        ([50, 4, 50, 50], [1, 1, 1, 1]),  # too many alone: a batch, and its time limit holds
        ([], []),
    ],
)
def test_a_batch_has_no_more_programs_than_end_within_its_time_limit(sizes: list[int], split: list[int]) -> None:
    config = JudgingConfig(
        judge=CodeJudgeConfig(time_limit_seconds=10.0, max_concurrent_programs=4), timeout_seconds=60.0
    )
    groups = [make_group(["x"] * size, index=index) for index, size in enumerate(sizes)]
    found = batches(groups, config)
    assert [len(batch) for batch in found] == split
    assert [group for batch in found for group in batch] == groups


def test_other_judges_batches_are_bounded_by_their_number_of_groups_alone() -> None:
    groups = [make_group(["x"] * 50, index=index) for index in range(5)]
    assert [len(batch) for batch in batches(groups, JudgingConfig(max_batch_groups=2))] == [2, 2, 1]
