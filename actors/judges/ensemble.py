"""Several judges as one, by weight. It must not know any kind of judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges import Judge, MeasuredJudge
from actors.judges.config import EnsembleJudgeConfig
from actors.judges.retrying import check_answers
from actors.records import Group, Judgement
from actors.replay_buffer.pairing import bradley_terry, checked_preferences


class EnsembleJudge:
    """Weighted means of the members' scores and of their preferences; all members judge at a time."""

    def __init__(self, config: EnsembleJudgeConfig, members: Sequence[Judge]) -> None:
        """`members` as `config.members`, in order."""
        self._members = members
        self._names = [f"{number}_{each.judge.kind}" for number, each in enumerate(config.members, start=1)]
        total = sum(each.weight for each in config.members)
        self._weights = [each.weight / total for each in config.members]

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """The members' mean for each group; an error that names the member where one could not judge the group.

        Raises:
            RunError: a member raised something, or its answers do not fit the groups. UsageError: it raised one.
        """
        calls = [self._ask(name, member, groups) for name, member in zip(self._names, self._members, strict=True)]
        # All are waited for: what one was paid for is remembered there when the batch is tried again.
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        whole = [answer for answer in answers if not isinstance(answer, BaseException)]
        return [self._mean(group, [answer[index] for answer in whole]) for index, group in enumerate(groups)]

    def metrics(self) -> dict[str, float]:
        """What the members count, as `NUMBER_KIND.NAME`."""
        return {
            f"{name}.{key}": value
            for name, member in zip(self._names, self._members, strict=True)
            if isinstance(member, MeasuredJudge)
            for key, value in member.metrics().items()
        }

    async def _ask(self, name: str, member: Judge, groups: Sequence[Group]) -> Sequence[Judgement | OffbeatError]:
        try:
            answers = await member.judge(groups)
            check_answers(answers, groups)
        except Exception as error:  # members may be foreign code, which may raise anything
            raise _of_member(name, error) from error
        return answers

    def _mean(self, group: Group, answers: Sequence[Judgement | OffbeatError]) -> Judgement | OffbeatError:
        judgements: list[Judgement] = []
        for name, answer in zip(self._names, answers, strict=True):
            if isinstance(answer, OffbeatError):
                return _of_member(name, answer)
            judgements.append(answer)
        tables = [_preferences(judgement, group) for judgement in judgements]
        indices = range(len(group.completions))
        return Judgement(
            scores=tuple(self._weighted([judgement.scores[i] for judgement in judgements]) for i in indices),
            preferences=tuple(
                tuple(self._weighted([table[i][j] for table in tables]) for j in indices) for i in indices
            ),
        )

    def _weighted(self, values: Sequence[float]) -> float:
        return sum(weight * value for weight, value in zip(self._weights, values, strict=True))


def _preferences(judgement: Judgement, group: Group) -> tuple[tuple[float, ...], ...]:
    """[n][n]: the judge's own, else Bradley and Terry's of its scores."""
    if judgement.preferences is None:
        return bradley_terry(judgement.scores)
    return checked_preferences(judgement.preferences, len(judgement.scores), group.lease.index)


def _of_member(name: str, error: Exception) -> OffbeatError:
    """The error with the member's name; a wrong request stays one, which is not tried again."""
    kind = UsageError if isinstance(error, UsageError) else RunError
    said = str(error) if isinstance(error, OffbeatError) else f"raised {type(error).__name__}: {error}"
    return kind(f"judge {name} of the ensemble: {said}")
