"""The engine's side of a publication: runs inside every vLLM worker, as its `worker_extension_cls`.

Nothing touches the model before all of a publication was checked, so a refused one leaves the old weights at work.
It must not know versions of requests, caches or the canary: those are the engine's (`engine.py`).

Methods return the text of a refusal instead of raising it, because a worker may be another process and its exceptions
do not keep their type on the way. An exception means that the worker is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from actors.errors import RunError, WeightMismatchError
from actors.generation.mixture import settings_of
from actors.generation.weights import (
    Shape,
    check_against,
    check_bits,
    check_expected,
    expected_tensors,
    is_tied,
    read_chunks,
    read_shm,
)
from actors.records import Manifest


class WeightReceiver:
    """Mixed into vLLM's worker class, which provides `model_runner`, `vllm_config`, `weight_transfer_engine` and the
    methods that reload weights."""

    staged_publication: dict[str, Tensor] | None = None
    """Checked and waiting for `load_publication`."""
    expected_publication: dict[str, tuple[Shape, str]] | None = None
    """What the model was loaded from; read once."""

    # Provided by the worker class:
    model_runner: Any
    vllm_config: Any
    weight_transfer_engine: Any

    def check_publication(self, manifest: Manifest, chunks: Sequence[Mapping[str, Any]] | None) -> str | None:
        """Reads an `shm` (`chunks` is None) or `object_store` publication and checks all of it.

        Returns:
            None when it is staged for `load_publication`, else why it was refused.
        """
        self.staged_publication = None
        try:
            check_expected(manifest, self._expected())
            tensors = read_shm(manifest) if chunks is None else read_chunks(manifest, chunks)
            check_against(manifest, tensors)
        except RunError as refusal:
            return str(refusal)
        self.staged_publication = tensors
        return None

    def load_publication(self) -> None:
        """Loads what `check_publication` staged.

        Layer by layer, through vLLM's own reload: on CPU a linear layer's weight lives repacked, and loading into it
        directly fails halfway.
        """
        staged, self.staged_publication = self.staged_publication, None
        if staged is None:
            raise RuntimeError("load_publication was called without a publication that passed check_publication")
        with torch.inference_mode():
            self.reload_weights(weights_iterator=iter(staged.items()))  # type: ignore[attr-defined]
            self._rebuild_tied_head()

    def receive_publication(self, manifest: Manifest, update: dict[str, Any]) -> str | None:
        """Takes part in an `nccl` or `ipc` transfer: checks names, shapes and dtypes before anything is touched, then
        loads through vLLM's weight transfer engine and checks every tensor's bits as it arrives.

        Not run on a GPU so far; written against vLLM 0.32's `distributed/weight_transfer`.

        Returns:
            None, or why it was refused before anything was touched.

        Raises:
            WeightMismatchError: bits differ; the model then holds a part of the new weights and must not be used.
        """
        try:
            check_expected(manifest, self._expected())
            check_update(manifest, update)
        except WeightMismatchError as refusal:
            return str(refusal)
        engine = self.weight_transfer_engine
        self.start_weight_update()  # type: ignore[attr-defined]
        loader = _CheckedLoader(engine.model, manifest)
        # The engine hands each batch of tensors to its target's `load_weights`; the worker's update call resets the
        # target only on failure, so it is put back here before vLLM finalises the reload on the real model.
        engine.set_weight_update_target(loader, engine.model_config)
        try:
            self.update_weights(update)  # type: ignore[attr-defined]
        finally:
            engine.reset_weight_update_target()
        loader.check_complete()
        self.finish_weight_update()  # type: ignore[attr-defined]
        self._rebuild_tied_head()
        return None

    def _expected(self) -> dict[str, tuple[Shape, str]]:
        if self.expected_publication is None:
            model_config = self.vllm_config.model_config
            with_reference = settings_of(model_config.hf_config).get("published_reference", False)
            self.expected_publication = expected_tensors(model_config.model, with_reference=with_reference)
        return self.expected_publication

    def _rebuild_tied_head(self) -> None:
        """Repacks a tied model's output projection. It gets no tensor of its own, so the reload would leave it with the
        packed copy of the old embedding: silently wrong log-probs."""
        model_config = self.vllm_config.model_config
        # Files that repeat a tied projection make vLLM clear the config's word, but not for long the tie.
        if not (getattr(model_config.hf_text_config, "tie_word_embeddings", False) or is_tied(model_config.model)):
            return
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


class _CheckedLoader:
    """Stands in for the model while tensors arrive: checks each one's bits, then passes it on."""

    def __init__(self, model: Any, manifest: Manifest) -> None:
        self._model = model
        self._version = manifest.version
        self._pending = {record.name: record.fingerprint for record in manifest.tensors}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self._checked(weights))

    def _checked(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        for name, tensor in weights:
            stated = self._pending.pop(name, None)
            if stated is None:
                raise WeightMismatchError(f"version {self._version}: tensor {name!r} arrived twice or unannounced")
            check_bits(self._version, name, stated, tensor)
            yield name, tensor

    def check_complete(self) -> None:
        if self._pending:
            raise WeightMismatchError(
                f"version {self._version}: tensor {next(iter(self._pending))!r} never arrived "
                f"({len(self._pending)} in all); restart this generator and publish again"
            )


def check_update(manifest: Manifest, update: Mapping[str, Any]) -> None:
    """Checks the names, shapes and dtypes that a transfer announces against the manifest.

    Raises:
        WeightMismatchError: naming the first tensor that differs.
    """
    announced = {
        name: (tuple(shape), dtype)
        for name, shape, dtype in zip(update["names"], update["shapes"], update["dtype_names"], strict=True)
    }
    declared = {record.name: (record.shape, record.dtype) for record in manifest.tensors}
    for name in declared.keys() | announced.keys():
        if announced.get(name) != declared.get(name):
            raise WeightMismatchError(
                f"version {manifest.version}: tensor {name!r} is announced as {announced.get(name)}, the manifest says "
                f"{declared.get(name)}; publish the manifest and send the tensors from the same weights"
            )
