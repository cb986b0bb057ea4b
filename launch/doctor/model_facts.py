"""Model sizes, read from `config.json` and the headers of safetensors files. Loads no weights.

Must not import anything heavy; `huggingface_hub` only if a hub name has to be looked up in the local cache.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.data.rows import HUB_NAME
from actors.errors import UsageError
from actors.foreign.documents import read_object
from actors.foreign.tensor_files import read_header, weight_files
from actors.hub import require_no_adapter
from actors.settings import WORLD

_GATED = ("silu", "swish", "gelu_pytorch_tanh")
"""Activations of gated MLPs: Llama, Qwen, Mistral, Phi-3, OLMo 2, Gemma. Others (GPT-2, GPT-NeoX) have none."""
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The dimensions of a model that decide its memory."""

    parameters: int  # elements of all weights; tied weights count once
    layers: int
    hidden: int
    kv_heads: int
    head_size: int
    vocabulary: int
    heads: int = 0  # query heads; 0 if unknown
    intermediate: int = 0
    """Hidden units of a layer's MLP; 0 if unknown."""
    gated: bool = True  # whether the MLP multiplies two branches, as SwiGLU does


WORLD_POLICY = ModelFacts(1_331_904, 3, 192, 6, 32, vocabulary=18, heads=6, intermediate=512)
"""The embedded world's policy (learner/world/policy.py). It has no files until the run has trained it."""


def is_hub_name(path: str) -> bool:
    """Return whether `path` could be a name on the Hugging Face hub and does not exist on this machine."""
    return not Path(path).exists() and not path.startswith((".", "/", "~")) and HUB_NAME.fullmatch(path) is not None


def local_directory(path: str) -> Path | None:
    """Find a model on this machine: the directory `path`, or the cached copy of a hub name. Uses no network."""
    if Path(path).is_dir():
        return Path(path)
    if not is_hub_name(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def read_model(path: str) -> ModelFacts | None:
    """Read the size of a model: a directory, a hub name, or `world`. None if it is not on this machine.

    Raises ValueError, naming the file, if its files are incomplete or unreadable, UsageError for an adapter.
    """
    if path == WORLD:
        return WORLD_POLICY
    directory = local_directory(path)
    if directory is None:
        return None
    require_no_adapter(directory)
    return facts_of(_json(directory / "config.json"), count_parameters(directory))


def known_vocabulary(path: str) -> int | None:
    """Count the rows of a model's vocabulary; None if it is not on this machine, or its files cannot be read."""
    with contextlib.suppress(ValueError, UsageError):
        model = read_model(path)
        return None if model is None else model.vocabulary
    return None


def facts_of(config: Mapping[str, Any], parameters: int) -> ModelFacts:
    """Find sizes in a `config.json`, by the names of several architectures. Raises ValueError if one is missing."""
    section = config.get("text_config")
    text = section if isinstance(section, dict) and section else config
    heads = _first(text, "num_attention_heads", "n_head", "num_heads")
    hidden = _first(text, "hidden_size", "n_embd", "d_model")
    return ModelFacts(
        parameters=parameters,
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        kv_heads=_whole(text, "num_key_value_heads") or heads,
        head_size=_whole(text, "head_dim") or hidden // heads,
        vocabulary=_first(text, "vocab_size"),
        heads=heads,
        intermediate=_intermediate(text) or 4 * hidden,
        gated=(text.get("hidden_act") or text.get("hidden_activation")) in _GATED,
    )


def _intermediate(text: Mapping[str, Any]) -> int:
    """Return the width of the MLP; 0 if the config leaves it to its class."""
    return next(filter(None, (_whole(text, name) for name in ("intermediate_size", "n_inner", "ffn_dim"))), 0)


def count_parameters(directory: Path) -> int:
    """Count the elements of all tensors in a directory's safetensors files; raises ValueError as `read_model` does."""
    try:
        files = weight_files(directory)
        elements = [math.prod(entry["shape"]) for file in files for entry in read_header(file).values()]
    except UsageError as error:
        raise ValueError(str(error)) from None
    if not files:
        raise ValueError(f"{directory} holds no .safetensors file")
    return sum(elements)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if size := _whole(config, name):
            return size
    given = [f"{config[name]!r} as {name}; allowed: integer >= 1" for name in names if config.get(name) is not None]
    raise ValueError(f"config.json has {given[0] if given else 'no ' + ' or '.join(names)}")


def _whole(config: Mapping[str, Any], name: str) -> int:
    """Return a size; 0 if there is none, or something that is no size."""
    value = config.get(name)
    return value if type(value) is int and value > 0 else 0
