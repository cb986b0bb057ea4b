"""Hugging Face model directories: load a causal language model, and write one that other tools load unchanged."""

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
"""Record of `offbeat dpo` in a model directory: reference, loss and beta. Does not apply to models trained from it."""


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """Load the causal language model of `directory` on the CPU, in evaluation mode (no dropout).

    `dtype` is `float32` or `bfloat16`. Raises UsageError if it cannot be loaded.
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
    """Turn on gradient checkpointing but keep dropout off.

    transformers recomputes only layers in training mode. So only the layers are switched to it, not the modules inside
    them, and the layers' own dropout rates are set to 0.
    """
    # Re-entrant: under ZeRO-3 the non-re-entrant variant sees weights of other shapes when it recomputes.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, as a checkpoint holds them: tied ones once, first name."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def in_parts(named: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Split named tensors, in order, into parts that end once they reach `limit` elements."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if size >= limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += getattr(tensor, "ds_numel", tensor.numel())  # ds_numel: full size of a ZeRO-3 partition
    return parts


def checkpoint_names(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` in the names and layout of `save_pretrained`, which for some architectures differ in memory."""
    return revert_weight_conversion(model, state)


def write_model(directory: Path, model: PreTrainedModel, state: dict[str, Tensor], source: Path) -> None:
    """Write `state` (in-memory names, CPU) and the configuration, copy the tokenizer of `source`. Raises OSError."""
    model.save_pretrained(directory, state_dict=state)
    for path in source.iterdir():
        # A file that is neither weights nor just written belongs to the tokenizer, of whatever kind.
        other = path.name.endswith(_WEIGHT_SUFFIXES) or path.name == DPO_FILE
        if path.is_file() and not other and not (directory / path.name).exists():
            shutil.copyfile(path, directory / path.name)
