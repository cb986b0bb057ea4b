"""Broadcasts of weights: which generators share one, and what becomes of those that fail in it. No Ray here.

A generator asks for its turn; all that ask for one version within a moment get it in one transfer. Who fails leaves:
the others are released at once and ask again. Who comes late gets a transfer of its own, and is in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from actors.errors import OffbeatError, TransferInterruptedError
from actors.records import Manifest, Seat

GATHER_SECONDS = 0.05
"""Time between the first request for a version and its transfer, in which others join."""
TRANSFER_SHARE = 0.8
"""Part of `publication.timeout_seconds` that the transfer itself may take.

The rest is for loading and the canary. It also separates a generator that hangs from those that it kept waiting.
"""


class BroadcastingLearner(Protocol):
    """Learner rank 0. Calls raise RunError if it died."""

    async def open_group(self, size: int, seconds: float) -> Seat: ...

    async def send(self, manifest: Manifest, seat: Seat) -> None:
        """Return when all members have the version. Raises TransferInterruptedError."""

    async def give_up(self, seat: Seat, reason: str) -> None: ...


class ReceivingGenerator(Protocol):
    """One generator."""

    name: str

    @property
    def process(self) -> str | None:
        """Return the identity of the generator's process, which changes at a restart."""

    async def check(self, manifest: Manifest) -> None:
        """Raise WeightMismatchError if the version would be refused for its names, shapes or age."""

    async def receive(self, manifest: Manifest, seat: Seat) -> int:
        """Join the group, take the version and return it."""


@dataclass(eq=False)
class _Request:
    """A generator that wants a version."""

    generator: ReceivingGenerator
    manifest: Manifest
    started: asyncio.Event = field(default_factory=asyncio.Event)
    result: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, outcome: int | Exception) -> None:
        if not self.result.done():
            if isinstance(outcome, Exception):
                self.result.set_exception(outcome)
                self.result.exception()  # nobody may ask, if the generator died meanwhile
            else:
                self.result.set_result(outcome)
        self.started.set()


class Broadcasts:
    """Runs one transfer at a time. `workers`: of each generator. `seconds`: longest time for a generator's turn."""

    def __init__(self, learner: BroadcastingLearner, workers: int, seconds: float) -> None:
        self._learner, self._workers = learner, workers
        self._seconds = seconds * TRANSFER_SHARE
        self._waiting: list[_Request] = []
        self._current: dict[str, _Request] = {}
        self._group: tuple[list[tuple[str, str | None]], Seat] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._receiving: set[asyncio.Task[None]] = set()

    async def turn(self, generator: ReceivingGenerator, manifest: Manifest) -> None:
        """Return when the transfer of this version to this generator begins."""
        request = self._current[generator.name] = _Request(generator, manifest)
        self._waiting.append(request)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        try:
            await request.started.wait()
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(request)

    async def taken(self, generator: ReceivingGenerator) -> int:
        """Return the version once the generator that had its turn uses it; raise what prevented it."""
        return await asyncio.shield(self._current[generator.name].result)

    async def _serve(self) -> None:
        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            if not self._waiting:
                return
            # The oldest first: it is the shortest way to everyone having something.
            manifest = min((request.manifest for request in self._waiting), key=lambda manifest: manifest.version)
            requests = [request for request in self._waiting if request.manifest.version == manifest.version]
            self._waiting = [request for request in self._waiting if request not in requests]
            try:
                await self._transfer(manifest, await self._admitted(requests))
            except Exception as error:
                for request in requests:
                    request.end(error)

    async def _admitted(self, requests: Sequence[_Request]) -> list[_Request]:
        """Turn away who would refuse the version, before anyone waits for it in a group."""
        checks = [request.generator.check(request.manifest) for request in requests]
        for request, answer in zip(requests, await asyncio.gather(*checks, return_exceptions=True), strict=True):
            if isinstance(answer, Exception):
                request.end(answer)
        return [request for request in requests if not request.result.done()]

    async def _transfer(self, manifest: Manifest, requests: Sequence[_Request]) -> None:
        if not requests:
            return
        seat = await self._seat(requests)
        for number, request in enumerate(requests):
            own = replace(seat, rank=1 + number * self._workers)
            task = asyncio.create_task(self._receive(request, own))
            self._receiving.add(task)
            task.add_done_callback(self._receiving.discard)
            request.started.set()
        try:
            await self._learner.send(manifest, seat)
        except TransferInterruptedError:
            self._group = None  # the members say why

    async def _seat(self, requests: Sequence[_Request]) -> Seat:
        members = [(request.generator.name, request.generator.process) for request in requests]
        if self._group is None or self._group[0] != members:
            self._group = None
            size = 1 + len(requests) * self._workers
            self._group = (members, await self._learner.open_group(size, self._seconds))
        return self._group[1]

    async def _receive(self, request: _Request, seat: Seat) -> None:
        try:
            request.end(await request.generator.receive(request.manifest, seat))
        except TransferInterruptedError as error:
            request.end(error)
        except Exception as error:
            request.end(error)
            if self._group is not None and self._group[1].group == seat.group:
                self._group = None  # even if the same process comes back, as after a broken connection
            name = request.generator.name
            reason = f"{name} died" if str(error) in ("", name) else f"{name} failed: {error}"
            with contextlib.suppress(OffbeatError):  # a dead learner is reported by `send`
                await self._learner.give_up(seat, reason)
