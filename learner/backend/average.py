"""An exponential moving average of a policy's weights, usable as a model. Must not depend on ranks."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from actors.adapters.peft_form import merged
from actors.errors import UsageError
from actors.hub import unique_tensors
from learner.tensors.logprobs import PolicyWithLogProbs

AVERAGE = "average.safetensors"


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
        path = directory / AVERAGE
        if not path.is_file():
            raise UsageError(
                f"checkpoint file {path} is missing: the checkpoint was written without learner.loss.opponent.kind "
                "ema; resume with the opponent it was written with, or start a new run from its model directory"
            )
        for name, tensor in load_file(path).items():
            self._weights[name].copy_(tensor)
        for name, own in unique_tensors(self.model.model).items():
            own.copy_(self._weights[name])
