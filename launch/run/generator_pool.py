"""The generator pool: supplies generators with leases and weights, and survives their deaths.

It must not depend on the learner or the judges: finished groups leave through a callback.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from actors.errors import RunError
from actors.records import Draw, Failure, GeneratorStatus, Group, Lease, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from launch.run.protocols import GeneratorDeadError, GeneratorPort, GeneratorUnavailableError, Publication

COLLECT_SECONDS = 2.0
"""Longest wait of one collect or status call."""
READY_SECONDS = 120.0
"""Time until the first message about a generator that does not answer after its start; doubles for the next."""
END_SECONDS = 30.0
"""Longest wait for a call to a killed process."""
SIDE_ATTEMPTS = 3
"""Grants of a prompt outside the buffer before its request fails."""


E = TypeVar("E", bound=Exception)


def _leaves(group: BaseExceptionGroup[E]) -> Iterator[E]:
    for exception in group.exceptions:
        if isinstance(exception, BaseExceptionGroup):
            yield from _leaves(exception)
        else:
            yield exception


async def _shielded(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` so that a cancellation always reaches the caller.

    A task group that ends with an error swallows a cancellation that arrives at the same time: the caller would handle
    the error and continue, and whoever cancelled it would wait forever. (`asyncio.wait_for` with a result does, too.)
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
    task.result()


class Signal:
    """Wakes every waiter when something changed. Check the condition, then `wait` without an await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass
class Member:
    """One generator and its state as the pool sees it."""

    port: GeneratorPort
    version: int = -1
    """Last version that it acknowledged; -1 before the first."""
    working: bool = False
    """Whether it has verified weights and takes leases."""
    outstanding: dict[tuple[int, int], Lease] = field(default_factory=dict)
    """Leases granted to it and not answered, by index and attempt."""
    unsent: list[Lease] = field(default_factory=list)
    """The part of `outstanding` that is not submitted yet."""
    status: GeneratorStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What a pool asks of its generators."""

    max_running: int
    """Leases that one generator holds at a time."""
    take_seconds: float
    """Time for one generator to take one version."""
    lease_seconds: float
    draw: Draw = "all"
    """Completions that training leases ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvents:
    """Whom a pool calls."""

    on_group: Callable[[Group], None]
    """With each finished training group."""
    on_retire: Callable[[int], None]
    """With each version that no generator needs any more."""
    on_message: Callable[[str], None]


class GeneratorPool:
    """Feeds leases, collects groups and hands out weights.

    A generator that dies, or does not take weights in time, loses its leases; the run continues.
    """

    def __init__(
        self,
        ports: Sequence[GeneratorPort],
        buffer: ReplayBuffer,
        limits: PoolLimits,
        events: PoolEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = Signal()
        self._members = [Member(port) for port in ports]
        self._buffer = buffer
        self._limits = limits
        self._on_group, self._on_retire, self._on_message = events.on_group, events.on_retire, events.on_message
        self._clock = clock
        self._offered = Signal()
        self._publications: dict[int, Publication] = {}
        self._taking: dict[int, int] = {}
        self._side_requests: list[Lease] = []
        self._side_results: dict[int, asyncio.Future[Group | Failure]] = {}
        self._next_side_index = -1
        self._ended: list[GeneratorStatus] = []

    @property
    def newest(self) -> Publication | None:
        """The newest publication, which a late joiner takes."""
        return self._publications[max(self._publications)] if self._publications else None

    @property
    def statuses(self) -> tuple[GeneratorStatus, ...]:
        """The last known status of each live generator."""
        return tuple(member.status for member in self._members if member.status is not None)

    @property
    def accounts(self) -> tuple[GeneratorStatus, ...]:
        """`statuses`, and the last status of each generator process that has died."""
        return (*self._ended, *self.statuses)

    async def run(self) -> None:
        """Serve all generators until cancelled. Raises RunError when none is left."""
        async with asyncio.TaskGroup() as tasks:
            for member in self._members:
                tasks.create_task(self._serve(member))

    def offer(self, publication: Publication) -> None:
        """Offer `publication` to the generators. Never waits: a slow generator skips to the newest."""
        self._publications[publication.version] = publication
        self._retire_superseded()
        self._offered.notify()

    async def acknowledged(self, version: int) -> None:
        """Wait until a generator has taken `version` or a later one."""
        while max((member.version for member in self._members), default=-1) < version:
            await self._offered.wait()

    async def sample(
        self, prompts: Sequence[Prompt], *, min_version: int, draw: Draw = "policy"
    ) -> list[Group | Failure]:
        """Sample completions of `prompts` outside the buffer, for evaluation or as opponents, before training leases.

        Returns one group per prompt, in order, every token of `min_version` or later; or a failure with its reason.
        """
        leases = []
        for prompt in prompts:
            leases.append(Lease(self._next_side_index, 0, prompt, min_version, deadline=math.inf, draw=draw))
            self._next_side_index -= 1
        loop = asyncio.get_running_loop()
        results: dict[int, asyncio.Future[Group | Failure]] = {lease.index: loop.create_future() for lease in leases}
        self._side_results.update(results)
        self._side_requests.extend(leases)
        self.changed.notify()
        try:
            return list(await asyncio.gather(*results.values()))
        finally:
            for index in results:
                self._side_results.pop(index, None)

    def expire(self) -> None:
        """Take back leases that are past their deadline."""
        now = self._clock()
        expired = set(self._buffer.expire(now))
        side: list[Lease] = []
        for member in self._members:
            for key, lease in list(member.outstanding.items()):
                if lease.index < 0 and lease.deadline <= now:
                    side.append(lease)
                elif lease.index not in expired:
                    continue
                del member.outstanding[key]
        for lease in side:
            self._again(lease)
        if expired or side:
            self._on_message(f"{len(expired) + len(side)} leases expired; reissuing")
            self.changed.notify()

    async def refresh(self) -> None:
        """Ask every generator for its status; one that does not answer keeps its last."""
        await asyncio.gather(*[self._ask(member) for member in self._members])

    async def _ask(self, member: Member) -> None:
        try:
            async with asyncio.timeout(COLLECT_SECONDS):
                status = await member.port.status()
        except (GeneratorUnavailableError, GeneratorDeadError, TimeoutError):
            return
        if member.status is not None and member.status.process != status.process:
            self._ended.append(member.status)
        member.status = status

    async def _serve(self, member: Member) -> None:
        while True:
            died: GeneratorDeadError | None = None
            try:
                await _shielded(self._serve_until_death(member))
            except* GeneratorUnavailableError as group:
                self._on_message(f"{next(_leaves(group))} died and is being restarted")
            except* GeneratorDeadError as group:
                died = next(_leaves(group))
            self._forget(member, "generator died")
            if died is not None:
                self._members.remove(member)
                self._ended += [member.status] if member.status is not None else []
                self._on_message(f"{member.port.name} died for good: {died}")
                break
        if not self._members:
            raise RunError(
                f"no generator is left: {died}; check its log, raise generators.max_restarts if the deaths are "
                "transient, then use --resume"
            )

    async def _serve_until_death(self, member: Member) -> None:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(self._report_waiting(member))
            await member.port.ready()
            waiting.cancel()
            for duty in (*self._supplies(member), self._collect(member)):
                tasks.create_task(duty)

    def _supplies(self, member: Member) -> Sequence[Coroutine[Any, Any, None]]:
        """Return the tasks that bring weights and leases to a generator."""
        return self._sync(member), self._feed(member)

    async def _report_waiting(self, member: Member) -> None:
        started, pause = time.monotonic(), READY_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause *= 2.0  # waiting for a node may take days
            self._on_message(
                f"{member.port.name} has not answered for {time.monotonic() - started:.0f} s: its engine is still "
                "loading, or Ray has no room for it (see `ray status`)"
            )

    def _forget(self, member: Member, reason: str) -> None:
        indices = [index for index, _ in member.outstanding if index >= 0]
        self._side_requests.extend(lease for lease in member.outstanding.values() if lease.index < 0)
        member.outstanding.clear()
        member.unsent.clear()
        member.working = False
        member.version = -1
        self._buffer.lost(indices, reason)
        self.changed.notify()

    async def _feed(self, member: Member) -> None:
        # Nothing is sampled with unverified weights, not even those that the engine started with.
        while member.version < 0:
            await self._offered.wait()
        member.working = True
        while True:
            self._deal()
            if not member.unsent:
                await self.changed.wait()
                continue
            leases, member.unsent = member.unsent, []
            await member.port.submit(leases)

    def _deal(self) -> None:
        """Grant what may be granted now, each lease to the generator with the fewest.

        Side requests go first: the learner blocks on opponents, and an evaluation is only valid for the current
        version.
        """
        working = [member for member in self._members if member.working]
        room = sum(self._limits.max_running - len(member.outstanding) for member in working)
        leases = self._take_side_requests(room)
        leases += self._buffer.lease(room - len(leases), self._clock(), self._limits.draw)
        for lease in leases:
            member = min(working, key=lambda member: len(member.outstanding))
            member.outstanding[lease.index, lease.attempt] = lease
            member.unsent.append(lease)
        if leases:
            self.changed.notify()

    def _take_side_requests(self, limit: int, version: float = math.inf) -> list[Lease]:
        """Take side requests: opponents first, because training groups wait for them, the rest in order.

        Requests that need weights later than `version` stay."""
        wanted = [lease for lease in self._side_requests if lease.index in self._side_results]
        wanted.sort(key=lambda lease: lease.draw != "opponents")
        taken = [lease for lease in wanted if lease.min_version <= version][:limit]
        indices = {lease.index for lease in taken}
        self._side_requests = [lease for lease in wanted if lease.index not in indices]
        deadline = self._clock() + self._limits.lease_seconds
        return [replace(lease, deadline=deadline) for lease in taken]

    def _again(self, lease: Lease) -> None:
        """Grant an expired side request once more, or fail it."""
        attempt = lease.attempt + 1
        if attempt < SIDE_ATTEMPTS:
            self._side_requests.append(replace(lease, attempt=attempt))
            return
        reason = f"no answer after {attempt} grants of {self._limits.lease_seconds:g} s each"
        self._answer(lease.index, Failure(lease.index, lease.attempt, reason))

    def _answer(self, index: int, item: Group | Failure) -> None:
        # Absent if another generator answered first, or the caller has given up.
        result = self._side_results.pop(index, None)
        if result is not None and not result.done():
            result.set_result(item)

    async def _collect(self, member: Member) -> None:
        while True:
            for item in await member.port.collect(COLLECT_SECONDS):
                self._settle(member, item)
            self.changed.notify()

    def _settle(self, member: Member, item: Group | Failure) -> None:
        if isinstance(item, Failure):
            lease = member.outstanding.pop((item.lease_index, item.attempt), None)
            if item.lease_index >= 0:
                self._buffer.returned(item.lease_index, item.attempt, item.reason)
            elif lease is not None:
                self._answer(item.lease_index, item)
            return
        member.outstanding.pop((item.lease.index, item.lease.attempt), None)
        if item.lease.index < 0:
            self._answer(item.lease.index, item)
        elif self._buffer.generated(item.lease.index, item.lease.attempt):
            self._on_group(item)

    async def _sync(self, member: Member) -> None:
        while True:
            publication = self.newest
            if publication is None or publication.version <= member.version:
                await self._offered.wait()
                continue
            await self._bring(member, publication)

    async def _bring(self, member: Member, publication: Publication) -> None:
        """Let `member` take `publication`, and wake those who wait for its version."""
        await self._take(member, publication)
        if member.version > self._buffer.version:
            self._buffer.published(member.version)
        self._offered.notify()
        self.changed.notify()

    async def _take(self, member: Member, publication: Publication) -> None:
        version = publication.version
        self._taking[version] = self._taking.get(version, 0) + 1
        taking = asyncio.ensure_future(member.port.take_weights(publication.manifest, publication.chunks))
        try:
            await asyncio.wait({taking}, timeout=self._limits.take_seconds)
            if not taking.done():
                await self._end(member, taking, version)
            taken = taking.result()
            if taken != version:
                raise RunError(
                    f"{member.port.name} was given policy version {version} and reports version {taken}; its tokens "
                    "would carry the wrong version. This is a bug in that generator: use --resume"
                )
            member.version = taken
        finally:
            taking.cancel()
            self._taking[version] -= 1
            self._retire_superseded()

    async def _end(self, member: Member, taking: asyncio.Future[int], version: int) -> None:
        """Kill a generator that does not take `version`, and raise GeneratorUnavailableError.

        Wait for its call to end first: until then the old process could be mistaken for the new one.
        """
        name = member.port.name
        self._on_message(
            f"{name} did not take policy version {version} within {self._limits.take_seconds:g} s and is killed; raise "
            "publication.timeout_seconds if the model is large, or check that generator's log"
        )
        member.port.kill()
        await asyncio.wait({taking}, timeout=END_SECONDS)
        if taking.done() and not taking.cancelled():
            taking.exception()  # too late, whatever the answer
        raise GeneratorUnavailableError(name)

    def _retire_superseded(self) -> None:
        for version in self._superseded():
            if self._taking.get(version, 0) == 0:
                del self._publications[version]
                self._taking.pop(version, None)
                self._on_retire(version)

    def _superseded(self) -> list[int]:
        """Return the versions that no generator will take any more."""
        return sorted(self._publications)[:-1]
