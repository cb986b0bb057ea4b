"""The files of DeepSpeed's engine state: written whole or told, read without running code, and converted.

Must not know the model in training, or what else a checkpoint holds.
"""

import os
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn

from learner.backend.collective import error_of
from learner.backend.universal import linked, weights_only

ENGINE_TAG = "engine"
SAVED_CLASSES: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
"""Classes that DeepSpeed saves in an engine's state, beside tensors and plain values."""


class CheckpointFiles(TorchCheckpointEngine):
    """Keeps the error of a failed write, so that this rank still reaches the barriers at which the others wait.

    Reads tensors, plain values and DeepSpeed's own classes only; DeepSpeed's reader would run any code in a file.
    `adapted`: the module in training, if only its trained weights are saved.
    """

    def __init__(self, adapted: nn.Module | None = None) -> None:
        super().__init__(None)
        self.error: Exception | None = None
        self._adapted = adapted

    def save(self, state_dict: Any, path: str) -> None:
        save = super().save
        if self._adapted is not None and "module" in state_dict:
            # DeepSpeed leaves frozen weights out under their first name alone, and the head has two.
            parameters = self._adapted.named_parameters(remove_duplicate=False)
            frozen = {name for name, parameter in parameters if not parameter.requires_grad}
            kept = {name: value for name, value in state_dict["module"].items() if name not in frozen}
            state_dict = state_dict | {"module": kept}
        self.error = error_of(lambda: save(state_dict, path)) or self.error

    def load(self, path: str, map_location: Any = None) -> Any:
        with weights_only(SAVED_CLASSES):
            return torch.load(path, map_location=map_location, weights_only=True)


def convert(directory: Path, stage: Path) -> None:
    """Write the engine state in `directory` to `stage` in DeepSpeed's universal form."""
    with linked(directory, stage) as (source, target), open(os.devnull, "w") as silence:
        arguments = Namespace(
            input_folder=str(source / ENGINE_TAG), output_folder=str(target / ENGINE_TAG), num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
        )  # fmt: skip
        with redirect_stdout(silence), redirect_stderr(silence), weights_only(SAVED_CLASSES):
            ds_to_universal.main(arguments)
