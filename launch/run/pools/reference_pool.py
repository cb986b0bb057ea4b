"""Several reference actors as one, and a judge beside them: groups come back judged, with reference log-probs.

Knows of the actors only that they score rollouts.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from actors.errors import RunError, ray_logs
from actors.records import Failure, Group, without
from launch.run.pools.failover import Failover
from launch.run.protocols import JudgePort, ReferencePort, Rollout
from launch.run.tasks import first_failure


class ReferencePool:
    """Interchangeable reference actors. `on_message` gets their deaths."""

    def __init__(self, references: Sequence[ReferencePort], on_message: Callable[[str], None]) -> None:
        self._actors = Failover("reference actor", references, on_message)

    async def ready(self) -> None:
        """Wait until all actors answer; raise the first error of one that never will."""
        await asyncio.gather(*[reference.ready() for reference in self._actors.members])

    async def score(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]] | None:
        """Score one prompt's rollouts; None if an actor died over them several times.

        Raises RunError when the last actor has died.
        """
        return await self._actors.call(lambda reference: reference.score(rollouts))

    async def sampled(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """Return the log-probs of each rollout's sampled tokens. Raises RunError if a prompt's cannot be scored."""
        parts = [list(part) for _, part in groupby(rollouts, key=lambda each: each[0])]
        scored = await asyncio.gather(*map(self.score, parts))
        if None in scored:
            raise RunError(
                "an evaluation's completions could not be scored: reference unavailable; look in the reference actors' "
                f"logs ({ray_logs()}), then use --resume"
            )
        rows = (row for of_prompt in scored for row in of_prompt or ())
        return [without(row, given) for row, (_, _, given) in zip(rows, rollouts, strict=True)]

    async def score_group(self, group: Group) -> Group | Failure:
        """Return `group` with the reference log-probs of every completion."""
        prompt, completions = group.lease.prompt.token_ids, group.completions
        scored = await self.score([(prompt, each.token_ids, each.given) for each in completions])
        if scored is None:
            return Failure(group.lease.index, group.lease.attempt, "reference unavailable")
        with_logprobs = (replace(each, reference_logprobs=own) for each, own in zip(completions, scored, strict=True))
        return replace(group, completions=tuple(with_logprobs))

    async def seconds(self) -> float:
        """Total over all actors."""
        return sum(await asyncio.gather(*[reference.seconds() for reference in self._actors.members]))


class JudgeBesideReference:
    """A judge whose groups the reference scores meanwhile, if they may be trained on. A group fails if either fails."""

    def __init__(self, judge: JudgePort, reference: ReferencePool) -> None:
        self._judge, self._reference = judge, reference

    async def ready(self) -> None:
        """Wait until judges and reference actors answer; raise the first error of one that never will."""
        await asyncio.gather(self._judge.ready(), self._reference.ready())

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        """Judge and score `groups` at the same time. Raises RunError as both pools."""
        try:
            async with asyncio.TaskGroup() as tasks:  # one that fails ends the others
                judging = tasks.create_task(self._judge.judge(groups))
                scoring = [tasks.create_task(self._scored(group)) for group in groups]
        except BaseExceptionGroup as group:
            raise first_failure(group) from None
        return [_joined(judged, each.result()) for judged, each in zip(judging.result(), scoring, strict=True)]

    async def _scored(self, group: Group) -> Group | Failure:
        # The indices of an evaluation's groups, which the buffer never holds, are negative.
        return await self._reference.score_group(group) if group.lease.index >= 0 else group

    async def seconds(self) -> float:
        return await self._judge.seconds()

    async def figures(self) -> dict[str, float]:
        return await self._judge.figures()


def _joined(judged: Group | Failure, scored: Group | Failure) -> Group | Failure:
    if isinstance(judged, Failure):
        return judged
    return scored if isinstance(scored, Failure) else replace(judged, completions=scored.completions)
