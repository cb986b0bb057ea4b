"""Send a version's tensors from the learner: the sender's side of each transport.

A sender keeps a version until `retire`, unchanged by later updates. Must not know who computed the weights, or Ray.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import RunError, TransferInterruptedError, UsageError, writing
from actors.files import atomic_file
from actors.generation.transfer_group import TransferGroup, bucket_bytes, buckets, give_up, views
from actors.generation.weights import dtype_name
from actors.host import bound_socket
from actors.records import Manifest, Seat, TensorRecord
from learner.publication.config import PublicationConfig
from learner.publication.safetensors_file import write_safetensors

MIB = 1 << 20


class Sender:
    """One transport, in the process of learner rank 0."""

    chunks: Sequence[Mapping[str, np.ndarray]] = ()
    """The parts of the newest version that the driver hands to Ray."""

    def keep(self, version: int, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Make `version` available; return its place, if receivers need to know it.

        Copies each of the `tensors`, whose names, shapes and dtypes `outline` has, before it takes the next.
        """
        raise NotImplementedError

    def retire(self, version: int) -> None:
        """Free `version`; unknown ones are ignored."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove everything that was made."""
        raise NotImplementedError


class SharedMemorySender(Sender):
    """`shm`: writes a safetensors file on a memory-backed file system, in a directory that `close` removes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, Path] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def keep(self, version: int, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Raises RunError with the bytes needed and free if the device of the directory is too small."""
        path = self._directory / f"weights-{version}.safetensors"
        self._check_room(outline)
        then = "or set publication.transport to object_store, then use --resume"
        # Unbuffered: a buffer would copy every byte once more.
        with writing(path, then), atomic_file(path) as temporary, temporary.open("wb", buffering=0) as file:
            write_safetensors(file, outline, tensors)
        self._files[version] = path
        return str(path)

    def retire(self, version: int) -> None:
        """Unlink the file; existing mappings stay valid."""
        path = self._files.pop(version, None)
        if path is not None:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        for version in list(self._files):
            self.retire(version)
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def _check_room(self, outline: Mapping[str, Tensor]) -> None:
        # Asked first: writing past the end of a tmpfs kills a process that has the file mapped with SIGBUS.
        needed = sum(tensor.numel() * tensor.element_size() for tensor in outline.values()) + MIB
        device = os.statvfs(self._directory)
        free = device.f_bavail * device.f_frsize
        if needed > free:
            raise RunError(
                f"publishing needs {needed} bytes under {self._directory}, which has {free} free; enlarge the device "
                "(in a container: a larger --shm-size), or set publication.transport to object_store"
            )


class ObjectStoreSender(Sender):
    """`object_store`: cuts the newest version into chunks of tensors by name, bfloat16 viewed as int16."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes
        self._version: int | None = None

    def keep(self, version: int, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
        self.chunks, self._version = _split(tensors, self._limit), version
        return ""

    def retire(self, version: int) -> None:
        if version == self._version:
            self.close()

    def close(self) -> None:
        self.chunks, self._version = (), None


class SharedDeviceSender(Sender):
    """`ipc`: shares the memory of a copy on the GPU that learner and generators use. Not run on a GPU so far."""

    def __init__(self) -> None:
        _check_gpu("ipc")
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks > 1:
            raise UsageError(
                f"publication.transport ipc connects one learner rank and its generators on one GPU, and this learner "
                f"has {ranks} ranks; set learner.ranks to 1, or the transport to nccl"
            )
        self._versions: dict[int, dict[str, Tensor]] = {}

    def keep(self, version: int, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
        copies = ((name, tensor.detach().clone(memory_format=torch.contiguous_format)) for name, tensor in tensors)
        self._versions[version] = dict(copies)
        torch.cuda.current_stream().synchronize()  # receivers do not wait for this process's stream
        return ""

    def share(self, version: int) -> dict[str, Any]:
        """Return what one generator needs to map the tensors; each needs an own answer, because torch counts them."""
        from torch.multiprocessing.reductions import reduce_tensor

        tensors = self._versions[version]
        device = next(iter(tensors.values())).device
        handles = {name: reduce_tensor(tensor)[1] for name, tensor in tensors.items()}
        return {"gpu": str(torch.cuda.get_device_properties(device).uuid), "handles": handles}

    def retire(self, version: int) -> None:
        self._versions.pop(version, None)
        torch.cuda.ipc_collect()

    def close(self) -> None:
        self._versions.clear()


class BroadcastSender(Sender):
    """`gloo` and `nccl`: sends a version once to all workers of the generators in a group.

    `send` may run beside an update, and `open_group` and `give_up` beside `send`, each in a thread of its own.
    `sharded`: the GPUs hold a part of the model each, so versions wait in host memory and travel by the bucket.
    """

    def __init__(self, backend: str, device: torch.device, *, sharded: bool = False) -> None:
        if backend == "nccl":
            _check_gpu(backend)
        self._backend, self._device = backend, device
        # gloo sends host memory.
        self._kept_on = device if backend == "nccl" and not sharded else torch.device("cpu")
        self._versions: dict[int, Tensor] = {}
        """Each version's bytes, tensor by tensor as they came, so that a bucket is a part of them."""
        self._spare: Tensor | None = None
        """Host memory of a retired version, for the next: fresh memory each time would slow the learner's step too."""
        self._store: dist.TCPStore | None = None
        self._group: TransferGroup | None = None
        self._groups = 0
        self._lock = threading.Lock()  # of the store's client, which serves one thread at a time

    def keep(self, version: int, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> str:
        records = {name: TensorRecord(name, tuple(t.shape), dtype_name(t.dtype), "") for name, t in outline.items()}
        region, offset = self._region(bucket_bytes(list(records.values()))), 0
        for name, tensor in tensors:
            size = bucket_bytes([records[name]])
            views(region[offset : offset + size], [records[name]])[name].copy_(tensor.detach())
            offset += size
        self._versions[version] = region
        return ""

    def _region(self, size: int) -> Tensor:
        region, self._spare = self._spare, None
        if region is not None and region.numel() == size:
            return region
        return torch.empty(size, dtype=torch.uint8, device=self._kept_on)

    def open_group(self, size: int, seconds: float) -> Seat:
        """Return the learner's seat in a new group of `size` members."""
        with self._lock:
            address = os.environ.get("MASTER_ADDR", "127.0.0.1")
            if self._store is None:
                self._store = _store_at(address)
            self._groups += 1
            return Seat(f"group {self._groups}", address, self._store.port, seconds, size)

    def send(self, manifest: Manifest, seat: Seat) -> None:
        """Broadcast a version; return when every member has all of it. Raises TransferInterruptedError."""
        try:
            with self._beside_training():
                if self._group is None or self._group.seat.group != seat.group:
                    self._leave()
                    self._group = TransferGroup(self._backend, seat, self._device)
                self._broadcast(self._group, manifest)
                self._spare_gpu(manifest.version)
        except TransferInterruptedError:
            self._leave()
            raise

    @contextlib.contextmanager
    def _beside_training(self) -> Iterator[None]:
        """Use a stream of this thread's own on a GPU: in the default one each bucket would wait for the update."""
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.set_device(self._device)
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            yield

    def _broadcast(self, group: TransferGroup, manifest: Manifest) -> None:
        kept = self._versions[manifest.version]
        device = torch.device("cpu") if self._backend == "gloo" else self._device
        sizes = [bucket_bytes(part) for part in buckets(manifest.tensors)]
        regions = (part.to(device) for part in kept.split(sizes))
        group.begin()
        for _ in group.broadcast(regions):
            pass
        group.settle()

    def _spare_gpu(self, version: int) -> None:
        """Move a version that was sent to host memory, for late joiners: the GPU has no room for two versions."""
        kept = self._versions.get(version)
        if kept is not None and self._device.type == "cuda":
            moved = kept.to("cpu")
            if version in self._versions:  # not retired meanwhile
                self._versions[version] = moved

    def give_up(self, seat: Seat, reason: str) -> None:
        """Release all members of a group in which somebody failed."""
        with self._lock:
            if self._store is not None:
                give_up(self._store, seat.group, reason)

    def retire(self, version: int) -> None:
        retired = self._versions.pop(version, None)
        if retired is not None and self._kept_on.type == "cpu":
            self._spare = retired

    def close(self) -> None:
        self._leave()
        self._versions.clear()
        self._spare = None
        self._store = None

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close()


def _store_at(address: str) -> dist.TCPStore:
    """Return a store whose server listens at `address` alone; torch's own choice is all interfaces."""
    server = bound_socket(address)
    port = server.getsockname()[1]
    return dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


def sender_of(config: PublicationConfig, directory: Path, device: torch.device, *, sharded: bool) -> Sender:
    """Return the sender of `config.transport`. Raises UsageError if this process cannot use it."""
    makers: dict[str, Callable[[], Sender]] = {
        "shm": lambda: SharedMemorySender(directory),
        "object_store": lambda: ObjectStoreSender(config.chunk_mib * MIB),
        "ipc": SharedDeviceSender,
        "gloo": lambda: BroadcastSender("gloo", device, sharded=sharded),
        "nccl": lambda: BroadcastSender("nccl", device, sharded=sharded),
    }
    return makers[config.transport]()


def _check_gpu(transport: str) -> None:
    if not torch.cuda.is_available():
        raise UsageError(
            f"publication.transport {transport} needs a CUDA GPU in the learner's process, and it sees none; set "
            "learner.gpus_per_rank to 1, or the transport to shm, object_store or gloo"
        )


def _split(tensors: Iterable[tuple[str, Tensor]], limit: int) -> list[dict[str, np.ndarray]]:
    """Copy into chunks of at most `limit` bytes, split between tensors; a larger tensor gets its own chunk."""
    chunks: list[dict[str, np.ndarray]] = []
    room = 0
    for name, tensor in tensors:
        array = _to_numpy(tensor)
        if not chunks or array.nbytes > room:
            chunks.append({})
            room = limit
        chunks[-1][name] = array
        room -= array.nbytes
    return chunks


def _to_numpy(tensor: Tensor) -> np.ndarray:
    # A copy: training continues while the chunks are fetched.
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return (copy.view(torch.int16) if copy.dtype == torch.bfloat16 else copy).numpy()
