"""Hugging Face model directories: reading a causal language model, and writing one back that others load as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer

from actors.errors import UsageError
from actors.hub import require_safetensors
from learner.tensors.logprobs import PolicyWithLogProbs

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")

DPO_FILE = "dpo.json"
"""In a model directory of `offbeat dpo`: what it was trained against. It says nothing of models trained from there."""


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """The causal language model of `directory` on the CPU, in evaluation mode, so without dropout.

    `dtype` is `float32` or `bfloat16`. Raises UsageError when it cannot be loaded.
    """
    require_safetensors(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"model {directory} cannot be loaded: {error}; give a causal language model's directory"
        ) from error
    return model.eval()


def log_prob_tolerance(dtype: str) -> float:
    """Return the rounding (nats) to expect between two ways to compute one log-prob."""
    return 1e-3 if dtype == "float32" else 0.25


def load_policy(directory: Path, dtype: str, chunk: int = 512, temperature: float = 1.0) -> PolicyWithLogProbs:
    """Load a model as a function from tokens to log-probs, and check it against the model's own logits.

    Raises UsageError if it cannot be loaded or has no supported architecture.
    """
    policy = PolicyWithLogProbs(load_model(directory, dtype), chunk, temperature)
    policy.check(log_prob_tolerance(dtype))
    return policy


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turns on gradient checkpointing while dropout stays off.

    transformers recomputes only layers in training mode, so the layers alone are switched, not what is inside them, and
    their own dropout rates are set to 0.
    """
    # Re-entrant, because under ZeRO-3 the other kind finds weights of another shape when it recomputes.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once under their first name: what a checkpoint holds."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def in_parts(named: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Splits named tensors, in order, into runs that end once they reach `limit` elements."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if size >= limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += getattr(tensor, "ds_numel", tensor.numel())  # a ZeRO-3 partition knows the size of the whole
    return parts


def checkpoint_names(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names and layout that `save_pretrained` writes; some architectures use others in memory."""
    return revert_weight_conversion(model, state)


def write_model(directory: Path, model: PreTrainedModel, state: dict[str, Tensor], source: Path) -> None:
    """Writes `state` (the model's own names, CPU) and the configuration, and copies the tokenizer of `source`.

    Raises OSError when the disk refuses.
    """
    model.save_pretrained(directory, state_dict=state)
    for path in source.iterdir():
        # Whatever is not weights and was not just written belongs to the tokenizer, whichever kind it is.
        other = path.name.endswith(_WEIGHT_SUFFIXES) or path.name == DPO_FILE
        if path.is_file() and not other and not (directory / path.name).exists():
            shutil.copyfile(path, directory / path.name)


def replace_directory(stage: Path, final: Path) -> None:
    """Puts `stage` in place of `final`, so that no reader sees half a directory. Raises OSError."""
    if not final.exists():
        stage.rename(final)
        return
    old = final.with_name(f".tmp-replaced-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    final.rename(old)
    stage.rename(final)
    shutil.rmtree(old, ignore_errors=True)
