"""Receive a publication's tensors: the receiver's side of each transport.

A receiver returns tensors that were checked against the manifest, in memory that the engine's model does not use. So a
refused or interrupted publication does not change the model. Runs inside every engine worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.errors import RunError, TransferInterruptedError
from actors.generation import weights
from actors.generation.transfer_group import TransferGroup, bucket_bytes, buckets, views
from actors.records import Manifest, Seat


class Receiver(Protocol):
    """One transport, inside one engine worker."""

    def fetch(self, manifest: Manifest, payload: Sequence[Any]) -> Mapping[str, Tensor]:
        """Return the checked tensors. Raises WeightMismatchError, RunError or TransferInterruptedError."""


class SharedMemoryReceiver:
    """Maps the file of an `shm` publication."""

    def fetch(self, manifest: Manifest, payload: Sequence[Any]) -> Mapping[str, Tensor]:
        tensors = weights.read_shm(manifest)
        weights.check_against(manifest, tensors)
        return tensors


class ObjectStoreReceiver:
    """Reads the chunks of an `object_store` publication in place; they are the payload."""

    def fetch(self, manifest: Manifest, payload: Sequence[Any]) -> Mapping[str, Tensor]:
        tensors = weights.read_chunks(manifest, payload)
        weights.check_against(manifest, tensors)
        return tensors


class SharedDeviceReceiver:
    """Maps the learner's own tensors on the GPU that both use (`ipc`). Not run on a GPU so far.

    The payload is one record: the GPU, and for each name the arguments of torch's `rebuild_cuda_tensor`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def fetch(self, manifest: Manifest, payload: Sequence[Any]) -> Mapping[str, Tensor]:
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        (shared,) = payload
        own = str(torch.cuda.get_device_properties(self._device).uuid)
        if shared["gpu"] != own:
            raise RunError(
                f"publication.transport ipc shares memory of one GPU, but the learner uses {shared['gpu']} and this "
                f"generator {own}; place both on one GPU, or set the transport to nccl"
            )
        tensors = {}
        for name, arguments in shared["handles"].items():
            # The number of the device differs between processes that see different GPUs.
            here = [*arguments[:6], self._device.index, *arguments[7:]]
            tensors[name] = rebuild_cuda_tensor(*here)
        weights.check_against(manifest, tensors)
        return tensors


class BroadcastReceiver:
    """Takes part in the learner's broadcast (`gloo`, `nccl`). The payload is the seat of this generator's first worker.

    Arriving tensors stay in host memory until all are there: one copy of the weights per worker. On a GPU each bucket
    is checked there, before it is copied. A refusal is raised after the last bucket, so that other members never wait
    for it.
    """

    def __init__(self, backend: str, device: torch.device, worker: int) -> None:
        self._backend, self._device, self._worker = backend, device, worker
        self._group: TransferGroup | None = None
        self._landing: Tensor | None = None

    def fetch(self, manifest: Manifest, payload: Sequence[Any]) -> Mapping[str, Tensor]:
        (seat,) = payload
        try:
            group = self._join(seat)
            tensors = self._receive(group, manifest)
        except TransferInterruptedError:
            # A broadcast that never ended may still write to this memory.
            self._landing = None
            self._leave()
            raise
        if self._device.type != "cuda":
            weights.check_against(manifest, tensors)
        return tensors

    def _join(self, seat: Seat) -> TransferGroup:
        if self._group is None or self._group.seat.group != seat.group:
            self._leave()
            own = Seat(seat.group, seat.address, seat.port, seat.seconds, seat.size, seat.rank + self._worker)
            self._group = TransferGroup(self._backend, own, self._device)
        return self._group

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def _receive(self, group: TransferGroup, manifest: Manifest) -> dict[str, Tensor]:
        parts = list(buckets(manifest.tensors))
        sizes = [bucket_bytes(part) for part in parts]
        if self._landing is None or self._landing.numel() != sum(sizes):
            self._landing = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        places = self._landing.split(sizes)
        on_gpu = self._device.type == "cuda"
        regions = (torch.empty_like(place, device=self._device) for place in places) if on_gpu else iter(places)
        group.begin()
        tensors: dict[str, Tensor] = {}
        refusal: Exception | None = None
        for part, place, region in zip(parts, places, group.broadcast(regions), strict=True):
            if on_gpu:
                refusal = refusal or _refusal(manifest, part, views(region, part))
                place.copy_(region)
            tensors |= views(place, part)
        group.settle()
        if refusal is not None:
            raise refusal
        return tensors


def _refusal(manifest: Manifest, part: Sequence[Any], arrived: Mapping[str, Tensor]) -> Exception | None:
    try:
        for record in part:
            weights.check_bits(manifest.version, record.name, record.fingerprint, arrived[record.name])
    except RunError as error:
        return error
    return None


def receiver_of(transport: str, device: torch.device, worker: int) -> Receiver:
    """Return a transport's receiver for one engine worker, given its device and its number in the generator."""
    makers: dict[str, Callable[[], Receiver]] = {
        "shm": SharedMemoryReceiver,
        "object_store": ObjectStoreReceiver,
        "ipc": lambda: SharedDeviceReceiver(device),
        "gloo": lambda: BroadcastReceiver("gloo", torch.device("cpu"), worker),
        "nccl": lambda: BroadcastReceiver("nccl", device, worker),
    }
    return makers[transport]()


def read(manifest: Manifest, payload: Sequence[Any]) -> dict[str, Tensor]:
    """Return the checked tensors of a publication, outside of an engine, if anyone may read its transport."""
    return dict(receiver_of(manifest.transport, torch.device("cpu"), worker=0).fetch(manifest, payload))
