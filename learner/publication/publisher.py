"""Make a publication: one policy version's weights, kept by the transport's sender, and the manifest to check them by.

Takes full tensors, one at a time, and the learner's canary log-probs. Must not know how they were computed (DeepSpeed),
who receives them, or Ray.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.errors import RunError
from actors.generation.weights import dtype_name, fingerprint
from actors.records import Canary, Manifest, TensorRecord
from learner.publication.config import PublicationConfig
from learner.publication.senders import sender_of


class Publisher:
    """Publish one version after another; `close` removes what is left.

    `directory` receives the files of `shm`, on a memory-backed file system; it is created, and removed by `close`.
    `device` is the one that trains, and `sharded` whether it holds only a part of the model. Raises UsageError if this
    process cannot use the transport.
    """

    def __init__(
        self,
        config: PublicationConfig,
        directory: str | Path,
        device: torch.device | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        self._transport = config.transport
        self.sender = sender_of(config, Path(directory), device or torch.device("cpu"), sharded=sharded)

    def publish(
        self,
        version: int,
        outline: Mapping[str, Tensor],
        canary: Canary,
        tensors: Iterable[tuple[str, Tensor]] | None = None,
        fresh: Canary | None = None,
    ) -> Manifest:
        """Make `version` available and return its manifest.

        `outline` holds every weight of the model, unsharded, by its name in the model's safetensors files. If `tensors`
        brings them, in any order, it needs only their shapes and dtypes. They are copied once, to where the transport
        keeps them, and may change when the next is asked for; fingerprints are computed on the device that holds each.
        `canary` and `fresh`: the learner's log-probs (nats, temperature 1) of a fixed answer and of a rollout under
        these weights.
        """
        records: list[TensorRecord] = []
        arriving = _recorded(outline, outline.items() if tensors is None else tensors, records)
        place = self.sender.keep(version, outline, arriving)
        return Manifest(version, tuple(records), canary, self._transport, place, fresh)

    @property
    def chunk_count(self) -> int:
        """Number of chunks of the newest `object_store` publication; 0 for other transports."""
        return len(self.sender.chunks)

    def chunk(self, index: int) -> Mapping[str, np.ndarray]:
        """Return a chunk of the newest `object_store` publication: tensors by name, bfloat16 viewed as int16."""
        return self.sender.chunks[index]

    def retire(self, version: int) -> None:
        """Free the storage of `version`; existing mappings stay valid. Unknown versions are ignored."""
        self.sender.retire(version)

    def close(self) -> None:
        """Remove everything that this publisher made."""
        self.sender.close()


def _recorded(
    outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], records: list[TensorRecord]
) -> Iterator[tuple[str, Tensor]]:
    """Yield `tensors`, adding the record of each. Raises RunError if they are not those of `outline`."""
    missing = set(outline)
    for name, tensor in tensors:
        expected = outline[name]
        if name not in missing or (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
            raise RunError(
                f"the learner gathered the weight {name!r} twice or as {dtype_name(tensor.dtype)} "
                f"{tuple(tensor.shape)} instead of {dtype_name(expected.dtype)} {tuple(expected.shape)}; report this"
            )
        missing.remove(name)
        records.append(TensorRecord(name, tuple(tensor.shape), dtype_name(tensor.dtype), fingerprint(tensor)))
        yield name, tensor
    if missing:
        raise RunError(f"the learner did not gather {len(missing)} weights, among them {min(missing)!r}; report this")
