"""Put the one adapter of an engine worker in place between two steps, without files, and read it back.

vLLM loads adapters by path, and only if it does not know their number yet. Here the tensors come from a checked
publication, and replace the adapter that vLLM knows. Must not know manifests, transports or versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import is_moe_model, parse_fine_tuned_lora_name
from vllm.platforms import current_platform

from actors.adapters.config import LoraConfig
from actors.generation.lora.arguments import ADAPTER_ID
from actors.generation.lora.cpu_kernels import OneAdapterCPU
from actors.generation.mixture import POLICY_PREFIX, GeometricMixtureForCausalLM
from actors.generation.proof.loaded_adapters import VECTORS, LoadedAdapters, Pair
from actors.hub import Shape, listed

_ROWS = (ADAPTER_ID,) * VECTORS


class AdapterSlot:
    """The place of one adapter in a worker's model. `shapes`: tensors of each publication, by peft's names."""

    def __init__(self, model_runner: Any, lora: LoraConfig, shapes: Mapping[str, Shape]) -> None:
        self._lora, self._shapes = lora, dict(shapes)
        self._scaling = lora.alpha / lora.rank
        self._manager = model_runner.lora_manager._adapter_manager
        self._dtype = model_runner.lora_config.lora_dtype
        self._layers = {name: _place(self._manager.model, name) for name in shapes}
        """vLLM's name of each tensor's layer, and True for A or False for B, by peft's name of the tensor."""
        self._loaded = LoadedAdapters(self._manager, (layer for layer, _ in self._layers.values()))
        if current_platform.is_cpu():
            self._use_own_kernels()
        self._map_rows, self._was_applied = self._manager.set_adapter_mapping, False
        self._manager.set_adapter_mapping = self._note_and_map

    def begin(self) -> str | None:
        """Put version 0 in place, which changes no output; return why this engine cannot apply adapters, or None.

        First puts an adapter of random numbers, to see whether every tensor arrives.
        """
        if current_platform.is_cpu() and is_moe_model(self._manager.model):
            return "vLLM computes a mixture of experts beside adapters on GPUs alone"
        if self._loaded.unplaced:
            return f"vLLM applies no adapter to {listed(self._loaded.unplaced)} of this model"
        random = torch.Generator().manual_seed(0)
        numbers = {name: torch.randn(shape, generator=random) for name, shape in self._shapes.items()}
        wrong = self.put(numbers)
        return wrong or self.put({name: torch.zeros(shape) for name, shape in self._shapes.items()})

    def put(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Replace the adapter between two steps; return a fault of the layers afterwards, or None.

        `tensors`: in peft's form, of any dtype; they are not changed.
        """
        own = {}
        for name, tensor in tensors.items():
            layer, is_a = self._layers[name]
            # vLLM scales B in place, and others may read the staged memory.
            own[f"{layer}.lora_{'A' if is_a else 'B'}.weight"] = tensor.to("cpu", self._dtype, copy=True)
        targets = sorted({layer.rpartition(".")[2] for layer, _ in self._layers.values()})
        helper = PEFTHelper(r=self._lora.rank, lora_alpha=self._lora.alpha, target_modules=targets)
        model = LoRAModel.from_lora_tensors(ADAPTER_ID, own, helper, device="cpu")
        with torch.inference_mode():
            self._manager.remove_adapter(ADAPTER_ID)
            self._manager.add_adapter(model)
            self._manager.activate_adapter(ADAPTER_ID)
            if absent := self._loaded.absent(ADAPTER_ID):
                return absent
            self._map_rows(LoRAMapping(_ROWS, _ROWS, is_prefill=True))  # the next step maps its own rows
            self._was_applied = False
            return self._loaded.verdict(self._pairs(tensors))

    def applied(self) -> str | None:
        """Return an error text if no token since the last `put` was computed with the adapter; None if any was."""
        return None if self._was_applied else "the engine computed without the adapter"

    def _note_and_map(self, mapping: LoRAMapping) -> None:
        self._was_applied |= ADAPTER_ID in mapping.index_mapping
        self._map_rows(mapping)

    def _pairs(self, tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
        halves: dict[str, dict[bool, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, is_a = self._layers[name]
            cast = tensor.to(self._dtype)
            halves.setdefault(layer, {})[is_a] = cast if is_a else cast * self._scaling
        return {layer: Pair(half[True], half[False]) for layer, half in halves.items()}

    def _use_own_kernels(self) -> None:
        manager = self._manager
        kernels = OneAdapterCPU(manager.max_num_batched_tokens, manager.max_num_seqs, manager.device)
        manager.punica_wrapper_mapping = dict.fromkeys(manager.punica_wrapper_mapping, kernels)
        for module in manager.modules.values():
            module.set_mapping(kernels)


def _place(model: Any, name: str) -> tuple[str, bool]:
    """Return vLLM's name of the layer of a tensor in peft's form, and whether the tensor is A."""
    policy = model.policy if isinstance(model, GeometricMixtureForCausalLM) else model
    mapper = getattr(policy, "hf_to_vllm_mapper", None)
    layer, is_a = parse_fine_tuned_lora_name(name, None if mapper is None else mapper.get_rename_mapper())
    return (layer if policy is model else POLICY_PREFIX + layer), is_a
