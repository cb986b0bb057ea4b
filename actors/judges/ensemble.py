"""Several judges as one, averaged by weight. Must not import any kind of judge."""

import asyncio
from collections.abc import Sequence

from actors.errors import OffbeatError, RunError, UsageError
from actors.judges.config import EnsembleJudgeConfig
from actors.judges.protocol import HostedJudge, Judge, MeasuredJudge, check_answers
from actors.preferences import antisymmetric, bradley_terry
from actors.records import Group, Judgement


class EnsembleJudge:
    """Weighted means of its members' scores and preferences. All members judge concurrently."""

    def __init__(self, config: EnsembleJudgeConfig, members: Sequence[Judge]) -> None:
        """Take the judges of `config.members`, in order."""
        self._members = {
            f"{number}_{each.judge.kind}": member
            for number, (each, member) in enumerate(zip(config.members, members, strict=True), start=1)
        }
        total = sum(each.weight for each in config.members)
        self._weights = [each.weight / total for each in config.members]

    async def judge(self, groups: Sequence[Group]) -> list[Judgement | OffbeatError]:
        """Return the members' mean per group; for a group that a member failed, that error with the member's name.

        Raises RunError if a member raised any error or gave unusable answers, UsageError if it raised a UsageError.
        """
        # Wait for all members: each remembers the answers that it paid for, in case the batch is retried.
        asked = [self._ask(name, groups) for name in self._members]
        answers: list[Sequence[Judgement | OffbeatError]] = []
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        return [self._mean(of_group) for of_group in zip(*answers, strict=True)]

    @property
    def name(self) -> str:
        """Name the members that work in processes of their own; `the judge` without any."""
        names = [member.name for member in self._members.values() if isinstance(member, HostedJudge)]
        return f"the ensemble with {' and '.join(names)}" if names else "the judge"

    async def prepare(self) -> None:
        """Prepare the members that work in processes of their own."""
        hosted = [member for member in self._members.values() if isinstance(member, HostedJudge)]
        await asyncio.gather(*[member.prepare() for member in hosted])

    def close(self) -> None:
        """Close those members."""
        for member in self._members.values():
            if isinstance(member, HostedJudge):
                member.close()

    def metrics(self) -> dict[str, float]:
        """Return the members' counts under the names `NUMBER_KIND.NAME`."""
        return {
            f"{name}.{key}": value
            for name, member in self._members.items()
            if isinstance(member, MeasuredJudge)
            for key, value in member.metrics().items()
        }

    async def _ask(self, name: str, groups: Sequence[Group]) -> Sequence[Judgement | OffbeatError]:
        try:
            answers = await self._members[name].judge(groups)
            check_answers(answers, groups)
        except Exception as error:  # members may be foreign code, which may raise anything
            raise _of_member(name, error) from error
        return answers

    def _mean(self, answers: Sequence[Judgement | OffbeatError]) -> Judgement | OffbeatError:
        judgements: list[Judgement] = []
        for name, answer in zip(self._members, answers, strict=True):
            if isinstance(answer, OffbeatError):
                return _of_member(name, answer)
            judgements.append(answer)
        tables = [
            bradley_terry(each.scores) if each.preferences is None else antisymmetric(each.preferences)
            for each in judgements
        ]
        return Judgement(
            scores=tuple(map(self._weighted, zip(*[each.scores for each in judgements], strict=True))),
            preferences=tuple(
                tuple(map(self._weighted, zip(*rows, strict=True))) for rows in zip(*tables, strict=True)
            ),
        )

    def _weighted(self, values: Sequence[float]) -> float:
        return sum(weight * value for weight, value in zip(self._weights, values, strict=True))


def _of_member(name: str, error: Exception) -> OffbeatError:
    """Name the member in its error. A UsageError stays a UsageError, which is not retried."""
    kind = UsageError if isinstance(error, UsageError) else RunError
    said = str(error) if isinstance(error, OffbeatError) else f"raised {type(error).__name__}: {error}"
    return kind(f"judge {name} of the ensemble: {said}")
