"""A model for all ranks from one reading of its files: rank 0 loads it, the others build it without weights.

`sharded.py` then gives every rank rank 0's values, one tensor at a time under ZeRO-3. So host memory holds one model,
not one for each rank, and the files are read once.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM

from actors.errors import RunError, UsageError
from actors.hub import attention_of, read_config
from learner.backend.collective import gather
from learner.backend.models import load_policy
from learner.config import TrainerConfig
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.sequence_groups import split_sequences
from learner.tensors.shared_prompts import adopt

M = TypeVar("M", bound=nn.Module)


def load_for_ranks(
    directory: Path,
    config: TrainerConfig,
    temperature: float = 1.0,
    check: Callable[[PolicyWithLogProbs], None] | None = None,
    head_dtype: str = "model",
) -> PolicyWithLogProbs:
    """Load a policy on rank 0's CPU; elsewhere return it with weights of no meaning. Collective.

    `check` is called with the loaded policy, and may raise. `ShardedModel` and `frozen` distribute the weights. Raises
    UsageError on every rank if rank 0 cannot load it, another cannot build it, or ranks cannot split its sequences.
    """

    def load() -> PolicyWithLogProbs:
        policy = load_policy(directory, config.dtype, config.logprob_chunk, temperature, head_dtype)
        if check is not None:
            check(policy)
        return policy

    def build() -> PolicyWithLogProbs:
        model = without_weights(AutoModelForCausalLM, directory, config.dtype)
        adopt(model)
        return PolicyWithLogProbs(model, config.logprob_chunk, temperature, head_dtype)

    policy = read_once(directory, load, build)
    if dist.is_initialized():
        policy.shares_prompts = gather(policy.shares_prompts)[0]
    split_sequences(policy, config.sequence_parallel, str(directory))
    return policy


def read_once(directory: Path, load: Callable[[], M], build: Callable[[], M]) -> M:
    """Return `load()` on rank 0 and `build()` elsewhere. Collective.

    Raises on every rank if it raises on any: there its own error, elsewhere UsageError with that text.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return load()
    model, error = None, None
    try:
        model = load() if dist.get_rank() == 0 else build()
    except Exception as problem:  # the other ranks wait: they must hear of whatever it is
        error = problem
    answers = gather((None if error is None else str(error), None if model is None else _layout(model)))
    if error is not None:
        raise error
    failed = next((text for text, _ in answers if text is not None), None)
    if model is None or failed is not None:
        raise UsageError(failed or f"model {directory} cannot be loaded")
    if len({layout for _, layout in answers}) > 1:
        raise RunError(
            f"the ranks built different models of {directory}; install the same version of transformers on every host "
            "and give each the same directory"
        )
    return model


def without_weights(model_class: Any, directory: Path, dtype: str, **fields: Any) -> Any:
    """Build a model of an auto class; memory for its weights is reserved, and not used before it is written.

    `fields` replace those of the directory's configuration. Raises UsageError if it cannot be built.
    """
    try:
        settings = read_config(directory)
        for name, value in fields.items():
            setattr(settings, name, value)
        options = {"dtype": getattr(torch, dtype), "trust_remote_code": False, **attention_of(settings)}
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = model_class.from_config(settings, **options)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"model {directory} cannot be built: {error}; give the directory of a Hugging Face model"
        ) from error
    model.to_empty(device="cpu")
    model.tie_weights()  # undone by `to_empty`
    return model.eval()


def _layout(model: nn.Module) -> str:
    """Hash names, shapes and dtypes of parameters and buffers, in the order in which they are distributed."""
    named = [*model.named_parameters(), *model.named_buffers()]
    listed = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in named]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
