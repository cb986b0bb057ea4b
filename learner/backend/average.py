"""Averages of a policy's weights: a model of its own for opponents, and one that takes the place of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actors.adapters.peft_form import merged
from actors.errors import UsageError
from actors.hub import unique_tensors
from learner.tensors.logprobs import PolicyWithLogProbs

AVERAGE = "average.safetensors"
ANCHOR = "anchor"
"""Name of the anchor among the averages of a checkpoint."""
LAST = "average_last"
"""Name of the average over the end of a run."""


class AveragePolicy:
    """The average theta_bar <- decay theta_bar + (1 - decay) theta of a policy's weights theta.

    `model` starts as the initial average and computes with the average in its own dtype. The average itself is float32:
    (1 - decay) times a difference is mostly below the resolution of bfloat16.
    """

    def __init__(self, model: PolicyWithLogProbs, decay: float) -> None:
        self.model, self._decay = model.requires_grad_(False), decay
        self._weights = {name: tensor.detach().float() for name, tensor in unique_tensors(model.model).items()}

    @torch.no_grad()
    def update(self, policy: nn.Module) -> None:
        """Move the average towards the weights of `policy`, a model of the same class; adapters are merged in."""
        current = merged(policy, unique_tensors(policy))
        for name, own in unique_tensors(self.model.model).items():
            average = self._weights[name].lerp_(current[name].float(), 1.0 - self._decay)
            own.copy_(average)

    def save(self, directory: Path) -> None:
        """Write the float32 average into `directory`. Raises OSError or safetensors' error if the write fails."""
        save_file({name: tensor.cpu().contiguous() for name, tensor in self._weights.items()}, directory / AVERAGE)

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Load what `save` wrote. Raises UsageError if there is nothing."""
        for name, tensor in _read(directory / AVERAGE, "learner.loss.opponent.kind ema").items():
            self._weights[name].copy_(tensor)
        for name, own in unique_tensors(self.model.model).items():
            own.copy_(self._weights[name])


class AverageWeights:
    """A float32 average of the weights of `model` that are trained, to take their place for a while.

    It starts as the weights. Under ZeRO-3 each rank averages its own part. With adapters their matrices are averaged.
    `model` must be in DeepSpeed's hands already; `device` is the one of the process group.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._average = {name: held(each).detach().float().clone() for name, each in self._trained.items()}

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the average towards the current weights by `share` of the difference."""
        for name, parameter in self._trained.items():
            self._average[name].lerp_(held(parameter).float(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights, within the context. The weights come back to the bit."""
        weights = {name: held(each).data for name, each in self._trained.items()}
        self._release()
        for name, parameter in self._trained.items():
            held(parameter).data = self._average[name].to(weights[name].dtype)
        try:
            yield
        finally:
            self._release()
            for name, parameter in self._trained.items():
                held(parameter).data = weights[name]

    def _release(self) -> None:
        """Let go of whole weights that ZeRO-3 keeps gathered, so that the next pass gathers them anew."""
        for parameter in self._trained.values():
            status = getattr(parameter, "ds_status", None)
            if status is not None and status.name == "AVAILABLE":
                parameter.partition()

    @torch.no_grad()
    def adopt(self) -> None:
        """Make the average the weights, for good. The optimizer does not learn of it."""
        self._release()
        for name, parameter in self._trained.items():
            held(parameter).copy_(self._average[name])

    def whole(self) -> dict[str, Tensor]:
        """Return the average of every weight on the CPU, by the names of the model. Collective."""
        averages = ((name, each, self._average[name]) for name, each in self._trained.items())
        return {name: _gathered(each, own, self._device).cpu().contiguous() for name, each, own in averages}

    @torch.no_grad()
    def take(self, whole: Mapping[str, Tensor]) -> None:
        """Take over what `whole` returned, on any number of ranks."""
        for name, parameter in self._trained.items():
            own, values = self._average[name], whole[name].reshape(-1)
            first = own.numel() * dist.get_rank() if hasattr(parameter, "ds_id") else 0
            values = values[first : first + own.numel()].to(own)
            own.view(-1)[: values.numel()].copy_(values)


def load_average(directory: Path, name: str) -> dict[str, Tensor]:
    """Read the average `name` of an engine state. Raises UsageError if it holds none."""
    return _read(directory / f"{name}.safetensors", f"learner.{name}")


def _read(path: Path, setting: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(
            f"checkpoint file {path} is missing: the checkpoint was written without {setting}; resume with the "
            "settings it was written with, or start a new run from its model directory"
        )
    return load_file(path)


def held(parameter: Tensor) -> Tensor:
    """Return what this rank holds of `parameter`: under ZeRO-3 its part, flat and padded at the end."""
    return getattr(parameter, "ds_tensor", parameter)


def _gathered(parameter: Tensor, part: Tensor, device: torch.device) -> Tensor:
    if not hasattr(parameter, "ds_id"):
        return part
    part = part.to(device)  # from host memory, if weights are offloaded
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
