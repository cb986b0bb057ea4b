"""Check that an engine computes with the weights just loaded, in every worker after each reload.

Log-probs do not show it in bfloat16: one update at the learning rates of fine-tuning moves them less than rounding
does. So each linear layer multiplies vectors that read some columns of its weight: a vector that is 1 at one input and
0 elsewhere gives that column, to the bit, whatever form the engine's kernels keep the weight in. The result must equal
the loaded column, sampled just before the engine packs the weight. A vector without zeros reads all columns at once,
up to rounding. Must not know publications, requests or versions.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COLUMNS, ROWS = 15, 64
"""Columns of each weight that are read back, and rows that are compared with those of the version before."""
GROSS = 0.25
"""Difference beyond rounding, as a fraction of the outputs' root mean square."""
WHOLLY_CHANGED = 0.9
"""Fraction of changed matrices in a publication from which on the sample must have changed somewhere."""


@dataclass(slots=True)
class _Sample:
    """Expected products and a digest of a layer's new weight, computed before the engine packs it."""

    vectors: Tensor  # [COLUMNS + 1, inputs]: one for each column, and one for all
    outputs: Tensor  # [COLUMNS + 1, outputs]
    rows: bytes  # digest of some rows

    @property
    def digest(self) -> tuple[bytes, bytes]:
        return self.rows, _digest(self.outputs)


class LoadedWeights:
    """The linear layers and vectors of one worker's model.

    `frozen`: prefix of layers that no publication holds, such as those of a reference beside the policy.
    """

    def __init__(self, model: nn.Module, frozen: str | None = None) -> None:
        self._model = model
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if _multiplies(module) and not (frozen is not None and name.startswith(frozen))
        }
        self._before: dict[str, tuple[bytes, bytes]] = {}
        self._inexact: set[str] | None = None
        """Layers of float32 whose kernels round a column, found at the first reload."""
        self._otherwise: set[str] | None = None
        """Vectors that the engine keeps in another form than published, found at the first reload."""

    @contextlib.contextmanager
    def reloading(self) -> Iterator[dict[str, _Sample]]:
        """Sample each layer's weight while the engine reloads, just before it is packed."""
        taken: dict[str, _Sample] = {}
        with contextlib.ExitStack() as stack:
            for name, layer in self._layers.items():
                stack.enter_context(_sampling(name, layer, taken))
            yield taken

    def verdict(self, taken: dict[str, _Sample], staged: Mapping[str, Tensor], *, changed: float) -> str | None:
        """Return a fault of the layers; None if they are right.

        `taken` comes from `reloading`, `staged` holds the loaded tensors, and `changed` is the fraction of their
        matrices that differ from the previous publication.
        """
        unloaded = [name for name in self._layers if name not in taken]
        for name in unloaded:
            source = self._source_of(name, taken)
            if source is None:
                return f"layer {name} was not loaded"
            taken[name] = _sample(source)
        wrong = self._wrong_layer(taken) or self._wrong_vector(staged)
        before, self._before = self._before, {name: sample.digest for name, sample in taken.items()}
        if wrong is None and changed >= WHOLLY_CHANGED and before == self._before:
            return "no layer's weights changed, although nearly all published tensors did"
        return wrong

    def _source_of(self, name: str, taken: Mapping[str, _Sample]) -> Tensor | None:
        """Return the weight of a layer that shares a loaded weight, such as a tied output projection; else None."""
        weight = getattr(self._layers[name], "weight", None)
        if weight is None or not weight.numel():
            return None
        shared = any(
            getattr(self._layers[other], "weight", None) is not None
            and self._layers[other].weight.data_ptr() == weight.data_ptr()
            for other in taken
        )
        return weight if shared else None

    def _wrong_layer(self, taken: Mapping[str, _Sample]) -> str | None:
        figures = []
        for name, sample in taken.items():
            layer = self._layers[name]
            actual, wanted = layer.quant_method.apply(layer, sample.vectors), sample.outputs
            # Kernels may treat subnormal numbers as zero.
            columns = (~((actual[:COLUMNS] - wanted[:COLUMNS]).abs() <= torch.finfo(actual.dtype).tiny)).sum()
            scale = wanted[COLUMNS].float().square().mean().sqrt().clamp_min(1e-30)
            figures.append(torch.stack([columns, (actual[COLUMNS] - wanted[COLUMNS]).abs().max().float() / scale]))
        if not figures:
            return None
        # One wait for the device, not one for each layer.
        found = dict(zip(taken, torch.stack(figures).tolist(), strict=True))
        if self._inexact is None:
            self._inexact = {
                name for name, (differs, _) in found.items() if differs and taken[name].outputs.dtype == torch.float32
            }
        for name, (differs, off) in found.items():
            if (differs and name not in self._inexact) or not off <= GROSS:  # also true for NaN
                return f"layer {name} does not compute with the weights that were loaded into it"
        return None

    def _wrong_vector(self, staged: Mapping[str, Tensor]) -> str | None:
        """Compare norms and biases, which engines keep in the published form."""
        equal = {
            name: torch.equal(parameter.to(staged[name].dtype), staged[name].to(parameter.device))
            for name, parameter in self._model.named_parameters()
            if parameter.dim() == 1 and name in staged and staged[name].shape == parameter.shape
        }
        different = {name for name, same in equal.items() if not same}
        if self._otherwise is None:
            self._otherwise = different
        wrong = sorted(different - self._otherwise)
        return f"{wrong[0]} is not the published one" if wrong else None


def _multiplies(module: nn.Module) -> bool:
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    method = getattr(module, "quant_method", None)
    return isinstance(module, LinearBase | VocabParallelEmbedding) and hasattr(method, "process_weights_after_loading")


@contextlib.contextmanager
def _sampling(name: str, layer: Any, taken: dict[str, _Sample]) -> Iterator[None]:
    """Sample the layer's weight just before the engine packs it, within the context."""
    method = layer.quant_method
    pack, own = method.process_weights_after_loading, "process_weights_after_loading" in vars(method)

    def sample_and_pack(module: Any) -> None:
        if module is layer and module.weight.dim() == 2:
            taken[name] = _sample(module.weight)
        pack(module)

    method.process_weights_after_loading = sample_and_pack
    try:
        yield
    finally:
        if own:  # several layers share the method
            method.process_weights_after_loading = pack
        else:
            del method.process_weights_after_loading


def _sample(weight: Tensor) -> _Sample:
    outputs, inputs = weight.shape
    weight, device, dtype = weight.detach(), weight.device, weight.dtype
    columns = torch.linspace(0, inputs - 1, COLUMNS).long()
    vectors = torch.zeros(COLUMNS + 1, inputs)
    vectors[torch.arange(COLUMNS), columns] = 1.0
    vectors[COLUMNS] = torch.randn(inputs, generator=torch.Generator().manual_seed(inputs))
    vectors = vectors.to(device, dtype)
    expected = torch.cat([weight[:, columns.to(device)].T, nn.functional.linear(vectors[COLUMNS:], weight)])
    rows = torch.linspace(0, outputs - 1, min(ROWS, outputs)).long()
    return _Sample(vectors, expected, _digest(weight[rows.to(device)]))


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
