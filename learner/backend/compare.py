"""Compare two models on disk bit for bit. Must not depend on runs."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """Differences between the weights of two models."""

    tensors: int  # tensor names in either model
    different: int
    """Tensors that differ in bits, dtype or shape, or exist in one model only."""
    largest_difference: float
    """Largest difference of two elements; infinite if a tensor has no counterpart of its shape."""
    tensor: str | None
    """Name of the tensor with the largest difference; None if nothing differs."""


def compare_models(first: Path, second: Path) -> WeightComparison:
    """Compare the safetensors files of two model directories. Raises OSError or safetensors' error."""
    return compare_weights(_load(first), _load(second))


def compare_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> WeightComparison:
    """Compare tensors by name."""
    names = sorted(first.keys() | second.keys())
    gaps = {name: _gap(first.get(name), second.get(name)) for name in names}
    different = {name: gap for name, gap in gaps.items() if gap is not None}
    worst = max(different, key=lambda name: different[name], default=None)
    return WeightComparison(len(names), len(different), 0.0 if worst is None else different[worst], worst)


def _gap(a: Tensor | None, b: Tensor | None) -> float | None:
    """Return the largest difference of two elements; None for identical bits."""
    if a is None or b is None or a.shape != b.shape:
        return math.inf
    if a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)):
        return None
    largest = float((a.double() - b.double()).abs().max())
    return math.inf if math.isnan(largest) else largest


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _load(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
