"""Check that an engine's adapter layers hold the adapter just put into them, to the bit, and multiply with it.

vLLM cuts an adapter for tensor parallelism, scales B, pads both to its largest rank, and skips tensors without a layer.
This module finds each tensor's place when the engine starts, and reads it back after each load. Must not know
publications, requests or versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from actors.generation.proof.loaded_weights import GROSS

VECTORS = 2
"""Rows that each layer multiplies in the check."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The tensors of one adapted layer: A [rank, inputs], and B [outputs, rank] times the scaling."""

    a: Tensor
    b: Tensor


class LoadedAdapters:
    """The adapter layers of one worker's model.

    `manager`: vLLM's adapter manager; `adapted`: the layers that an adapter has pairs for, by vLLM's names.
    """

    def __init__(self, manager: Any, adapted: Iterable[str]) -> None:
        self._manager, names = manager, set(adapted)
        self._parts: dict[str, list[str | None]] = {}
        """Name in `adapted` of each slice of a layer's outputs, by layer; None if nothing is published for a slice."""
        for layer, module in manager.modules.items():
            parts = manager.packed_modules.get(layer, [layer])
            if manager.model.get_submodule(layer) is module and _is_cut_plainly(module, len(parts)):
                self._parts[layer] = [part if part in names else None for part in parts]
        self.unplaced = sorted(names.difference(*self._parts.values()))
        """Layers that this engine would not adapt, or adapts in a form that cannot be read back here."""

    def absent(self, adapter_id: int) -> str | None:
        """Return an error text if the slot does not hold this adapter; None if it does."""
        slots, found = list(self._manager.lora_index_to_id), set(self._manager.list_adapters())
        if slots != [adapter_id] or found != {adapter_id}:
            return f"the engine's one slot for adapters holds {slots} of {sorted(found)} instead of {adapter_id}"
        return None

    def verdict(self, pairs: Mapping[str, Pair]) -> str | None:
        """Return a fault of the layers; None if they are right.

        `pairs`: the tensors that they must hold, by vLLM's names. Needs kernels that apply the adapter to the first
        `VECTORS` rows.
        """
        checks: list[tuple[str, Tensor]] = []
        for layer, parts in self._parts.items():
            module = self._manager.modules[layer]
            wanted = _wanted(module, [None if part is None else pairs[part] for part in parts])
            stacked = [*module.lora_a_stacked, *module.lora_b_stacked]
            for name, held, want in zip([*parts, *parts], stacked, wanted, strict=True):
                checks.append((f"layer {name or layer} does not hold the adapter", (held[0, 0] != want).any()))
            checks.append((f"layer {layer} does not multiply with the adapter", _differs(module, wanted)))
        # One wait for the device, not one for each layer.
        flags = torch.stack([flag for _, flag in checks]).tolist() if checks else []
        wrong = [text for (text, _), flag in zip(checks, flags, strict=True) if flag]
        return f"{wrong[0]} that was published" if wrong else None


def _is_cut_plainly(module: Any, parts: int) -> bool:
    """Return whether each of `parts` has its own slice of the layer's outputs, cut equally over workers."""
    slices, base = len(getattr(module, "lora_a_stacked", ())), getattr(module, "base_layer", None)
    fused = slices == 1 and len(getattr(base, "output_sizes", ())) > 1
    return slices == parts and not (fused and module.tp_size > 1)


def _wanted(module: Any, pairs: Sequence[Pair | None]) -> list[Tensor]:
    """Return the right content of the layer's stacked tensors, all A before all B; zeros for unpublished parts."""
    wanted = []
    for stacked, own, dim in ((module.lora_a_stacked, "a", 1), (module.lora_b_stacked, "b", 0)):
        for held, pair in zip(stacked, pairs, strict=True):
            want = torch.zeros_like(held[0, 0])
            if pair is not None:
                part = _share(getattr(pair, own), dim, want, module)
                want[: part.shape[0], : part.shape[1]] = part
            wanted.append(want)
    return wanted


def _differs(module: Any, wanted: Sequence[Tensor]) -> Tensor:
    """Return whether a product with the adapter is wrong by more than rounding."""
    count, inputs = len(module.output_slices), wanted[0].shape[1]
    x = torch.randn(VECTORS, inputs, generator=torch.Generator().manual_seed(inputs)).to(wanted[0])
    actual = x.new_zeros(VECTORS, sum(module.output_slices))
    module.punica_wrapper.add_lora_linear(
        actual, x, module.lora_a_stacked, module.lora_b_stacked, 1.0, module.output_slices
    )
    expected = torch.cat([linear(linear(x, a), b) for a, b in zip(wanted[:count], wanted[count:], strict=True)], 1)
    scale = expected.float().square().mean().sqrt().clamp_min(1e-30)
    return ~((actual - expected).abs().max().float() / scale <= GROSS)  # also true for NaN


def _share(tensor: Tensor, dim: int, held: Tensor, module: Any) -> Tensor:
    """Return this worker's part of a tensor, which is cut along `dim` unless all workers hold the whole.

    With fewer parts than workers, neighbours hold the same part, as with fewer key-value heads than workers.
    """
    parts = tensor.shape[dim] // held.shape[dim]
    if parts <= 1:
        return tensor.to(held.device)
    size = held.shape[dim]
    return tensor.narrow(dim, module.tp_rank * parts // module.tp_size * size, size).to(held.device)
