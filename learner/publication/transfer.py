"""The learner's side of the weight sync transports `nccl` and `ipc`, built on vLLM's own weight transfer.

One sender per generator: if a generator dies, its sender is closed and a new one built; no other generator is in its
group. Must not know DeepSpeed or Ray: full tensors come in, and a generator is three methods. vLLM is imported when a
sender is built. Written against vLLM 0.32's `distributed/weight_transfer`; not yet run on a GPU.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.errors import RunError, UsageError
from actors.network import free_port
from actors.records import SENT_BY_LEARNER, Manifest

ParamMetas = list[Any]  # vLLM's `ParamMeta` records: name, dtype, shape


class ReceivingGenerator(Protocol):
    """The methods that a sender calls on its generator, all blocking. `Generator` has them."""

    def check_weights(self, manifest: Manifest) -> None: ...
    def connect_weights(self, init_info: dict[str, Any]) -> None: ...
    def take_weights(self, manifest: Manifest, chunks: Any = None) -> int: ...


class WeightSender:
    """Send publications from this process's GPU to one generator, whose engine must use the same transport.

    `workers` is the generator's tensor parallel size, `address` this host as the generator's host reaches it (`nccl`
    only). Raises UsageError if this process cannot use the transport.
    """

    def __init__(
        self, transport: str, generator: ReceivingGenerator, *, workers: int = 1, address: str = "127.0.0.1"
    ) -> None:
        _check_usable(transport)
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        self._source, self._client = TensorSource(), GeneratorClient(generator)
        if transport == "ipc":
            engine, info = IPCTrainerWeightTransferEngine, IPCTrainerInitInfo(rank=0)
        else:
            info = NCCLTrainerInitInfo(address, free_port(), 1 + workers, rank=0)
            engine = NCCLTrainerWeightTransferEngine
        self._trainer = engine.trainer_init(info, client=self._client, source=self._source)

    def send(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        """Send one publication; return once the generator has verified it and uses it.

        `tensors` are full weights on any device, and must not change before this returns; `manifest` is theirs.
        Raises WeightMismatchError if the generator refuses, before the transfer if names or shapes do not match.
        """
        self._client.manifest = manifest
        self._source.tensors = tensors
        try:
            self._trainer.send_weights()
        finally:
            self._source.tensors = {}

    def close(self) -> None:
        """Leave the group."""
        self._trainer.shutdown()


class GeneratorClient:
    """vLLM's weight-sync client for a `ReceivingGenerator`.

    vLLM's protocol starts, fills and finishes an update in three calls; an engine that samples in between dies. So the
    middle call does all three inside the generator, between two engine steps. The first call only checks names and
    shapes: a receiver that refused later would leave the sender waiting in its broadcast.
    """

    def __init__(self, generator: ReceivingGenerator) -> None:
        self._generator = generator
        self.manifest: Manifest | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._generator.connect_weights(init_info)

    def start_weight_update(self) -> None:
        self._generator.check_weights(self._current())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._generator.take_weights(self._current(), update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Do nothing: `update_weights` finished the update and set the version from the manifest."""

    def _current(self) -> Manifest:
        if self.manifest is None:
            raise RunError("weights sent without a manifest; use WeightSender.send")
        return self.manifest


class TensorSource:
    """vLLM's `WeightSource` for the tensors being sent, one at a time on this process's GPU."""

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}

    def metadata(self) -> ParamMetas:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            yield name, tensor.detach().to(torch.accelerator.current_accelerator() or "cpu").contiguous()


def _check_usable(transport: str) -> None:
    if transport not in SENT_BY_LEARNER:
        raise UsageError(f"publication.transport {transport!r} is not sent by a WeightSender; allowed: nccl, ipc")
    if not torch.cuda.is_available():
        raise UsageError(
            f"publication.transport {transport} needs a CUDA GPU in the learner's process, and it sees none; set "
            "learner.gpus_per_rank to 1, or the transport to shm or object_store"
        )
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if transport == "ipc" and distributed and torch.distributed.get_world_size() > 1:
        raise UsageError(
            f"publication.transport ipc connects one learner rank and one generator on one GPU, and this learner has "
            f"{torch.distributed.get_world_size()} ranks; set learner.ranks to 1, or the transport to nccl"
        )
