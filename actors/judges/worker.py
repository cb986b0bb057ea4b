"""Run a judge: batches, time limits, retries, a check of every answer, counts. Must not import Ray or the buffer.

A group that cannot be judged comes back as a `Failure` with the reason. It never gets a made-up score.
"""

import asyncio
import builtins
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from actors.errors import OffbeatError, RunError, UsageError
from actors.foreign.text import LONGEST_FAILURE, many, shown
from actors.judges.config import JudgingConfig
from actors.judges.factory import make_judge
from actors.judges.protocol import Judge, JudgeDeathError, JudgeTimeoutError, MeasuredJudge, judge_in_time
from actors.records import Failure, Group, Pulse
from actors.user_code import UserCodeError


class JudgeWorker:
    """Runs one judge. A run has `judging.count` of these, one per judge actor."""

    def __init__(
        self,
        config: JudgingConfig,
        tokenizer: str | None = None,
        *,
        judge: Judge | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Make the judge of `config`, unless `judge` is given; `tokenizer` as in `make_judge`. `sleep` pauses (s)."""
        self._config = config
        self._judge = judge or make_judge(config.judge, tokenizer)
        self._sleep = sleep
        self._seconds = 0.0
        self._counts = dict.fromkeys(("groups", "failed_groups"), 0.0)

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        """Judge `groups` in batches: at most `max_batch_groups` each, and no more programs than can end in time.

        A batch is tried `1 + retries` times, with pauses of `retry_backoff_seconds`, doubled each time. If it still
        fails, each of its groups is tried once alone, so that one bad group does not fail the others.

        Returns, per group and in order, the group with its judgement, or the `Failure` of its lease with the reason.
        """
        started = time.monotonic()
        answers: list[Group | Failure] = []
        try:
            for batch in batches(groups, self._config):
                answers += await self._judge_batch(batch)
        finally:
            self._seconds += time.monotonic() - started
        self._counts["groups"] += len(answers)
        self._counts["failed_groups"] += sum(isinstance(answer, Failure) for answer in answers)
        return answers

    async def seconds(self) -> float:
        """Return the seconds spent judging since the start."""
        return self._seconds

    async def pulse(self) -> Pulse:
        """Return a sign of life."""
        return Pulse.of_this_process()

    async def figures(self) -> dict[str, float]:
        """Return the counts since the start: `groups`, `failed_groups` among them, and the judge's own."""
        return self._counts | (self._judge.metrics() if isinstance(self._judge, MeasuredJudge) else {})

    async def _judge_batch(self, batch: Sequence[Group]) -> list[Group | Failure]:
        reason = ""
        for attempt in range(1 + self._config.retries):
            if attempt:
                await self._sleep(self._config.retry_backoff_seconds * 2 ** (attempt - 1))
            try:
                return await self._judge_once(batch)
            except UsageError as error:
                reason = _reason(error)
                break  # the request itself is wrong; a retry cannot help
            except Exception as error:  # judges may be foreign code that raises anything; cancellation passes through
                before, reason = reason, _reason(error)
                if reason == before and _of_code(error):
                    break  # a retry would meet the same error
        return [_failure(batch[0], reason)] if len(batch) == 1 else await self._judge_one_by_one(batch)

    async def _judge_one_by_one(self, batch: Sequence[Group]) -> list[Group | Failure]:
        """Try each group once. After more than `retries` groups in a row without any answer, fail the rest untried."""
        results: list[Group | Failure] = []
        lost, did = 0, ""
        for group in batch:
            if lost > self._config.retries:
                results.append(_failure(group, f"not tried: the judge {did} on {many(lost, 'group')} in a row"))
                continue
            try:
                results += await self._judge_once([group])
                lost = 0
            except Exception as error:  # as above
                results.append(_failure(group, _reason(error)))
                if isinstance(error, JudgeTimeoutError | JudgeDeathError):
                    lost, did = lost + 1, error.did
                else:
                    lost = 0
        return results

    async def _judge_once(self, groups: Sequence[Group]) -> list[Group | Failure]:
        answers = await judge_in_time(self._judge, groups, self._config.timeout_seconds)
        return [
            _failure(group, _reason(answer)) if isinstance(answer, OffbeatError) else replace(group, judgement=answer)
            for group, answer in zip(groups, answers, strict=True)
        ]


def batches(groups: Sequence[Group], config: JudgingConfig) -> list[list[Group]]:
    """Split `groups`, in order, into batches that `config` allows. A group that is too large is a batch by itself."""
    split: list[list[Group]] = []
    completions = 0
    for group in groups:
        completions += len(group.completions)
        if not split or len(split[-1]) == config.max_batch_groups or not config.in_time(completions):
            split.append([])
            completions = len(group.completions)
        split[-1].append(group)
    return split


def _failure(group: Group, reason: str) -> Failure:
    return Failure(lease_index=group.lease.index, attempt=group.lease.attempt, reason=shown(reason, LONGEST_FAILURE))


_FAULTS = (TypeError, ValueError, LookupError, AttributeError, NameError, ArithmeticError, AssertionError)


def _of_code(error: Exception) -> bool:
    """Return whether a judge's code or answer caused an error, rather than a service or the machine."""
    if isinstance(error, UserCodeError):
        raised = getattr(builtins, str(error).partition(" raised ")[2].partition(":")[0], None)
        return isinstance(raised, type) and issubclass(raised, _FAULTS)
    return isinstance(error, _FAULTS) or type(error) is RunError


def _reason(error: Exception) -> str:
    """Return the message of our own errors, which is complete; else type and message."""
    if isinstance(error, OffbeatError):
        return str(error)
    return f"the judge raised {type(error).__name__}: {error}"
