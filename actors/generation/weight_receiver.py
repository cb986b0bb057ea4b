"""Receive publications inside every vLLM worker, as its `worker_extension_cls`.

The model changes only after the whole publication was checked, so after a refusal the old weights stay in use. Must not
handle versions of requests, caches or the canary: `engine.py` does.

Methods return the text of a refusal, because a worker may be another process and exceptions lose their type on the way.
An exception means that the worker is broken.
"""

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

import actors.generation.startup.known_tensors  # noqa: F401, registers its load format in this process
from actors.adapters.config import LoraConfig
from actors.errors import RunError, TransferInterruptedError
from actors.generation import weights
from actors.generation.lora.slot import AdapterSlot
from actors.generation.mixture import settings_of
from actors.generation.proof.loaded_weights import LoadedWeights
from actors.generation.receivers import Receiver, receiver_of
from actors.generation.startup import start_files
from actors.records import Manifest

GIVE_BACK_EVERY = 50
"""Loads after which freed memory is returned to the system: each load leaves fragments of a few KiB per layer."""


class Interruption(str):
    """A worker's answer: the reason why a transfer ended early. The same publication may come again."""


def give_back() -> None:
    """Return freed memory to the system, if the C library can (glibc). Takes 15 ms for a heap of 500 MiB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class WeightReceiver:
    """Mixed into vLLM's worker class, which provides the methods that reload weights."""

    publication_receivers: dict[str, Receiver] | None = None  # by transport, each made for its first publication
    staged_publication: dict[str, Tensor] | None = None  # checked, waiting for `load_publication`
    loaded_weights: LoadedWeights | None = None  # made for the first publication
    adapter_slot: AdapterSlot | None = None  # if publications hold adapters
    loads = 0
    expected_publication: dict[str, tuple[weights.Shape, str]] | None = None
    """Names, shapes and dtypes of the tensors of each publication; read once."""

    # Provided by the worker class:
    model_runner: Any
    vllm_config: Any
    device: Any
    rank: int  # among the engine's tensor-parallel workers
    distributed_init_method: str

    def start_files(self) -> list[str]:
        """Return the names of files that this worker no longer needs, and expect their removal."""
        start_files.expect_missing()
        return start_files.of_process(rendezvous=self.distributed_init_method)

    def begin_adapters(self, lora: LoraConfig, expected: Mapping[str, tuple[weights.Shape, str]]) -> str | None:
        """Put the adapter of version 0 in place, before the first request.

        `expected`: the tensors of each publication, instead of all weights. Returns why this engine cannot apply
        adapters, or None.
        """
        self.expected_publication = dict(expected)
        self.adapter_slot = AdapterSlot(self.model_runner, lora, {name: shape for name, (shape, _) in expected.items()})
        return self.adapter_slot.begin()

    def adapter_applied(self) -> str | None:
        """Return an error text if no token was computed with the adapter since it was loaded; None if any was."""
        return None if self.adapter_slot is None else self.adapter_slot.applied()

    def check_publication(self, manifest: Manifest, payload: Sequence[Any]) -> str | None:
        """Fetch and check a publication; stage it for `load_publication`.

        `payload`: data that the transport's receiver needs beside the manifest. Returns the reason of a refusal, or
        None. The reason is an `Interruption` if the publication itself has no fault.
        """
        self.staged_publication = None
        try:
            weights.check_expected(manifest, self._expected())
            self.staged_publication = dict(self._receiver(manifest.transport).fetch(manifest, payload))
        except TransferInterruptedError as interruption:
            return Interruption(interruption)
        except RunError as refusal:
            return str(refusal)
        return None

    def load_publication(self, changed: float) -> str | None:
        """Load the publication that `check_publication` staged; return a fault of the model afterwards, or None.

        `changed` is the fraction of matrices that differ from those in use.
        """
        staged, self.staged_publication = self.staged_publication, None
        if staged is None:
            raise RuntimeError("load_publication was called without a publication that passed check_publication")
        self.loads += 1
        if self.loads % GIVE_BACK_EVERY == 0:
            give_back()
        if self.adapter_slot is not None:
            return self.adapter_slot.put(staged)
        # Use vLLM's own reload, layer by layer: on CPU a linear layer's weight is stored repacked, and loading into it
        # directly fails halfway.
        if self.loaded_weights is None:
            self.loaded_weights = LoadedWeights(self.model_runner.get_model(), self._frozen())
        with torch.inference_mode():
            with self.loaded_weights.reloading() as taken:
                self.reload_weights(weights_iterator=iter(staged.items()))  # type: ignore[attr-defined]
            self._rebuild_tied_head()
            return self.loaded_weights.verdict(taken, staged, changed=changed)

    def _frozen(self) -> str | None:
        """Return the prefix of layers that no publication changes: those of a mixture's reference."""
        settings = settings_of(self.vllm_config.model_config.hf_config)
        return weights.REFERENCE_PREFIX if settings and not settings["published_reference"] else None

    def _receiver(self, transport: str) -> Receiver:
        made = self.publication_receivers = self.publication_receivers or {}
        if transport not in made:
            made[transport] = receiver_of(transport, torch.device(self.device), worker=self.rank)
        return made[transport]

    def _expected(self) -> dict[str, tuple[weights.Shape, str]]:
        if self.expected_publication is None:
            model_config = self.vllm_config.model_config
            with_reference = settings_of(model_config.hf_config).get("published_reference", False)
            # A separate worker has built vLLM's model before; vLLM's changes to transformers' classes need the config.
            with set_current_vllm_config(self.vllm_config):
                self.expected_publication = weights.expected_tensors(model_config.model, with_reference=with_reference)
        return self.expected_publication

    def _rebuild_tied_head(self) -> None:
        """Repack the layers that the reload skips: a tied model's output projection and, on CPU, experts.

        No tensor is published for a tied projection, so the reload would keep the packed old embedding: silently wrong
        log-probs. vLLM packs experts for its CPU kernel at the first load only, and would then run unpacked ones.
        """
        for module in self.model_runner.get_model().modules() if current_platform.is_cpu() else ():
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(module)
        model_config = self.vllm_config.model_config
        tied = getattr(model_config.hf_text_config, "tie_word_embeddings", False)
        # If the files repeat a tied projection, vLLM clears the config's flag, but still ties the weights later.
        if not (tied or weights.is_tied(model_config.model)):
            return
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
