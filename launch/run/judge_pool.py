"""Several judges as one: a batch goes to whichever is free, and one that dies for good leaves it to the others.

It must not know what judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from actors.errors import RunError
from actors.records import Failure, Group
from launch.run.protocols import JudgePort

BATCHES_EACH = 2
"""Batches at one judge at a time: one is judged while the next is on its way."""


class JudgePool:
    """Judges that all give the same verdicts."""

    def __init__(self, judges: Sequence[JudgePort], on_message: Callable[[str], None]) -> None:
        self._judges = list(judges)
        self._on_message = on_message
        self._busy = [0] * len(self._judges)
        self._alive = [True] * len(self._judges)

    async def ready(self) -> None:
        """Returns once all answer; raises what the first raises that never will."""
        await asyncio.gather(*[judge.ready() for judge in self._judges])

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        """By the judge with the fewest batches. Raises RunError when the last one has died for good."""
        while True:
            chosen = min((n for n, alive in enumerate(self._alive) if alive), key=lambda n: self._busy[n])
            self._busy[chosen] += 1
            try:
                return await self._judges[chosen].judge(groups)
            except RunError as error:
                if sum(self._alive) - self._alive[chosen] == 0:
                    raise
                if self._alive[chosen]:
                    self._alive[chosen] = False
                    self._on_message(f"judge {chosen}: {error}; {sum(self._alive)} left")
            finally:
                self._busy[chosen] -= 1

    async def seconds(self) -> float:
        """Of all together."""
        return sum(await asyncio.gather(*[judge.seconds() for judge in self._judges]))

    async def figures(self) -> dict[str, float]:
        """What all counted together."""
        return merged(await asyncio.gather(*[judge.figures() for judge in self._judges]))


def merged(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several judges as one: sums, but the largest `..._max...` and the mean of each `..._mean...`, which is
    weighted by what was `answered`."""
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
