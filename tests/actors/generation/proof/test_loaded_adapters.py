"""Whether layers that do not hold the adapter they were given are found: on layers cut as an engine's are.

`lora/test_slot.py` puts such faults into real engines.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actors.generation.proof.loaded_adapters import LoadedAdapters, Pair

RANK, LARGEST_RANK, INPUTS = 3, 4, 8


class Kernels:
    """The products that vLLM's kernels compute, one row of the slice after another."""

    def add_lora_linear(self, y: Tensor, x: Tensor, a: Any, b: Any, scale: float, slices: Any) -> None:
        for row in range(x.shape[0]):
            parts = [scale * (b[i][0, 0] @ (a[i][0, 0] @ x[row])) for i in range(len(slices))]
            y[row] += torch.cat(parts)


class Layer(nn.Module):
    """An adapter layer of one worker. `outputs`: rows of each slice; `inputs`: columns, both of this worker."""

    def __init__(self, outputs: list[int], inputs: int = INPUTS, tp: tuple[int, int] = (0, 1), fused: int = 1) -> None:
        super().__init__()
        self.tp_rank, self.tp_size = tp
        self.base_layer = SimpleNamespace(output_sizes=[1] * fused)
        self.lora_a_stacked = [torch.zeros(1, 1, LARGEST_RANK, inputs) for _ in outputs]
        self.lora_b_stacked = [torch.zeros(1, 1, rows, LARGEST_RANK) for rows in outputs]
        self.output_slices = tuple(outputs)
        self.punica_wrapper = Kernels()

    def put(self, number: int, a: Tensor, b: Tensor) -> None:
        self.lora_a_stacked[number][0, 0, : a.shape[0]] = a
        self.lora_b_stacked[number][0, 0, :, : b.shape[1]] = b


class Manager:
    """vLLM's as far as the proof goes: layers by name, which names each packs, and what is in the slot."""

    def __init__(self, layers: dict[str, Layer], packed: dict[str, list[str]] | None = None) -> None:
        self.model = nn.ModuleDict(layers)
        self.modules, self.packed_modules = dict(layers), packed or {}
        self.lora_index_to_id: list[int | None] = [1]

    def list_adapters(self) -> dict[int, None]:
        return {1: None}


def pair(outputs: int, inputs: int = INPUTS, seed: int = 0) -> Pair:
    random = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(RANK, inputs, generator=random), torch.randn(outputs, RANK, generator=random))


def loaded(layer: Layer, names: list[str], adapted: list[str]) -> LoadedAdapters:
    return LoadedAdapters(Manager({"layer": layer}, {"layer": names} if len(names) > 1 else None), adapted)


def test_a_layer_that_holds_its_adapter_is_taken_and_any_other_content_is_named() -> None:
    layer, one = Layer([6]), pair(6)
    layer.put(0, one.a, one.b)
    proof = loaded(layer, ["layer"], ["layer"])
    assert proof.unplaced == []
    assert proof.verdict({"layer": one}) is None
    for stacked in (layer.lora_a_stacked[0], layer.lora_b_stacked[0]):
        for place in ((0, 0, 0, 0), (0, 0, LARGEST_RANK - 1, LARGEST_RANK - 1)):  # the last is padding
            was = stacked[place].item()
            stacked[place] = was + 1e-6
            assert proof.verdict({"layer": one}) == "layer layer does not hold the adapter that was published"
            stacked[place] = was
    stacked[0, 0, 0, 0] = float("nan")
    assert proof.verdict({"layer": one}) == "layer layer does not hold the adapter that was published"


def test_a_kernel_that_leaves_the_adapter_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, one = Layer([6]), pair(6)
    layer.put(0, one.a, one.b)
    proof = loaded(layer, ["layer"], ["layer"])
    monkeypatch.setattr(Kernels, "add_lora_linear", lambda self, *args: None)
    assert proof.verdict({"layer": one}) == "layer layer does not multiply with the adapter that was published"
    none = Pair(one.a, torch.zeros_like(one.b))
    layer.put(0, none.a, none.b)
    assert proof.verdict({"layer": none}) is None, "B of zeros multiplies to nothing"


def test_slices_without_an_adapter_must_hold_zeros() -> None:
    layer, one = Layer([6, 2, 2]), pair(2, seed=1)
    layer.put(1, one.a, one.b)
    proof = loaded(layer, ["q", "k", "v"], ["k"])
    assert proof.verdict({"k": one}) is None
    layer.put(2, one.a, one.b)
    assert proof.verdict({"k": one}) == "layer layer does not hold the adapter that was published"


def test_slices_that_were_exchanged_are_found() -> None:
    layer, gate, up = Layer([6, 6]), pair(6, seed=1), pair(6, seed=2)
    proof = loaded(layer, ["gate", "up"], ["gate", "up"])
    layer.put(0, up.a, up.b)
    layer.put(1, gate.a, gate.b)
    assert proof.verdict({"gate": gate, "up": up}) == "layer gate does not hold the adapter that was published"


@pytest.mark.parametrize("rank", range(4))
def test_each_worker_must_hold_its_own_part(rank: int) -> None:
    """Of four workers: outputs in four parts, inputs in four, and two key-value heads that two workers share each."""
    columns, rows, heads = pair(8, seed=1), pair(6, seed=2), pair(4, seed=3)
    q, o, k = Layer([2], tp=(rank, 4)), Layer([6], INPUTS // 4, (rank, 4)), Layer([2], tp=(rank, 4))
    q.put(0, columns.a, columns.b[2 * rank : 2 * rank + 2])
    o.put(0, rows.a[:, 2 * rank : 2 * rank + 2], rows.b)
    k.put(0, heads.a, heads.b[:2] if rank < 2 else heads.b[2:])
    proof = LoadedAdapters(Manager({"q": q, "o": o, "k": k}), ["q", "o", "k"])
    pairs = {"q": columns, "o": rows, "k": heads}
    assert proof.verdict(pairs) is None
    wrong = (rank + 1) % 4
    q.put(0, columns.a, columns.b[2 * wrong : 2 * wrong + 2])
    assert proof.verdict(pairs) == "layer q does not hold the adapter that was published"


def test_what_has_no_place_is_listed() -> None:
    """No layer, a layer whose two outputs share one adapter, and one that workers cut inside."""
    layers = {"one": Layer([6]), "shared": Layer([3, 3]), "fused": Layer([6], tp=(0, 2), fused=2)}
    assert LoadedAdapters(Manager(layers), ["one", "none", "shared", "fused"]).unplaced == ["fused", "none", "shared"]
    whole = {"fused": Layer([6], fused=2)}
    assert LoadedAdapters(Manager(whole), ["fused"]).unplaced == []


def test_a_layer_that_the_model_does_not_run_has_no_place() -> None:
    manager = Manager({"one": Layer([6])})
    manager.modules["one"] = Layer([6])
    assert LoadedAdapters(manager, ["one"]).unplaced == ["one"]


@pytest.mark.parametrize("slots", [[None], [2]])
def test_an_adapter_that_is_not_in_the_slot_is_told(slots: list[int | None]) -> None:
    manager = Manager({"one": Layer([6])})
    manager.lora_index_to_id = slots
    proof = LoadedAdapters(manager, ["one"])
    message = f"the engine's one slot for adapters holds {slots} of [1] instead of 1"
    assert proof.absent(1) == message
