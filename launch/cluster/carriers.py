"""Carry publications from the learner's actor to the generators' actors: one class for each way.

Chosen once, by the transport's record in `actors.records.TRANSPORTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from actors.records import TRANSPORTS, Manifest, Seat
from launch.cluster.broadcasts import Broadcasts, ReceivingGenerator
from launch.run.protocols import Publication

PUBLISHING, CONTROL = "publishing", "control"
CONCURRENCY_GROUPS = {PUBLISHING: 1, CONTROL: 1}
"""Concurrency groups of the learner's actors: transfers run beside updates, and can be given up meanwhile."""
PULSE = "pulse"
"""Concurrency group in which a rank gives a sign of life, whatever it is doing."""


class CallableRanks(Protocol):
    """Calls of the learner's rank 0. They raise what it raised, RunError if it died."""

    async def first(self, method: str, *arguments: Any, group: str | None = None) -> Any: ...

    async def chunks(self, count: int) -> Sequence[Any]:
        """Return references to the chunks of the newest publication."""


class Carrier(Protocol):
    """One way from the learner to the generators."""

    async def publication(self, manifest: Manifest) -> Publication: ...


class Chunks:
    """`shm` and `object_store`: a publication that generators read by themselves, with its chunks if it has any."""

    def __init__(self, learner: CallableRanks) -> None:
        self._learner = learner

    async def publication(self, manifest: Manifest) -> Publication:
        count = await self._learner.first("chunk_count")
        return Publication(manifest, await self._learner.chunks(count) if count else None)


class SharedMemoryOfGpu:
    """`ipc`: each generator gets handles of its own. Never run on a GPU so far."""

    def __init__(self, learner: CallableRanks) -> None:
        self._learner = learner

    async def publication(self, manifest: Manifest) -> Publication:
        return Publication(manifest, self)

    async def take(self, generator: Any, manifest: Manifest) -> int:
        return await generator.receive(manifest, await self._learner.first("share", manifest.version, group=CONTROL))


class BroadcastToAll:
    """`gloo` and `nccl`: generators that want a version at the same time get it in one transfer."""

    def __init__(self, learner: CallableRanks, workers: int, seconds: float) -> None:
        self._learner = learner
        self._broadcasts = Broadcasts(self, workers, seconds)

    async def publication(self, manifest: Manifest) -> Publication:
        async def turn(generator: Any) -> None:
            await self._broadcasts.turn(generator, manifest)

        return Publication(manifest, self, turn)

    async def take(self, generator: ReceivingGenerator, manifest: Manifest) -> int:
        return await self._broadcasts.taken(generator)

    async def open_group(self, size: int, seconds: float) -> Seat:
        return await self._learner.first("open_group", size, seconds, group=CONTROL)

    async def send(self, manifest: Manifest, seat: Seat) -> None:
        await self._learner.first("send", manifest, seat, group=PUBLISHING)

    async def give_up(self, seat: Seat, reason: str) -> None:
        await self._learner.first("give_up", seat, reason, group=CONTROL)


def carrier_of(transport: str, learner: CallableRanks, workers: int, seconds: float) -> Carrier:
    """Return the carrier of a transport. `workers`: of each generator. `seconds`: for one generator and version."""
    kind = TRANSPORTS[transport]
    if kind.broadcast:
        return BroadcastToAll(learner, workers, seconds)
    return Chunks(learner) if kind.readable else SharedMemoryOfGpu(learner)
