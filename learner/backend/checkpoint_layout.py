"""Convert the tensors of a model in memory to those of its checkpoint, and group those that belong together.

For some architectures the two differ in names and shapes: transformers keeps a layer's experts in one tensor, or a
projection in three. A model with adapters is saved as these alone, or with them merged in. Must not know ranks, or what
becomes of the tensors.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from actors.adapters import peft_form
from actors.hub import checkpoint_names, unique_tensors

_PART_NUMEL = 1 << 26
"""Elements of a part. Under ZeRO-3 the ranks gather one at a time, for publication or saving."""
_LAYER = re.compile(r".*?\.\d+(?=\.)")


class CheckpointLayout:
    """The layout of `model` as a whole, adapters merged in. Its weights may be sharded or on the meta device."""

    def __init__(self, model: Any) -> None:
        self._model = model
        held = {name: _outline(tensor) for name, tensor in unique_tensors(model).items()}
        self.outline: Mapping[str, Tensor] = self.convert(held)
        """Every tensor of the checkpoint by name, on the meta device; tied weights once."""
        self._groups = next(groups for groups in _groupings(held) if self._independent(held, groups))

    def parts(self) -> list[dict[str, Tensor]]:
        """Return the model's own tensors by name, in parts that `held` and `convert` take one by one."""
        return in_parts(unique_tensors(self._model), _PART_NUMEL, self._groups)

    def held(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a part under the names and in the shapes of the model in memory, without adapters."""
        return peft_form.merged(self._model, part)

    def convert(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a part in the names and shapes of the checkpoint; a tensor may share memory with the part's."""
        return checkpoint_names(self._model, self.held(part))

    def _independent(self, held: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> bool:
        """Return whether the groups, each converted by itself, make the whole checkpoint."""
        if len(groups) == 1:
            return True
        made: dict[str, Tensor] = {}
        try:
            for group in groups:
                made |= self.convert({name: held[name] for name in group})
        except Exception:  # a conversion that lacks an operand fails in any way
            return False
        return _shapes(made) == _shapes(self.outline)


class AdapterLayout:
    """The layout of a model's adapters alone, under peft's names."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.outline: Mapping[str, Tensor] = {name: _outline(each) for name, each in peft_form.tensors(model).items()}
        """See `CheckpointLayout.outline`."""

    def parts(self) -> list[dict[str, Tensor]]:
        """See `CheckpointLayout.parts`."""
        return in_parts(peft_form.tensors(self._model), _PART_NUMEL)

    def held(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the part."""
        return part

    convert = held


Form = Literal["adapter", "merged"]
Layout = CheckpointLayout | AdapterLayout


def layout_of(model: Any, form: Form) -> Layout:
    """Return the layout of a model in one of the two forms; without adapters it has only the second."""
    return AdapterLayout(model) if form == "adapter" and peft_form.is_adapted(model) else CheckpointLayout(model)


def in_parts(
    named: Mapping[str, Tensor], limit: int = _PART_NUMEL, groups: Iterable[Sequence[str]] | None = None
) -> list[dict[str, Tensor]]:
    """Split named tensors, in order, into parts that end once they reach `limit` elements; `groups` stay together."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for group in groups if groups is not None else ([name] for name in named):
        if size >= limit:
            parts.append({})
            size = 0
        parts[-1].update({name: named[name] for name in group})
        size += sum(_outline(named[name]).numel() for name in group)
    return parts


def _groupings(names: Iterable[str]) -> list[list[list[str]]]:
    """Return the ways to divide the names, the finest first: each by itself, by layer, not at all."""
    units = peft_form.units(names)
    layers: dict[str, list[str]] = {}
    for unit in units:
        layer = _LAYER.match(unit[0])
        layers.setdefault(layer[0] if layer else unit[0], []).extend(unit)
    return [units, list(layers.values()), [[name for unit in units for name in unit]]]


def _outline(tensor: Tensor) -> Tensor:
    # ds_shape: full shape of a ZeRO-3 partition.
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
