"""Products with the one adapter of an engine on CPU.

vLLM's CPU kernels copy the adapter for every token of a step, and apply the last adapter to tokens without one. Must
not know publications.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class OneAdapterCPU(PunicaWrapperCPU):
    """vLLM's kernels for linear layers of an engine with one slot; the metadata of a step is vLLM's own."""

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add `scale` x A^T B^T to the rows of `y` that have the adapter, in place.

        `x`: [tokens, inputs]; `y`: [tokens, outputs], the slices side by side; A: [1, 1, rank, inputs]; B:
        [1, 1, outputs of the slice, rank].
        """
        if self.no_lora:
            return
        with_adapter = (self.token_lora_indices >= 0)[:, None]
        if bool(with_adapter.all()):
            with_adapter = None
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            product = torch.nn.functional.linear(torch.nn.functional.linear(x, a[0, 0]), b[0, 0])
            if with_adapter is not None:
                product = product.masked_fill_(~with_adapter, 0.0)
            y[:, start : start + size].add_(product, alpha=scale)
            start += size
