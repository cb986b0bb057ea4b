"""Products with an adapter on CPU, against one row after another."""

import pytest
import torch

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("rows", [(1, 1, 1, 1), (0, 1, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0)])
def test_rows_with_the_adapter_get_its_product_and_the_others_stay(rows):
    """vLLM's own kernels give every row the adapter as soon as one has it."""
    from vllm.lora.layers import LoRAMapping

    from actors.generation.lora.cpu_kernels import OneAdapterCPU

    random = torch.Generator().manual_seed(0)
    x, before = torch.randn(4, 5, generator=random), torch.randn(4, 9, generator=random)
    a = [torch.randn(1, 1, 2, 5, generator=random) for _ in range(2)]
    b = [torch.randn(1, 1, size, 2, generator=random) for size in (6, 3)]
    kernels = OneAdapterCPU(64, max_batches=8, device="cpu")
    kernels.update_metadata(LoRAMapping(rows, rows, is_prefill=True), [1], 2, 96)
    y = before.clone()
    kernels.add_lora_linear(y, x, tuple(a), tuple(b), 0.5, (6, 3))
    for row, adapted in enumerate(rows):
        product = torch.cat([b[i][0, 0] @ (a[i][0, 0] @ x[row]) for i in range(2)])
        expected = before[row] + 0.5 * product if adapted else before[row]
        torch.testing.assert_close(y[row], expected)
