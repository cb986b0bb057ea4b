"""Receives publications inside every vLLM worker, as its `worker_extension_cls`.

The model changes only after the whole publication was checked, so a refused one leaves the old weights in use. Must not
handle versions of requests, caches or the canary: `engine.py` does.

Methods return the text of a refusal, because a worker may be another process and exceptions lose their type on the way.
An exception means that the worker is broken.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from actors.errors import RunError, WeightMismatchError
from actors.generation import weights
from actors.generation.mixture import settings_of
from actors.records import Manifest


class WeightReceiver:
    """Mixed into vLLM's worker class, which provides the methods that reload weights."""

    staged_publication: dict[str, Tensor] | None = None  # checked, waiting for `load_publication`
    expected_publication: dict[str, tuple[weights.Shape, str]] | None = None
    """Tensors of the files that the model was loaded from; read once."""

    # Provided by the worker class:
    model_runner: Any
    vllm_config: Any
    weight_transfer_engine: Any

    def check_publication(self, manifest: Manifest, chunks: Sequence[Mapping[str, Any]] | None) -> str | None:
        """Read and check an `shm` (`chunks` is None) or `object_store` publication; stage it for `load_publication`.

        Returns why it was refused, or None.
        """
        self.staged_publication = None
        try:
            weights.check_expected(manifest, self._expected())
            tensors = weights.read_shm(manifest) if chunks is None else weights.read_chunks(manifest, chunks)
            weights.check_against(manifest, tensors)
        except RunError as refusal:
            return str(refusal)
        self.staged_publication = tensors
        return None

    def load_publication(self) -> None:
        """Load what `check_publication` staged."""
        staged, self.staged_publication = self.staged_publication, None
        if staged is None:
            raise RuntimeError("load_publication was called without a publication that passed check_publication")
        # By vLLM's own reload, layer by layer: on CPU a linear layer's weight is stored repacked, and loading into it
        # directly fails halfway.
        with torch.inference_mode():
            self.reload_weights(weights_iterator=iter(staged.items()))  # type: ignore[attr-defined]
            self._rebuild_tied_head()

    def receive_publication(self, manifest: Manifest, update: dict[str, Any]) -> str | None:
        """Receive an `nccl` or `ipc` transfer through vLLM's weight transfer engine.

        Checks names, shapes and dtypes first; returns why they were refused, or None. Checks each tensor's bits on
        arrival; raises WeightMismatchError if they differ, and the model, partly changed, must not be used.

        Written against vLLM 0.32's `distributed/weight_transfer`; untested on GPUs.
        """
        try:
            weights.check_expected(manifest, self._expected())
            _check_announced(manifest, update)
        except WeightMismatchError as refusal:
            return str(refusal)
        engine = self.weight_transfer_engine
        self.start_weight_update()  # type: ignore[attr-defined]
        loader = _CheckedLoader(engine.model, manifest)
        # The engine passes each batch of tensors to its target's `load_weights`. The worker's update call resets the
        # target only on failure, so reset it here, before vLLM finalises the reload on the real model.
        engine.set_weight_update_target(loader, engine.model_config)
        try:
            self.update_weights(update)  # type: ignore[attr-defined]
        finally:
            engine.reset_weight_update_target()
        loader.check_complete()
        self.finish_weight_update()  # type: ignore[attr-defined]
        self._rebuild_tied_head()
        return None

    def _expected(self) -> dict[str, tuple[weights.Shape, str]]:
        if self.expected_publication is None:
            model_config = self.vllm_config.model_config
            with_reference = settings_of(model_config.hf_config).get("published_reference", False)
            self.expected_publication = weights.expected_tensors(model_config.model, with_reference=with_reference)
        return self.expected_publication

    def _rebuild_tied_head(self) -> None:
        """Repack a tied model's output projection.

        No tensor is published for it, so the reload would keep the packed old embedding: silently wrong log-probs.
        """
        model_config = self.vllm_config.model_config
        tied = getattr(model_config.hf_text_config, "tie_word_embeddings", False)
        # If the files repeat a tied projection, vLLM clears the config's flag, but still ties the weights later.
        if not (tied or weights.is_tied(model_config.model)):
            return
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


class _CheckedLoader:
    """Replaces the model as target of a transfer: checks each tensor's bits, then passes it on."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        self._model = model
        self._version = manifest.version
        self._pending = {record.name: record.fingerprint for record in manifest.tensors}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self._checked(weights))

    def _checked(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in tensors:
            stated = self._pending.pop(name, None)
            if stated is None:
                raise WeightMismatchError(
                    f"version {self._version}: tensor {name!r} arrived twice or is not in the manifest; restart this "
                    "generator and publish again"
                )
            weights.check_bits(self._version, name, stated, tensor)
            yield name, tensor

    def check_complete(self) -> None:
        if self._pending:
            raise WeightMismatchError(
                f"version {self._version}: tensor {next(iter(self._pending))!r} never arrived "
                f"({len(self._pending)} in all); restart this generator and publish again"
            )


def _check_announced(manifest: Manifest, update: Mapping[str, Any]) -> None:
    """Check the names, shapes and dtypes that a transfer announces against the manifest."""
    announced = {
        name: (tuple(shape), dtype)
        for name, shape, dtype in zip(update["names"], update["shapes"], update["dtype_names"], strict=True)
    }
    declared = {record.name: (record.shape, record.dtype) for record in manifest.tensors}
    for name in declared.keys() | announced.keys():
        if announced.get(name) != declared.get(name):
            raise WeightMismatchError(
                f"version {manifest.version}: tensor {name!r} is announced as {announced.get(name)}, the manifest says "
                f"{declared.get(name)}; send the weights from which the manifest was made"
            )
