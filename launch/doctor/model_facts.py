"""What a model directory says of a model's size, read from its JSON and file headers. No weights are loaded.

Imports nothing heavy; `huggingface_hub` only where a hub name is asked for.
"""

from __future__ import annotations

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
_LARGEST_HEADER = 100 << 20
"""Bytes; what the safetensors library allows."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's size."""

    parameters: int
    """Elements of all weights, tied ones once."""
    layers: int
    hidden: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int | None
    """Tokens of the longest sequence; None where there is no limit."""


WORLD_POLICY = ModelFacts(
    parameters=1_331_904, layers=3, hidden=192, kv_heads=6, head_size=32, vocabulary=18, positions=64
)
"""The embedded world's policy (learner/world/policy.py), which does not exist before the run has trained it."""


def is_hub_name(path: str) -> bool:
    """Whether `path` is nothing on this machine, and could be a name on the Hugging Face hub."""
    return not Path(path).exists() and not path.startswith((".", "/", "~")) and HUB_NAME.fullmatch(path) is not None


def local_directory(path: str) -> Path | None:
    """Where a model is on this machine: `path` itself, or the cached copy of a hub name. None: nowhere. No network."""
    if Path(path).is_dir():
        return Path(path)
    if not is_hub_name(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def read_model(path: str) -> ModelFacts | None:
    """The size of the model `path`, a directory, hub name or `world`; None where it is not on this machine.

    Raises ValueError, saying which file, where its files do not tell.
    """
    if path == WORLD:
        return WORLD_POLICY
    directory = local_directory(path)
    return None if directory is None else facts_of(_config_of(directory), count_parameters(directory))


def facts_of(config: Mapping[str, Any], parameters: int) -> ModelFacts:
    """Sizes from the fields of a `config.json`, under the names that architectures give them.

    Raises ValueError where one that is needed is missing.
    """
    text = config.get("text_config") or config
    heads = _first(text, "num_attention_heads", "n_head", "num_heads")
    hidden = _first(text, "hidden_size", "n_embd", "d_model")
    positions = text.get("max_position_embeddings", text.get("n_positions"))
    return ModelFacts(
        parameters=parameters,
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        hidden=hidden,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=text.get("head_dim") or hidden // heads,
        vocabulary=_first(text, "vocab_size"),
        positions=positions,
    )


def count_parameters(directory: Path) -> int:
    """Elements of all tensors in the directory's safetensors files, from their headers.

    Raises ValueError where there is no such file or a header cannot be read.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = set(_json(index).get("weight_map", {}).values())
        files = [directory / name for name in sorted(names)]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{directory} holds no .safetensors file")
    return sum(_elements(file) for file in files)


def _elements(file: Path) -> int:
    """The safetensors format: eight bytes with the header's length, little-endian, then the header as JSON."""
    try:
        with file.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"{file} is no safetensors file")
            header = json.loads(content.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is no safetensors file") from None


def _config_of(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(f"{directory} has no config.json")
    return _json(path)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no JSON object")
    return loaded


def _first(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ValueError(f"config.json gives no {' or '.join(names)}")
