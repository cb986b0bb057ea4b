"""The contract of a judge, and the check of its answers. Must not import any kind of judge."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from actors.errors import OffbeatError, RunError
from actors.foreign.text import many
from actors.preferences import check_preferences
from actors.records import Group, Judgement


class JudgeTimeoutError(RunError):
    """The judge did not answer in time."""

    did = "timed out"


class JudgeDeathError(RunError):
    """The process in which a judge works ended, or did not start again."""

    did = "ended its process"


class Judge(Protocol):
    """Anything that scores groups. It may raise, hang or answer nonsense: `JudgeWorker` handles all three."""

    async def judge(self, groups: Sequence[Group]) -> Sequence[Judgement | OffbeatError]:
        """Return one judgement per group, in order, each with one finite score per completion.

        A judge that retries by itself returns, not raises, the error of a group that it gave up. The worker does not
        retry that group, and the other groups keep their judgements.
        """
        ...


@runtime_checkable
class MeasuredJudge(Protocol):
    """A judge that keeps counts."""

    def metrics(self) -> dict[str, float]:
        """Return totals and extremes since the judge was made, by name."""
        ...


@runtime_checkable
class HostedJudge(Protocol):
    """A judge that works in a process of its own, which it starts itself."""

    @property
    def name(self) -> str:
        """Return the judge's name for messages, with the user's file and line."""
        ...

    async def prepare(self) -> None:
        """Start the process again if it has ended; does not count as time of the batch. Raises RunError if it fails."""
        ...

    def close(self) -> None:
        """End the process and all its children."""
        ...


@contextmanager
def closing(judge: Judge) -> Iterator[Judge]:
    """Close the judge at the end of the context, if it works in a process of its own."""
    try:
        yield judge
    finally:
        if isinstance(judge, HostedJudge):
            judge.close()


async def judge_in_time(judge: Judge, groups: Sequence[Group], seconds: float) -> Sequence[Judgement | OffbeatError]:
    """Return the judge's checked answers. Raises JudgeTimeoutError after `seconds`, and the judge's own errors."""
    if isinstance(judge, HostedJudge):
        await judge.prepare()
    try:
        async with asyncio.timeout(seconds) as limit:
            answers = await judge.judge(groups)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the judge's own timeout, of a request that it made
        who = judge.name if isinstance(judge, HostedJudge) else "the judge"
        raise JudgeTimeoutError(f"{who} did not answer within {seconds:g} s") from error
    check_answers(answers, groups)
    return answers


def check_answers(answers: Sequence[Judgement | OffbeatError], groups: Sequence[Group]) -> None:
    """Raise RunError unless every group has an error or a judgement: finite scores and, if given, valid preferences.

    Reasons are counted by their text, so they name no prompt. Judgements are checked nowhere else: all code after the
    worker trusts them.
    """
    answered = len(answers) if isinstance(answers, Sequence) else 0
    if answered != len(groups):
        raise RunError(f"the judge answered {many(answered, 'judgement')} for {many(len(groups), 'group')}")
    for group, judgement in zip(groups, answers, strict=True):
        if isinstance(judgement, OffbeatError):
            continue
        count = len(group.completions)
        if len(judgement.scores) != count:
            raise RunError(f"the judge gave {many(len(judgement.scores), 'score')} for {many(count, 'completion')}")
        if not all(math.isfinite(score) for score in judgement.scores):
            raise RunError("the judge gave a score that is NaN or infinite; every score must be finite")
        if judgement.preferences is not None:
            check_preferences(judgement.preferences, count)
