"""Several judges as one: a batch goes to the least busy judge, and the others take over from one that dies.

Knows of the judges only what they count.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from actors.judges.config import JudgingConfig
from actors.judges.http.figures import frequent_abstentions, language_models, with_shares
from actors.records import Failure, Group
from launch.run.pools.countdown import Countdown
from launch.run.pools.failover import Failover
from launch.run.protocols import JudgePort

BATCHES_EACH = 2
"""Batches at one judge at a time: the next is in transit while one is judged."""


class Judging(Protocol):
    """A judge of groups: one judge, a pool, or one that also waits for reference log-probs."""

    async def judge(self, groups: Sequence[Group]) -> Sequence[Group | Failure]: ...


class JudgePool:
    """Interchangeable judges. `on_message` gets what the user should know: deaths, frequent abstentions."""

    def __init__(self, judges: Sequence[JudgePort], on_message: Callable[[str], None]) -> None:
        self._judges = list(judges)
        self._actors = Failover("judge", self._judges, on_message)
        self._on_message = on_message
        self._batches = 0
        self._told: set[str] = set()

    async def ready(self) -> None:
        """Wait until all judges answer; raise the first error of one that never will."""
        await asyncio.gather(*[judge.ready() for judge in self._judges])

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        """Send `groups` to the judge with the fewest batches. Raises RunError when the last judge has died."""
        answers = await self._actors.call(lambda judge: judge.judge(groups))
        await self._tell_abstentions()
        return answers

    async def _tell_abstentions(self) -> None:
        """After 2, 4, 8, ... batches, warn once of each language model whose answers often lack a verdict."""
        self._batches += 1
        if self._batches < 2 or self._batches & (self._batches - 1):
            return
        figures = await self.figures()
        for prefix in language_models(figures):
            if prefix not in self._told and (text := frequent_abstentions(figures, prefix)):
                self._told.add(prefix)
                self._on_message(f"judge {prefix.replace('.', ': ')}{text}" if prefix else f"judge: {text}")

    async def seconds(self) -> float:
        """Total over all judges."""
        return sum(await asyncio.gather(*[judge.seconds() for judge in self._judges]))

    async def figures(self) -> dict[str, float]:
        """Counters, merged over all judges, with the shares that they make."""
        return with_shares(merged(await asyncio.gather(*[judge.figures() for judge in self._judges])))


async def judge_all(
    judge: Judging, groups: Sequence[Group], config: JudgingConfig, say: Callable[[str], None]
) -> list[Group | Failure]:
    """Judge the groups of an evaluation in batches, on all judges at once; say how far it is. Keeps the order."""
    countdown, room = Countdown("judging", len(groups), say), asyncio.Semaphore(BATCHES_EACH * config.count)

    async def judged(part: Sequence[Group]) -> Sequence[Group | Failure]:
        async with room:
            answers = await judge.judge(part)
        countdown.add(len(part))
        return answers

    size = config.max_batch_groups
    tasks = [asyncio.create_task(judged(groups[start : start + size])) for start in range(0, len(groups), size)]
    try:
        return [answer for part in await asyncio.gather(*tasks) for answer in part]
    finally:
        for task in tasks:
            task.cancel()


def merged(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge counters of several judges: add them up, but take the largest `..._max...` and the mean of `..._mean...`,
    weighted by `answered`."""
    if len(figures) == 1:
        return dict(figures[0])
    names = dict.fromkeys(name for each in figures for name in each)
    return {name: _merged(name, figures) for name in names}


def _merged(name: str, figures: Sequence[Mapping[str, float]]) -> float:
    values = [each.get(name, 0.0) for each in figures]
    if "_max" in name:
        return max(values)
    if "_mean" not in name:
        return sum(values)
    member = name.rpartition(".")[0]
    answered = f"{member}.answered" if member else "answered"
    weights = [each.get(answered, 0.0) for each in figures]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / (sum(weights) or 1.0)
