"""Patience with judges: time limits, retries and a check of every answer. It must not know any kind of judge.

A group that cannot be judged comes back as a `Failure` with the reason. It is never given a score.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges import Judge
from actors.judges.config import JudgingConfig
from actors.records import Failure, Group, Judgement

Sleep = Callable[[float], Awaitable[object]]


class _JudgeTimeoutError(Exception):
    """The judge did not answer in time."""


async def judge_with_retries(
    judge: Judge, groups: Sequence[Group], config: JudgingConfig, sleep: Sleep = asyncio.sleep
) -> list[Group | Failure]:
    """Judges `groups` in batches of at most `config.max_batch_groups`.

    A batch is tried `1 + config.retries` times, with pauses of `retry_backoff_seconds`, doubled each time. A batch that
    still fails is judged group by group, so that one bad group does not take the others with it.

    Args:
        judge: any judge.
        groups: not yet judged.
        config: batch size, time limit per call, retries and pauses.
        sleep: how to pause, in seconds.

    Returns:
        For each group, in order: the group with its judgement, or the `Failure` of its lease with the reason.
    """
    results: list[Group | Failure] = []
    for start in range(0, len(groups), config.max_batch_groups):
        batch = groups[start : start + config.max_batch_groups]
        results += await _judge_batch(judge, batch, config, sleep)
    return results


async def _judge_batch(
    judge: Judge, batch: Sequence[Group], config: JudgingConfig, sleep: Sleep
) -> Sequence[Group | Failure]:
    reason = ""
    for attempt in range(1 + config.retries):
        if attempt:
            await sleep(config.retry_backoff_seconds * 2 ** (attempt - 1))
        try:
            return await _judge_once(judge, batch, config.timeout_seconds)
        except UsageError as error:
            reason = _reason(error)
            break  # the request itself is wrong: asking again cannot help
        except Exception as error:  # judges are foreign code and may raise anything; cancellation is no Exception
            reason = _reason(error)
    if len(batch) == 1:
        return [_failure(batch[0], reason)]
    return await _judge_one_by_one(judge, batch, config)


async def _judge_one_by_one(judge: Judge, batch: Sequence[Group], config: JudgingConfig) -> list[Group | Failure]:
    """One try per group. A judge that hangs on several in a row is not waited for on the rest."""
    results: list[Group | Failure] = []
    timeouts_in_a_row = 0
    for group in batch:
        if timeouts_in_a_row > config.retries:
            results.append(_failure(group, f"not tried: the judge timed out on {timeouts_in_a_row} groups in a row"))
            continue
        try:
            results += await _judge_once(judge, [group], config.timeout_seconds)
            timeouts_in_a_row = 0
        except Exception as error:  # as above
            results.append(_failure(group, _reason(error)))
            timeouts_in_a_row = timeouts_in_a_row + 1 if isinstance(error, _JudgeTimeoutError) else 0
    return results


async def _judge_once(judge: Judge, groups: Sequence[Group], timeout_seconds: float) -> list[Group | Failure]:
    try:
        async with asyncio.timeout(timeout_seconds) as limit:
            answers = await judge.judge(groups)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the judge's own, of a request it made
        raise _JudgeTimeoutError(f"the judge did not answer within {timeout_seconds:g} s") from error
    check_answers(answers, groups)
    return [
        _failure(group, _reason(answer)) if isinstance(answer, OffbeatError) else replace(group, judgement=answer)
        for group, answer in zip(groups, answers, strict=True)
    ]


def check_answers(answers: Sequence[Judgement | OffbeatError], groups: Sequence[Group]) -> None:
    """Raises RunError unless there is one answer per group: an error, or as many finite scores as completions."""
    answered = len(answers) if isinstance(answers, Sequence) else 0
    if answered != len(groups):
        raise RunError(f"the judge answered {answered} judgements for {len(groups)} groups")
    for group, judgement in zip(groups, answers, strict=True):
        if isinstance(judgement, OffbeatError):
            continue
        count, prompt = len(group.completions), group.lease.prompt.id
        if len(judgement.scores) != count:
            raise RunError(f"the judge gave prompt '{prompt}' {len(judgement.scores)} scores for {count} completions")
        if not all(math.isfinite(score) for score in judgement.scores):
            raise RunError(f"the judge gave prompt '{prompt}' scores {judgement.scores}; every score must be finite")
        rows = judgement.preferences
        if rows is not None and (len(rows) != count or any(len(row) != count for row in rows)):
            raise RunError(f"the judge gave prompt '{prompt}' preferences that are not {count} x {count}")
        if rows is not None and not all(0.0 <= probability <= 1.0 for row in rows for probability in row):
            raise RunError(f"the judge gave prompt '{prompt}' preferences outside 0 to 1: {rows}")


def _failure(group: Group, reason: str) -> Failure:
    return Failure(lease_index=group.lease.index, attempt=group.lease.attempt, reason=reason)


def _reason(error: Exception) -> str:
    """The message; with the type where the error is not one of ours, whose messages stand alone."""
    if isinstance(error, OffbeatError | _JudgeTimeoutError):
        return str(error)
    return f"the judge raised {type(error).__name__}: {error}"
