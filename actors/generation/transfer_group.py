"""Carry one publication at a time from the learner to all engine workers, over gloo or NCCL.

Both sides use the group: rank 0 is the learner. It is separate from every default process group. A failed member never
blocks the others for longer than the deadline, and only for a moment if somebody gives the transfer up. After an
interruption the group cannot be used again. Must not know vLLM's engines, DeepSpeed or Ray.

NCCL's part is written against vLLM 0.32's `PyNcclCommunicator` and was not run on GPUs so far.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import RunError, TransferInterruptedError
from actors.records import Seat, TensorRecord

BUCKET_BYTES = 64 << 20
"""Size up to which tensors travel together; a larger tensor travels alone."""
IN_FLIGHT = 2  # broadcasts that are started before the first has ended
POLL_SECONDS = 0.001
CHECK_SECONDS = 0.05  # between two checks whether the transfer is given up
_ALIGNMENT = 16
_GIVEN_UP = "given up"


def buckets(records: Sequence[TensorRecord]) -> Iterator[list[TensorRecord]]:
    """Split `records` into buckets of up to `BUCKET_BYTES` that travel as one; both sides get the same buckets."""
    part: list[TensorRecord] = []
    for record in records:
        if part and bucket_bytes([*part, record]) > BUCKET_BYTES:
            yield part
            part = []
        part.append(record)
    if part:
        yield part


def bucket_bytes(records: Sequence[TensorRecord]) -> int:
    """Return the bytes of a bucket, the gaps between its tensors included."""
    return sum(_padded(record_bytes(record)) for record in records)


def record_bytes(record: TensorRecord) -> int:
    size = getattr(torch, record.dtype).itemsize
    for extent in record.shape:
        size *= extent
    return size


def views(region: Tensor, records: Sequence[TensorRecord]) -> dict[str, Tensor]:
    """Return the tensors of a bucket, as views of the bytes that arrived."""
    found, offset = {}, 0
    for record in records:
        size = record_bytes(record)
        data = region[offset : offset + size].view(getattr(torch, record.dtype))
        found[record.name] = data.view(record.shape)
        offset += _padded(size)
    return found


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def give_up(store: dist.Store, group: str, reason: str) -> None:
    """Signal all members of `group` to give up its transfer."""
    dist.PrefixStore(group, store).set(_GIVEN_UP, reason)


class _Work(Protocol):
    def done(self) -> bool:
        """Return whether it has ended. Raises RuntimeError if it failed."""


class TransferGroup:
    """One process's membership. Construction returns when all members have joined.

    Construction and `broadcast` raise TransferInterruptedError when a member fails or does not come in time.
    """

    def __init__(self, backend: str, seat: Seat, device: torch.device) -> None:
        self.seat = seat
        self._deadline = time.monotonic() + seat.seconds
        self._checked = 0.0
        self._transfers = 0
        self._works: deque[_Work] = deque()
        with self._interruptions():
            server = dist.TCPStore(seat.address, seat.port, is_master=False, timeout=timedelta(seconds=seat.seconds))
            self._store = dist.PrefixStore(seat.group, server)
            self._meet("joined")
            self._backend: Any = (_Nccl if backend == "nccl" else _Gloo)(self._store, seat, device)

    def begin(self) -> None:
        """Start the clock of a transfer. The first transfer's clock started with the group."""
        if self._transfers:
            self._deadline = time.monotonic() + self.seat.seconds
        self._transfers += 1

    def broadcast(self, regions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Send (rank 0) or fill each region of bytes; yield it when it has left or arrived."""
        waiting: deque[Tensor] = deque()
        with self._interruptions():
            for region in regions:
                self._works.append(self._backend.start(region, max(1.0, self._left())))
                waiting.append(region)
                if len(waiting) == IN_FLIGHT:
                    self._wait_first()
                    yield waiting.popleft()
            while waiting:
                self._wait_first()
                yield waiting.popleft()

    def settle(self) -> None:
        """Wait until every member has all regions; only then may a member leave."""
        with self._interruptions():
            self._meet(f"received {self._transfers}")

    def close(self) -> None:
        """Leave the group. Unfinished broadcasts end in a thread of their own."""
        backend, works, self._backend = self._backend, list(self._works), None
        self._works.clear()
        if backend is not None:
            # Closing may wait for an interrupted broadcast.
            threading.Thread(target=backend.close, args=(works,), daemon=True).start()

    def _meet(self, what: str) -> None:
        self._store.set(f"{what} {self.seat.rank}", "")
        everyone = [f"{what} {rank}" for rank in range(self.seat.size)]
        while not self._store.check(everyone):
            self._look()
            time.sleep(POLL_SECONDS)

    def _wait_first(self) -> None:
        while not self._works[0].done():
            self._look()
            time.sleep(POLL_SECONDS)
        self._works.popleft()

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _look(self) -> None:
        """Raise TransferInterruptedError if the deadline has passed or the transfer is given up."""
        if self._left() < 0.0:
            raise TransferInterruptedError(f"it took longer than {self.seat.seconds:g} s")
        now = time.monotonic()
        if now - self._checked > CHECK_SECONDS:
            self._checked = now
            if self._store.check([_GIVEN_UP]):
                raise TransferInterruptedError(self._store.get(_GIVEN_UP).decode())

    @contextlib.contextmanager
    def _interruptions(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's error for a broken connection; its DistErrors are RuntimeErrors
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise TransferInterruptedError(f"another member of the group is gone ({first})") from error


class _Gloo:
    def __init__(self, store: dist.Store, seat: Seat, device: torch.device) -> None:
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=seat.seconds)
        # By default gloo listens at the address of this host's name, which others may not reach.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=_address_towards(seat))]
        self._group = dist.ProcessGroupGloo(store, seat.rank, seat.size, options)

    def start(self, region: Tensor, seconds: float) -> _Work:
        return _GlooWork(self._group.broadcast(region, 0, timedelta(seconds=seconds)), region)

    def close(self, works: Sequence[_Work]) -> None:
        """Wait until interrupted broadcasts have run into their deadline: they hold the memory that they write to."""
        while not all(map(_ended, works)):
            time.sleep(CHECK_SECONDS)
        self._group = None


def _ended(work: _Work) -> bool:
    try:
        return work.done()
    except RuntimeError:
        return True


class _GlooWork:
    def __init__(self, work: Any, region: Tensor) -> None:
        self._work, self._region = work, region

    def done(self) -> bool:
        if not self._work.is_completed():
            return False
        self._work.wait()
        return True


class _Nccl:
    """NCCL by vLLM's communicator, which has no watchdog that ends the process when a member fails."""

    def __init__(self, store: dist.Store, seat: Seat, device: torch.device) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup

        self._device = device
        meeting = StatelessProcessGroup(rank=seat.rank, world_size=seat.size, store=store)
        self._communicator = PyNcclCommunicator(meeting, device=device)
        if not self._communicator.available:
            raise RunError("NCCL cannot be loaded; set publication.transport to gloo or object_store")
        self._stream = torch.cuda.Stream(device)

    def start(self, region: Tensor, seconds: float) -> _Work:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._communicator.broadcast(region, src=0, stream=self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return _NcclWork(event, region)

    def close(self, works: Sequence[_Work]) -> None:
        """Abort `works` at once: a broadcast whose member is gone would occupy the GPU for ever."""
        self._communicator.destroy()


class _NcclWork:
    def __init__(self, event: Any, region: Tensor) -> None:
        self._event, self._region = event, region

    def done(self) -> bool:
        return bool(self._event.query())


def _address_towards(seat: Seat) -> str:
    """Return this host's address on the network of the store. Nothing is sent."""
    family = socket.AF_INET6 if ":" in seat.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((seat.address, seat.port))
        return str(probe.getsockname()[0])
