"""Makes a publication: full weights in shared memory or message-sized chunks, and the manifest that vouches for them.

It is given whole tensors and the learner's canary log-probs; it must not know how either was computed (DeepSpeed), who
takes the weights, or ray. Transports `nccl` and `ipc` carry the bytes themselves (`weight_transfer.py`): for them it
makes the manifest only.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from io import RawIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.errors import RunError
from actors.generation.weights import DTYPE_NAMES, dtype_name, fingerprint
from actors.records import Canary, Manifest, TensorRecord
from learner.config import PublicationConfig

MIB = 1 << 20
_SAFETENSORS_NAMES = {torch_name: name for name, torch_name in DTYPE_NAMES.items()}


class Publisher:
    """Publishes one version after another, and cleans up after itself.

    Args:
        config: transport and chunk size.
        directory: where `shm` files go, on a memory-backed file system; it is created, and removed by `close`.
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
        """Makes version `version` available and describes it.

        Args:
            tensors: every weight of the model, whole, under its name in the model's safetensors files.
            canary: the learner's log-probs (nats, temperature 1) of the fixed sequence under these very weights.

        Raises:
            RunError: the device of `directory` is too small, with the bytes needed and free.
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
        """Chunks of the newest `object_store` publication; 0 for other transports."""
        return len(self._chunks)

    def chunk(self, index: int) -> dict[str, np.ndarray]:
        """One chunk of the newest `object_store` publication: whole tensors by name, bfloat16 viewed as int16."""
        return self._chunks[index]

    def retire(self, version: int) -> None:
        """Frees what `version` holds; who has it mapped keeps the mapping. Unknown versions are ignored."""
        path = self._files.pop(version, None)
        if path is not None:
            path.unlink(missing_ok=True)
        if version == self._chunks_version:
            self._chunks, self._chunks_version = [], None

    def close(self) -> None:
        """Removes everything that this publisher made."""
        for version in list(self._files):
            self.retire(version)
        self._chunks, self._chunks_version = [], None
        if self._config.transport == "shm" and self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._check_room(tensors)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb", buffering=0) as file:  # a buffer copies every byte once more
                write_safetensors(file, tensors)
            os.replace(partial, path)
        except OSError as error:
            raise RunError(
                f"writing {path} failed: {error}; free space under {self._directory}, or set publication.transport to "
                "object_store"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _check_room(self, tensors: Mapping[str, Tensor]) -> None:
        # Writing past the end of a tmpfs kills the process with SIGBUS where the file is mapped, so ask first.
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + MIB
        device = os.statvfs(self._directory)
        free = device.f_bavail * device.f_frsize
        if needed > free:
            raise RunError(
                f"publishing needs {needed} bytes under {self._directory}, which has {free} free; enlarge the device "
                "(in a container: a larger --shm-size), or set publication.transport to object_store"
            )


def write_safetensors(file: RawIOBase, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` in the safetensors format: header length, JSON header, then the bytes of each tensor.

    Streams tensor by tensor; the library's writer assembles everything in memory first and takes several times longer.
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
    text += b" " * (-len(text) % 8)  # the format asks for data that starts at a multiple of eight bytes
    _write_all(file, memoryview(struct.pack("<Q", len(text)) + text))
    for tensor in tensors.values():
        _write_all(file, memoryview(_bytes(tensor).numpy()))


def _write_all(file: RawIOBase, data: memoryview) -> None:
    # An unbuffered write takes at most 2 GiB at a time.
    while data:
        data = data[file.write(data) :]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, np.ndarray]]:
    """Copies into chunks of at most `limit` bytes, split between tensors; a larger tensor is a chunk of its own."""
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
    # A copy: training goes on while the chunks are taken.
    whole = tensor.detach().to("cpu", copy=True).contiguous()
    return (whole.view(torch.int16) if whole.dtype == torch.bfloat16 else whole).numpy()
