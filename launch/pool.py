"""The generator pool: keeps generators supplied with leases and up to date with weights, and survives their deaths.

It must not know the learner or the judge: finished groups leave through a callback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from actors.buffer import ReplayBuffer
from actors.errors import RunError
from actors.records import Failure, GeneratorStatus, Group, Lease, Prompt
from launch.ports import GeneratorDeadError, GeneratorPort, GeneratorUnavailableError, Publication

COLLECT_SECONDS = 2.0
"""Longest wait of one collect call, and of one status call."""


E = TypeVar("E", bound=Exception)


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    for exception in group.exceptions:
        if isinstance(exception, BaseExceptionGroup):
            yield from _leaves(exception)
        else:
            yield exception


class Signal:
    """Wakes every waiter when something changed. Check the condition, then `wait` with no await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass
class _Member:
    """One generator and what the pool knows of it."""

    port: GeneratorPort
    version: int = -1
    """Last version it acknowledged; -1 before the first."""
    outstanding: dict[tuple[int, int], Lease] = field(default_factory=dict)
    status: GeneratorStatus | None = None


class GeneratorPool:
    """Feeds leases, collects groups, hands out weights; a generator that dies loses its leases, never the run."""

    def __init__(
        self,
        ports: Sequence[GeneratorPort],
        buffer: ReplayBuffer,
        *,
        max_running: int,
        take_seconds: float,
        on_group: Callable[[Group], None],
        on_retire: Callable[[int], None],
        on_message: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = Signal()
        self._members = [_Member(port) for port in ports]
        self._buffer = buffer
        self._max_running = max_running
        self._take_seconds = take_seconds
        self._on_group = on_group
        self._on_retire = on_retire
        self._on_message = on_message
        self._clock = clock
        self._offered = Signal()
        self._publications: dict[int, Publication] = {}
        self._taking: dict[int, int] = {}
        self._asides: list[Lease] = []
        self._aside_results: dict[int, asyncio.Future[Group]] = {}
        self._next_aside = -1

    @property
    def newest(self) -> Publication | None:
        """The publication that a late joiner takes."""
        return self._publications[max(self._publications)] if self._publications else None

    @property
    def statuses(self) -> tuple[GeneratorStatus, ...]:
        """The last known account of each generator that is alive."""
        return tuple(member.status for member in self._members if member.status is not None)

    async def run(self) -> None:
        """Serves all generators until cancelled. Raises `RunError` when none is left."""
        async with asyncio.TaskGroup() as tasks:
            for member in self._members:
                tasks.create_task(self._serve(member))

    def offer(self, publication: Publication) -> None:
        """Makes `publication` the one that generators take next. Never waits: a slow generator skips to the newest."""
        self._publications[publication.version] = publication
        self._retire_superseded()
        self._offered.notify()

    async def acknowledged(self, version: int) -> None:
        """Returns once a generator has taken `version` or a later one."""
        while max((member.version for member in self._members), default=-1) < version:
            await self._offered.wait()

    async def sample(self, prompts: Sequence[Prompt], *, min_version: int) -> list[Group]:
        """Completions of `prompts` outside the buffer, for evaluation; they go before training leases.

        Returns:
            One group per prompt, in order, every token of `min_version` or later.
        """
        leases = []
        for prompt in prompts:
            leases.append(Lease(self._next_aside, 0, prompt, min_version, deadline=float("inf")))
            self._next_aside -= 1
        loop = asyncio.get_running_loop()
        futures = [self._aside_results.setdefault(lease.index, loop.create_future()) for lease in leases]
        self._asides.extend(leases)
        self.changed.notify()
        return list(await asyncio.gather(*futures))

    def expire(self) -> None:
        """Takes back leases that are past their deadline, wherever they are."""
        expired = set(self._buffer.expire(self._clock()))
        for member in self._members:
            for key in [key for key in member.outstanding if key[0] in expired]:
                del member.outstanding[key]
        if expired:
            self._on_message(f"{len(expired)} leases passed their deadline and are granted again")
            self.changed.notify()

    async def refresh(self) -> None:
        """Asks every generator for its status; one that does not answer keeps its last."""
        for member in list(self._members):
            try:
                member.status = await asyncio.wait_for(member.port.status(), timeout=COLLECT_SECONDS)
            except (GeneratorUnavailableError, GeneratorDeadError, TimeoutError):
                continue

    async def _serve(self, member: _Member) -> None:
        while True:
            died: GeneratorDeadError | None = None
            try:
                await self._serve_until_death(member)
            except* GeneratorUnavailableError as group:
                self._on_message(f"{next(_leaves(group))} died and is being restarted")
            except* GeneratorDeadError as group:
                died = next(_leaves(group))
            self._forget(member, "generator died")
            if died is not None:
                self._members.remove(member)
                self._on_message(f"{member.port.name} died for good: {died}")
                break
        if not self._members:
            raise RunError(
                f"no generator is left: {died}; see its log, raise generators.max_restarts if the deaths are "
                "transient, then go on with --resume"
            )

    async def _serve_until_death(self, member: _Member) -> None:
        async with asyncio.TaskGroup() as tasks:
            await member.port.ready()
            tasks.create_task(self._sync(member))
            tasks.create_task(self._feed(member))
            tasks.create_task(self._collect(member))

    def _forget(self, member: _Member, reason: str) -> None:
        indices = [index for index, _ in member.outstanding if index >= 0]
        self._asides.extend(lease for lease in member.outstanding.values() if lease.index < 0)
        member.outstanding.clear()
        member.version = -1
        self._buffer.lost(indices, reason)
        self.changed.notify()

    async def _feed(self, member: _Member) -> None:
        # A quarter at a time, so that several generators share what the buffer grants.
        portion = max(1, self._max_running // 4)
        # Nothing is sampled with weights that were not verified, those it was started with included.
        while member.version < 0:
            await self._offered.wait()
        while True:
            room = min(portion, self._max_running - len(member.outstanding))
            leases = self._asides[:room]
            del self._asides[: len(leases)]
            if len(leases) < room:
                leases += self._buffer.grant(room - len(leases), self._clock())
            if not leases:
                await self.changed.wait()
                continue
            member.outstanding.update({(lease.index, lease.attempt): lease for lease in leases})
            await member.port.submit(leases)

    async def _collect(self, member: _Member) -> None:
        while True:
            for item in await member.port.collect(COLLECT_SECONDS):
                self._settle(member, item)
            self.changed.notify()

    def _settle(self, member: _Member, item: Group | Failure) -> None:
        if isinstance(item, Failure):
            lease = member.outstanding.pop((item.lease_index, item.attempt), None)
            if item.lease_index >= 0:
                self._buffer.give_back(item)
            elif lease is not None:
                raise RunError(f"an evaluation prompt could not be generated: {item.reason}")
            return
        member.outstanding.pop((item.lease.index, item.lease.attempt), None)
        if item.lease.index < 0:
            self._aside_results.pop(item.lease.index).set_result(item)
        elif self._buffer.generated(item):
            self._on_group(item)

    async def _sync(self, member: _Member) -> None:
        while True:
            publication = self.newest
            if publication is None or publication.version <= member.version:
                await self._offered.wait()
                continue
            await self._take(member, publication)
            if member.version > self._buffer.version:
                self._buffer.published(member.version)
            self._offered.notify()
            self.changed.notify()

    async def _take(self, member: _Member, publication: Publication) -> None:
        version = publication.version
        self._taking[version] = self._taking.get(version, 0) + 1
        try:
            taking = member.port.take_weights(publication.manifest, publication.chunks)
            member.version = await asyncio.wait_for(taking, self._take_seconds)
        except TimeoutError:
            raise RunError(
                f"{member.port.name} did not take policy version {version} within {self._take_seconds:g} s; raise "
                "publication.timeout_seconds if the model is large, or look at that generator's log"
            ) from None
        finally:
            self._taking[version] -= 1
            self._retire_superseded()

    def _retire_superseded(self) -> None:
        for version in sorted(self._publications)[:-1]:
            if self._taking.get(version, 0) == 0:
                del self._publications[version]
                self._taking.pop(version, None)
                self._on_retire(version)
