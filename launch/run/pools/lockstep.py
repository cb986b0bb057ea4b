"""A pool with a fixed schedule: its generator samples all leases of one version together, then takes the next version.

The tokens of a lease then depend on the run's seed and configuration alone, not on timing. The leases of version v are
those that the staleness bound admits at v and not before. The learner does not wait: its publications queue here, at
most `max_staleness` + 1 of them, and are taken in turn. How a generator makes its samples repeatable is described in
`actors/generation/generator.py`.
"""

import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from actors.records import Group
from launch.run.pools.generator_pool import GeneratorPool
from launch.run.pools.member import Member
from launch.run.protocols import Publication


class LockstepPool(GeneratorPool):
    """Serves one generator in rounds: all side requests, or every lease that may be granted, or the next version.

    A round begins when the previous one is judged, and its groups go to the judge by lease index. Leases lost with a
    generator are granted again at the same version, in a separate round: the bound holds, but floating-point
    differences may change their tokens.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._to_judge, self._on_group = self._on_group, self._keep
        self._sampled: list[Group] = []

    def offer(self, publication: Publication) -> None:
        """Queue `publication`."""
        super().offer(publication)
        self.changed.notify()

    def _keep(self, group: Group) -> None:
        self._sampled.append(group)

    def _supplies(self, member: Member) -> Sequence[Coroutine[Any, Any, None]]:
        return (self._rounds(member),)

    async def _rounds(self, member: Member) -> None:
        while True:
            if member.outstanding or not await self._begin_round(member):
                await self.changed.wait()

    async def _begin_round(self, member: Member) -> bool:
        """Start a round; return False if there is nothing to do."""
        sampled, self._sampled = self._sampled, []
        for group in sorted(sampled, key=lambda group: group.lease.index):
            self._to_judge(group)
        publication = self._next(member)
        if member.version >= 0:
            if self._buffer.in_flight:
                return False
            leases = self._take_side_requests(sys.maxsize, member.version)
            leases = leases or self._buffer.lease(sys.maxsize, self._clock(), self._limits.draw)
            if leases:
                member.grant(leases)
                await member.port.submit(leases)
                return True
        if publication is not None:
            await self._bring(member, publication)
        return publication is not None

    def _next(self, member: Member) -> Publication | None:
        """Return the version after the generator's; for a new generator, the version in use."""
        if member.version >= 0:
            return self._publications.get(member.version + 1)
        waiting = [version for version in self._publications if version >= self._buffer.version]
        return self._publications[min(waiting)] if waiting else None

    def _superseded(self) -> list[int]:
        at_work = max([self._buffer.version, *(member.version for member in self._members)])
        return [version for version in sorted(self._publications)[:-1] if version < at_work]
