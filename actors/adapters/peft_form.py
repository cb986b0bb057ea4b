"""Put adapters in peft's form into a model, list their tensors by peft's names, describe them for peft and engines.

Engines derive from a base directory alone what a learner of it must publish. Must not know ranks or engines.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.adapters.config import ALL_LINEAR, LoraConfig
from actors.errors import UsageError
from actors.hub import Shape, listed, quiet, read_config

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before each name in peft's files."""
_NAME = "default"  # of the only adapter
_PARTS = f".lora_A.{_NAME}.weight", f".lora_B.{_NAME}.weight"
_BASE_WEIGHT = ".base_layer.weight"


def adapt(model: Any, lora: LoraConfig, base: str = "", whole: str | None = None) -> None:
    """Freeze `model`, a causal language model of transformers, and put adapters into its linear layers.

    B starts as zeros, so the model's outputs do not change. A comes from torch's random state. `base`: directory or
    hub name under which others find the base of saved adapters. `whole`: name of a layer that is trained as it is.
    Raises UsageError if a name in `lora.targets` names no linear layer; heads do not count.
    """
    from peft import LoraConfig as PeftConfig
    from peft import TaskType, inject_adapter_in_model

    names = [name for name in linear_layers(model) if name != whole]
    targets = names if lora.targets == ALL_LINEAR else list(lora.targets)
    unknown = [name for name in targets if name not in names]
    if unknown or not names:
        raise UsageError(
            f"lora.targets names {listed(unknown)}, but the linear layers of {type(model).__name__} beside its head "
            f"are {', '.join(names) or 'none'}; name some of these, or all-linear"
        )
    config = PeftConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,  # two passes of one policy must not differ
        bias="none",
    )
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, _NAME)
    if whole is not None:
        getattr(model, whole).requires_grad_(True)


@contextlib.contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Turn the adapters off within the context, so that `model` computes as its base does."""
    from peft.tuners.lora import LoraLayer

    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in adapted:
        # Its `enable_adapters` would also freeze the adapters, whose gradients are being gathered.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in adapted:
            layer._disable_adapters = False


def linear_layers(model: Any) -> list[str]:
    """Return the last parts of the names of the model's linear layers, without the head."""
    import torch

    head = model.get_output_embeddings()
    named = ((name, each) for name, each in model.named_modules() if isinstance(each, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name, each in named if each is not head and "lora_" not in name})


def tensors(model: Any) -> dict[str, Any]:
    """Return the parameters of the adapters of `model` by the names that peft gives them in its files."""
    named = model.named_parameters()
    return {PREFIX + name.replace(f".{_NAME}.", "."): each for name, each in named if f".{_NAME}." in name}


def load(model: Any, given: Mapping[str, Any]) -> None:
    """Copy tensors, by peft's names, into the adapters of `model`. Raises UsageError unless names and shapes match."""
    import torch

    own = tensors(model)
    found = {name: tuple(each.shape) for name, each in given.items()}
    wanted = {name: tuple(each.shape) for name, each in own.items()}
    if found != wanted:
        name = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise UsageError(
            f"the adapter has {name!r} as {found.get(name, 'nothing')} where the model has {wanted.get(name, 'none')}; "
            "use the base that it was trained on"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def is_adapted(model: Any) -> bool:
    """Return whether `adapt` was called with `model`."""
    return hasattr(model, "peft_config")


def units(names: Iterable[str]) -> list[list[str]]:
    """Group the names of an adapted model's tensors: a weight with its A and B, every other by itself."""
    groups: dict[str, list[str]] = {}
    for name in names:
        owner = next((name.partition(mark)[0] + ".weight" for mark in (*_PARTS, _BASE_WEIGHT) if mark in name), name)
        groups.setdefault(owner, []).append(name)
    return list(groups.values())


def merged(model: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors of `model`, by its own names, with the adapters merged into the base.

    `held` holds whole `units`. W + (alpha / rank) B A is computed in float32 and rounded to the dtype of W.
    """
    if not is_adapted(model):
        return dict(held)
    config = model.peft_config[_NAME]
    result = {}
    for name, tensor in held.items():
        if any(part in name for part in _PARTS):
            continue
        layer, is_weight, _ = name.partition(_BASE_WEIGHT)
        factors = [held[layer + part] for part in _PARTS if layer + part in held] if is_weight else []
        if factors:
            a, b = (factor.float() for factor in factors)
            tensor = (tensor.float() + config.lora_alpha / config.r * (b @ a)).to(tensor.dtype)
        result[name.replace(".base_layer.", ".")] = tensor
    return result


def described(model: Any) -> str:
    """Return the text of peft's `adapter_config.json` for the adapters in `model`."""
    fields = model.peft_config[_NAME].to_dict() | {"inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


@functools.cache
def _outline(model_dir: str, settings: str) -> dict[str, Shape]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(read_config(model_dir), trust_remote_code=False)
        adapt(model, LoraConfig.model_validate_json(settings))
    return {name: tuple(each.shape) for name, each in tensors(model).items()}


def outline(model_dir: str | Path, lora: LoraConfig) -> dict[str, Shape]:
    """Return names and shapes of the adapter tensors that a learner of this model directory publishes.

    Reads `config.json` alone. Engines call this before vLLM builds its model, because vLLM changes transformers'
    classes for some architectures. Raises UsageError as `adapt`.
    """
    return dict(_outline(str(model_dir), lora.model_dump_json(include={"rank", "targets"})))
