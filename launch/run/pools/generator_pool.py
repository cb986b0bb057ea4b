"""The generator pool: supplies generators with leases and weights, and survives their deaths.

It must not depend on the learner or the judges: finished groups leave through a callback.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from actors.errors import RunError, TransferInterruptedError, WeightMismatchError, ray_logs
from actors.records import Draw, Failure, GeneratorStatus, Group, Lease, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from launch.run.pools.loads import Loads
from launch.run.pools.member import Member
from launch.run.pools.waiting import until_ready
from launch.run.protocols import (
    GeneratorDeadError,
    GeneratorPort,
    GeneratorUnavailableError,
    PoolEvents,
    PoolLimits,
    Publication,
)
from launch.run.tasks import Signal, first_failure, give_up, shielded

COLLECT_SECONDS = 2.0  # longest wait of one collect or status call
END_SECONDS = 30.0
"""Longest wait for a call to a killed process."""
SIDE_ATTEMPTS = 3
"""Grants of a prompt outside the buffer before its request fails."""


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
        self._loads = Loads[Member](limits.max_running)  # of those that are working
        self._buffer = buffer
        self._limits = limits
        self._on_group, self._on_retire, self._on_message = events.on_group, events.on_retire, events.on_message
        self._clock = clock
        self._offered = Signal()
        self._publications: dict[int, Publication] = {}
        self._taking: Counter[int] = Counter()
        self._side_requests: list[Lease] = []
        self._side_results: dict[int, asyncio.Future[Group | Failure]] = {}
        self._last_side_index = 0
        self._reissued: set[int] = set()
        """Leases that were granted again while an earlier attempt may still be answered."""
        self._ended: list[GeneratorStatus] = []
        self._refused: dict[int, set[str]] = {}
        """Names of generators that refused a version, by version."""
        self._said = ""
        self._asked = 0  # generators that were asked in turn for their status

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
            tasks.create_task(self._dealing())
            for member in self._members:
                tasks.create_task(self._serve(member))

    def offer(self, publication: Publication) -> None:
        """Offer `publication` to the generators. Never waits: a slow generator skips to the newest."""
        self._publications[publication.version] = publication
        self._retire_superseded()
        self._offered.notify()

    async def acknowledged(self, version: int) -> None:
        """Wait until a generator has taken `version` or a later one."""
        while all(member.version < version for member in self._members):
            await self._offered.wait()

    async def sample(
        self, prompts: Sequence[Prompt], *, min_version: int, draw: Draw = "policy"
    ) -> list[Group | Failure]:
        """Sample completions of `prompts` outside the buffer, for evaluation or as opponents, before training leases.

        Returns one group per prompt, in order, every token of `min_version` or later; or a failure with its reason.
        """
        # Completions are seeded by their lease's index: never twice by one, and by the same after a resume as without.
        first = min(self._last_side_index, -(self._buffer.updates << 24)) - 1
        leases = [Lease(first - i, 0, prompt, min_version, math.inf, draw) for i, prompt in enumerate(prompts)]
        self._last_side_index = first - len(prompts) + 1
        results = {lease.index: asyncio.Future[Group | Failure]() for lease in leases}
        self._side_results |= results
        self._side_requests += leases
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
                late = lease.index < 0 and lease.deadline <= now
                if late or lease.index in expired:
                    side += [lease] if late else []
                    member.expire(key)
            self._loads.set(member, len(member.outstanding))
        for lease in side:
            self._again(lease)
        self._reissued |= expired | {lease.index for lease in side}
        self._stop_unwanted()
        if expired or side:
            self._on_message(f"{len(expired) + len(side)} leases expired; reissuing")
            self.changed.notify()

    async def refresh(self, most: int | None = None) -> None:
        """Ask every generator, or `most` in turn, for its status; one that does not answer keeps its last."""
        members = self._members
        if most is not None and most < len(members):
            members = [members[(self._asked + step) % len(members)] for step in range(most)]
            self._asked += most
        await asyncio.gather(*map(self._ask, members))

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
        died: BaseException | None = None
        while died is None:
            try:
                await shielded(self._serve_until_death(member))
            except* GeneratorUnavailableError as group:
                self._on_message(f"{first_failure(group)} died and is being restarted")
            except* GeneratorDeadError as group:
                died = first_failure(group)
            self._forget(member, "generator died")
        self._members.remove(member)
        self._ended += [member.status] if member.status is not None else []
        self._on_message(f"{member.port.name} died for good: {died}")
        if not self._members:
            raise RunError(
                f"no generator is left: {died}; look in {ray_logs()} on its host, raise generators.max_restarts if "
                "the deaths are transient, then use --resume"
            )

    async def _serve_until_death(self, member: Member) -> None:
        async with asyncio.TaskGroup() as tasks:
            await until_ready(member.port.ready(), member.port.name, "loading its engine", self._on_message)
            for duty in (*self._supplies(member), self._collect(member), self._withdraw(member)):
                tasks.create_task(duty)

    def _supplies(self, member: Member) -> Sequence[Coroutine[Any, Any, None]]:
        """Return the tasks that bring weights and leases to a generator."""
        return self._sync(member), self._feed(member)

    def _forget(self, member: Member, reason: str) -> None:
        indices = [index for index, _ in member.outstanding if index >= 0]
        self._side_requests.extend(lease for lease in member.outstanding.values() if lease.index < 0)
        member.clear()
        self._loads.leave(member)
        self._buffer.lost(indices, reason)
        self.changed.notify()

    async def _feed(self, member: Member) -> None:
        # Nothing is sampled with unverified weights, not even those that the engine started with.
        while member.version < 0:
            await self._offered.wait()
        self._loads.join(member, len(member.outstanding))
        self.changed.notify()
        while True:
            if member.unsent:
                leases, member.unsent = member.unsent, []
                await member.port.submit(leases)
            else:
                await member.dealt.wait()

    async def _dealing(self) -> None:
        """Deal whenever something changed: once for all generators, however many there are."""
        while True:
            self._deal()
            await self.changed.wait()

    def _deal(self) -> None:
        """Grant what may be granted now, each lease to the generator with the fewest.

        Side requests go first: the learner waits for opponents, and an evaluation is of the current version.
        """
        room = self._loads.room
        leases = self._take_side_requests(room)
        leases += self._buffer.lease(room - len(leases), self._clock(), self._limits.draw)
        for lease in leases:
            member = self._loads.take()
            member.grant([lease])
            member.unsent.append(lease)
            member.dealt.notify()
        if leases:
            self.changed.notify()

    def _take_side_requests(self, limit: int, version: float = math.inf) -> list[Lease]:
        """Take side requests that `version` may sample: opponents first, because training groups wait for them."""
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
        else:
            reason = f"no answer after {attempt} grants of {self._limits.lease_seconds:g} s each"
            self._answer(lease.index, Failure(lease.index, lease.attempt, reason))

    def _answer(self, index: int, item: Group | Failure) -> None:
        result = self._side_results.pop(index, None)  # None: answered by another generator, or no longer awaited
        if result is not None and not result.done():
            result.set_result(item)

    async def _collect(self, member: Member) -> None:
        while True:
            for item in await member.port.collect(COLLECT_SECONDS):
                self._settle(member, item)
            self._stop_unwanted()
            self._loads.set(member, len(member.outstanding))
            self.changed.notify()

    def _settle(self, member: Member, item: Group | Failure) -> None:
        if isinstance(item, Failure):
            lease = member.answered((item.lease_index, item.attempt))
            if item.lease_index >= 0:
                self._buffer.returned(item.lease_index, item.attempt, item.reason)
            elif lease is not None:
                self._answer(item.lease_index, item)
            return
        member.answered((item.lease.index, item.lease.attempt))
        if item.lease.index < 0:
            self._answer(item.lease.index, item)
            return
        item = self._buffer.in_time(item)
        if self._buffer.generated(item.lease.index, item.lease.attempt):
            self._on_group(item)

    def _stop_unwanted(self) -> None:
        """Let nobody work on a lease that was granted again and is now answered or dropped."""
        for index in [index for index in self._reissued if not self._wanted(index)]:
            self._reissued.remove(index)
            for member in self._members:
                member.stop(index)
                self._loads.set(member, len(member.outstanding))

    def _wanted(self, index: int) -> bool:
        return index in self._side_results if index < 0 else self._buffer.awaits(index)

    async def _withdraw(self, member: Member) -> None:
        while True:
            if member.unwanted:
                keys, member.unwanted = member.unwanted, []
                await member.port.withdraw(keys)
            else:
                await member.regretted.wait()

    async def _sync(self, member: Member) -> None:
        while True:
            publication = self.newest
            if publication is None or publication.version <= member.version:
                await self._offered.wait()
            else:
                await self._bring(member, publication)

    async def _bring(self, member: Member, publication: Publication) -> None:
        """Let `member` take `publication`, and wake those who wait for its version; after an interruption, nobody."""
        try:
            await self._take(member, publication)
        except TransferInterruptedError as interruption:
            self._say_once(f"the transfer of policy version {publication.version} is repeated: {interruption}")
            return
        except WeightMismatchError as refusal:
            self._leave_out(member, publication.version, refusal)
        version = min(member.version, self._buffer.training_version)  # the last weights' mean is one more
        if version > self._buffer.version:
            self._buffer.published(version)
        self._offered.notify()
        self.changed.notify()

    async def _take(self, member: Member, publication: Publication) -> None:
        version = publication.version
        self._taking[version] += 1
        try:
            if publication.turn is not None:
                await publication.turn(member.port)
            await self._take_now(member, publication)
        finally:
            self._taking[version] -= 1
            self._retire_superseded()

    async def _take_now(self, member: Member, publication: Publication) -> None:
        version = publication.version
        taking = asyncio.ensure_future(member.port.take_weights(publication.manifest, publication.chunks))
        try:
            await asyncio.wait({taking}, timeout=self._limits.take_seconds)
            if not taking.done():
                await self._end(member, taking, version)
            taken = taking.result()
            if taken != version:
                raise RunError(
                    f"{member.port.name} took policy version {version} and reports {taken}: its tokens would carry the "
                    "wrong version. This is a bug in that generator: use --resume"
                )
            member.version = taken
        finally:
            give_up(taking)

    def _leave_out(self, member: Member, version: int, refusal: WeightMismatchError) -> None:
        """Kill a generator that refused `version`, unless all generators did: then the fault is not its own."""
        refusals = self._refused.setdefault(version, set())
        refusals.add(member.port.name)
        if refusals >= {each.port.name for each in self._members}:
            raise refusal
        self._on_message(f"{member.port.name} refused policy version {version} and is restarted: {refusal}")
        member.port.kill()
        raise GeneratorUnavailableError(member.port.name)

    def _say_once(self, text: str) -> None:
        """Report what several generators notice."""
        if text != self._said:
            self._said = text
            self._on_message(text)

    async def _end(self, member: Member, taking: asyncio.Future[int], version: int) -> None:
        """Kill a generator that does not take `version`, wait for its call to end, raise GeneratorUnavailableError."""
        self._on_message(
            f"{member.port.name} did not take policy version {version} within {self._limits.take_seconds:g} s and is "
            f"killed; raise publication.timeout_seconds if the model is large, or look in {ray_logs()} on its host"
        )
        member.port.kill()
        # Until the call ends, the old process could be mistaken for the new one.
        await asyncio.wait({taking}, timeout=END_SECONDS)
        raise GeneratorUnavailableError(member.port.name)

    def _retire_superseded(self) -> None:
        for version in self._superseded():
            if not self._taking[version]:
                del self._publications[version]
                del self._taking[version]
                self._on_retire(version)

    def _superseded(self) -> list[int]:
        """Return the versions that no generator will take any more."""
        return sorted(self._publications)[:-1]
