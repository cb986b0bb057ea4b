"""A frozen model in host memory: each of its modules has its weights on the device while it runs, and no longer.

So the device holds one module's weights at a time. For ZeRO 0-2; under ZeRO-3 DeepSpeed does it. Must not import
deepspeed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_WEIGHTS = "_weights_on_host"


def copied(value: Tensor, device: torch.device) -> Tensor:
    """Return `value` on `device`."""
    return value.to(device, non_blocking=True)


class _Weights:
    """One module's own parameters, and their values in host memory."""

    def __init__(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor], device: torch.device) -> None:
        self._parameters, self._values, self._device = parameters, values, device

    def bring(self, *_: Any) -> None:
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data = copied(value, self._device)

    def release(self, *_: Any) -> None:
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data = value


def keep_on_host(module: nn.Module, device: torch.device) -> nn.Module:
    """Move the weights of a frozen `module` to host memory, and let every forward pass bring them to `device`.

    A module must read no weights but its own. Page-locked memory if `device` is a GPU. Returns `module`.
    """
    values: dict[int, Tensor] = {}
    for parameter in module.parameters():  # tied ones once
        value = parameter.detach().cpu()
        values[id(parameter)] = value.pin_memory() if device.type == "cuda" else value
    for part in module.modules():
        own = list(part.parameters(recurse=False))
        if own:
            weights = _Weights(own, [values[id(parameter)] for parameter in own], device)
            weights.release()
            setattr(part, _WEIGHTS, weights)
            part.register_forward_pre_hook(weights.bring)
            part.register_forward_hook(weights.release, always_call=True)
    return module


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Keep a module's own weights on the device within the context, if they are in host memory otherwise."""
    weights: _Weights | None = getattr(module, _WEIGHTS, None)
    if weights is not None:
        weights.bring()
    try:
        yield
    finally:
        if weights is not None:
            weights.release()
