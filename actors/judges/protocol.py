"""The contract of a judge, and the check of its answers. Must not import any kind of judge."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from actors.errors import OffbeatError, RunError
from actors.preferences import check_preferences
from actors.records import Group, Judgement


class Judge(Protocol):
    """Anything that scores groups. It may raise, hang or answer nonsense: `JudgeWorker` handles all three."""

    async def judge(self, groups: Sequence[Group]) -> Sequence[Judgement | OffbeatError]:
        """Return one judgement per group, in order, each with one finite score per completion.

        A judge that retries by itself returns, not raises, the error of a group that it gave up. The worker does not
        ask for that group again, and the other groups keep their judgements.
        """
        ...


@runtime_checkable
class MeasuredJudge(Protocol):
    """A judge that keeps counts."""

    def metrics(self) -> dict[str, float]:
        """Return totals and extremes since the judge was made, by name."""
        ...


def check_answers(answers: Sequence[Judgement | OffbeatError], groups: Sequence[Group]) -> None:
    """Raise RunError unless every group has an error or a judgement: finite scores and, if given, valid preferences.

    Judgements are checked nowhere else; everything after the worker trusts them.
    """
    answered = len(answers) if isinstance(answers, Sequence) else 0
    if answered != len(groups):
        raise RunError(f"the judge answered {answered} judgements for {len(groups)} groups")
    for group, judgement in zip(groups, answers, strict=True):
        if isinstance(judgement, OffbeatError):
            continue
        count, prompt_id = len(group.completions), group.lease.prompt.id
        who = f"the judge gave prompt '{prompt_id}'"
        if len(judgement.scores) != count:
            raise RunError(f"{who} {len(judgement.scores)} scores for {count} completions")
        if not all(math.isfinite(score) for score in judgement.scores):
            raise RunError(f"{who} scores {judgement.scores}; every score must be finite")
        if judgement.preferences is not None:
            check_preferences(judgement.preferences, count, prompt_id)
