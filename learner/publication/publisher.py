"""Make a publication: one policy version's weights in shared memory or in chunks, and the manifest to check them by.

Takes full tensors and the learner's canary log-probs. Must not know how they were computed (DeepSpeed), who receives
them, or Ray. For the transports `nccl` and `ipc`, which carry the bytes themselves (`transfer.py`), makes only the
manifest.
"""

import json
import os
import struct
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.errors import RunError, writing
from actors.files import atomic_file
from actors.generation.weights import DTYPE_NAMES, dtype_name, fingerprint
from actors.records import Canary, Manifest, TensorRecord
from learner.config import PublicationConfig

MIB = 1 << 20
_SAFETENSORS_NAMES = {torch_name: name for name, torch_name in DTYPE_NAMES.items()}


class Publisher:
    """Publish one version after another; `close` removes what is left.

    `directory` receives the files of `shm`, on a memory-backed file system; it is created, and removed by `close`.
    """

    def __init__(self, config: PublicationConfig, directory: str | Path) -> None:
        self._config = config
        self._directory = Path(directory)
        self._files: dict[int, Path] = {}
        self._chunks: list[dict[str, np.ndarray]] = []
        self._chunks_version: int | None = None
        if config.transport == "shm":
            self._directory.mkdir(parents=True, exist_ok=True)

    def publish(self, version: int, tensors: Mapping[str, Tensor], canary: Canary) -> Manifest:
        """Make `version` available and return its manifest.

        `tensors` holds every weight of the model, unsharded, by its name in the model's safetensors files; `canary` the
        learner's log-probs (nats, temperature 1) of the fixed sequence under these weights.
        Raises RunError with the bytes needed and free if the device of `directory` is too small.
        """
        location = ""
        if self._config.transport == "shm":
            path = self._directory / f"weights-{version}.safetensors"
            self._write(path, tensors)
            self._files[version] = path
            location = str(path)
        elif self._config.transport == "object_store":
            self._chunks = _split(tensors, self._config.chunk_mib * MIB)
            self._chunks_version = version
        records = tuple(
            TensorRecord(name, tuple(tensor.shape), dtype_name(tensor.dtype), fingerprint(tensor))
            for name, tensor in tensors.items()
        )
        return Manifest(version, records, canary, self._config.transport, location)

    @property
    def chunk_count(self) -> int:
        """Number of chunks of the newest `object_store` publication; 0 for other transports."""
        return len(self._chunks)

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """Return a chunk of the newest `object_store` publication: tensors by name, bfloat16 viewed as int16."""
        return self._chunks[index]

    def retire(self, version: int) -> None:
        """Free the storage of `version`; existing mappings stay valid. Unknown versions are ignored."""
        path = self._files.pop(version, None)
        if path is not None:
            path.unlink(missing_ok=True)
        if version == self._chunks_version:
            self._chunks, self._chunks_version = [], None

    def close(self) -> None:
        """Remove everything that this publisher made."""
        for version in list(self._files):
            self.retire(version)
        self._chunks, self._chunks_version = [], None
        if self._config.transport == "shm" and self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._check_room(tensors)
        remedy = f"free space under {self._directory}, or set publication.transport to object_store"
        # Unbuffered: a buffer would copy every byte once more.
        with writing(path, remedy), atomic_file(path) as temporary, temporary.open("wb", buffering=0) as file:
            write_safetensors(file, tensors)

    def _check_room(self, tensors: Mapping[str, Tensor]) -> None:
        # Asked first: writing past the end of a tmpfs kills a process that has the file mapped with SIGBUS.
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + MIB
        device = os.statvfs(self._directory)
        free = device.f_bavail * device.f_frsize
        if needed > free:
            raise RunError(
                f"publishing needs {needed} bytes under {self._directory}, which has {free} free; enlarge the device "
                "(in a container: a larger --shm-size), or set publication.transport to object_store"
            )


def write_safetensors(file: RawIOBase, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` in the safetensors format: header length, JSON header, then the bytes of each tensor.

    Streams tensor by tensor. The library's writer first assembles everything in memory and takes several times longer.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format requires data to start at a multiple of 8 bytes
    _write_all(file, memoryview(struct.pack("<Q", len(text)) + text))
    for tensor in tensors.values():
        _write_all(file, memoryview(_bytes(tensor).numpy()))


def _write_all(file: RawIOBase, data: memoryview) -> None:
    # Linux writes at most 2 GiB at a time.
    while data:
        data = data[file.write(data) :]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, np.ndarray]]:
    """Copy into chunks of at most `limit` bytes, split between tensors; a larger tensor gets its own chunk."""
    chunks: list[dict[str, np.ndarray]] = []
    room = 0
    for name, tensor in tensors.items():
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
