"""Faults of a reload that log-probs in bfloat16 cannot show, on layers that pack their weights as an engine's do.

`test_engine.py` puts such faults into real engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.generation.proof import loaded_weights
from actors.generation.proof.loaded_weights import LoadedWeights

Kernel = Callable[[Tensor, Tensor], Tensor]


def exact(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.linear(x, weight)


def of_ten_bits(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply as tensor cores do in TF32: float32 operands keep 10 bits of their fraction."""
    return exact(x, (weight.view(torch.int32) & ~0x1FFF).view(torch.float32))


class Packing:
    """How a layer keeps its weight: packed once, for a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.packed: Tensor

    def process_weights_after_loading(self, layer: Any) -> None:
        self.packed = layer.weight.detach().clone()

    def apply(self, layer: Any, x: Tensor) -> Tensor:
        return self.kernel(x, self.packed)


class Layer(nn.Module):
    def __init__(self, weight: Tensor, kernel: Kernel = exact) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method = Packing(kernel)
        self.quant_method.process_weights_after_loading(self)

    def reload(self, weight: Tensor) -> None:
        self.weight.data.copy_(weight)
        self.quant_method.process_weights_after_loading(self)


@pytest.fixture(autouse=True)
def layers_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_weights, "_multiplies", lambda module: isinstance(module, Layer))


def matrix(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(40, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step(weight: Tensor) -> Tensor:
    """Change one weight in thirty by its last bit, as one update at a learning rate of 5e-7 does."""
    bits = weight.clone().view(torch.int16)
    bits.view(-1)[::30] += 1
    return bits.view(weight.dtype)


class Model(nn.Module):
    """Two layers, a head that is tied to the second, and a norm."""

    def __init__(self, kernel: Kernel = exact, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.up, self.embed = Layer(matrix(1, dtype), kernel), Layer(matrix(2, dtype), kernel)
        self.head = Layer(matrix(2, dtype), kernel)
        self.head.weight = self.embed.weight
        self.norm = nn.Parameter(torch.ones(8, dtype=dtype), requires_grad=False)
        self.tensors = {"up": self.up.weight.clone(), "embed": self.embed.weight.clone(), "norm": self.norm.clone()}

    def next(self) -> dict[str, Tensor]:
        self.tensors = {name: step(tensor) for name, tensor in self.tensors.items()}
        return self.tensors

    def reload(self, tensors: dict[str, Tensor]) -> None:
        for name in ("up", "embed"):
            if name in tensors:
                getattr(self, name).reload(tensors[name])
        self.head.quant_method.process_weights_after_loading(self.head)
        self.norm.data.copy_(tensors["norm"])


def reload(model: Model, proof: LoadedWeights, tensors: dict[str, Tensor], fault: Any = None) -> str | None:
    with proof.reloading() as taken:
        model.reload(tensors)
    if fault is not None:
        fault()
    return proof.verdict(taken, tensors, changed=1.0)


def test_honest_reloads_are_accepted_and_leave_the_layers_as_they_were():
    model = Model()
    proof = LoadedWeights(model)
    assert [reload(model, proof, model.next()) for _ in range(3)] == [None] * 3
    assert "process_weights_after_loading" not in vars(model.up.quant_method)


def test_a_layer_that_keeps_the_version_before_is_named():
    model = Model()
    proof = LoadedWeights(model)
    reload(model, proof, model.next())
    stale = model.up.quant_method.packed
    refusal = reload(model, proof, model.next(), lambda: setattr(model.up.quant_method, "packed", stale))
    assert refusal == "layer up does not compute with the weights that were loaded into it"


def test_a_stale_tied_head_is_found_in_the_first_publication_too():
    model = Model()
    stale = model.head.quant_method.packed
    refusal = reload(
        model, LoadedWeights(model), model.next(), lambda: setattr(model.head.quant_method, "packed", stale)
    )
    assert refusal == "layer head does not compute with the weights that were loaded into it"


def test_a_layer_that_was_not_loaded_is_named():
    model = Model()
    tensors = model.next()
    del tensors["up"]
    assert reload(model, LoadedWeights(model), tensors) == "layer up was not loaded"


def test_a_frozen_part_needs_no_loading():
    model = Model()
    tensors = model.next()
    del tensors["up"]
    assert reload(model, LoadedWeights(model, frozen="up"), tensors) is None


def test_the_version_before_loaded_again_is_refused():
    model = Model()
    proof = LoadedWeights(model)
    tensors = model.next()
    assert reload(model, proof, tensors) is None
    assert "no layer's weights changed" in str(reload(model, proof, tensors))
    with proof.reloading() as taken:
        model.reload(tensors)
    assert proof.verdict(taken, tensors, changed=0.5) is None  # perhaps too few changed for the sample


def test_a_norm_that_is_not_the_published_one_is_named_unless_the_engine_keeps_it_in_another_form():
    model = Model()
    proof = LoadedWeights(model)
    assert reload(model, proof, model.next()) is None
    assert reload(model, proof, model.next(), lambda: model.norm.mul_(1.02)) == "norm is not the published one"
    other = Model()
    proof = LoadedWeights(other)
    assert [reload(other, proof, other.next(), lambda: other.norm.add_(1.0)) for _ in range(2)] == [None, None]


def test_float32_kernels_of_fewer_bits_are_accepted_and_gross_differences_are_not():
    model = Model(of_ten_bits, torch.float32)
    proof = LoadedWeights(model)
    tensors = model.tensors
    assert reload(model, proof, tensors) is None
    refusal = reload(
        model, proof, {name: 1.5 * tensor for name, tensor in tensors.items()},
        lambda: setattr(model.up.quant_method, "packed", tensors["up"]),
    )  # fmt: skip
    assert refusal == "layer up does not compute with the weights that were loaded into it"
