"""Model sizes, read from `config.json` and the headers of safetensors files. Loads no weights.

Must not import anything heavy; `huggingface_hub` only if a hub name has to be looked up in the local cache.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.data.rows import HUB_NAME
from actors.settings import WORLD

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


WORLD_POLICY = ModelFacts(parameters=1_331_904, layers=3, hidden=192, kv_heads=6, head_size=32, vocabulary=18)
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

    Raises ValueError, naming the file, if its files are incomplete or unreadable.
    """
    if path == WORLD:
        return WORLD_POLICY
    directory = local_directory(path)
    return None if directory is None else facts_of(_json(directory / "config.json"), count_parameters(directory))


def facts_of(config: Mapping[str, Any], parameters: int) -> ModelFacts:
    """Find sizes in a `config.json`, by the names of several architectures. Raises ValueError if one is missing."""
    text = config.get("text_config") or config
    heads = _first(text, "num_attention_heads", "n_head", "num_heads")
    hidden = _first(text, "hidden_size", "n_embd", "d_model")
    return ModelFacts(
        parameters=parameters,
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=text.get("head_dim") or hidden // heads,
        vocabulary=_first(text, "vocab_size"),
    )


def count_parameters(directory: Path) -> int:
    """Count the elements of all tensors in a directory's safetensors files; raises ValueError as `read_model` does."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = [directory / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory} holds no .safetensors file")
    return sum(_elements(file) for file in files)


def _elements(file: Path) -> int:
    """Count the elements in one file. Its first eight bytes are the length of its JSON header, little-endian."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            header = json.loads(content.read(min(length, 100 << 20)))  # at most what the safetensors library reads
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} is not a JSON object")
    return loaded


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ValueError(f"config.json has no {' or '.join(names)}")
