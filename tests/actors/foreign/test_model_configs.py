"""A config.json that parses and means nothing: a sentence wherever a model's configuration is read, nothing raw."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.errors import UsageError
from actors.generation.weights import is_tied
from actors.hub import answer_ends, check_same_architecture, outline, read_text_config, require_unquantised
from launch.doctor.model_facts import read_model

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {"model_type": ["llama"]}, {"model_type": 5}, {"model_type": "nothing"}, {"model_type": "zz", "auto_map": 5},
    {"hidden_size": "8"}, {"hidden_size": -8}, {"num_attention_heads": 0}, {"num_attention_heads": None},
    {"num_attention_heads": [2]}, {"num_hidden_layers": True}, {"vocab_size": "x"}, {"text_config": [1]},
    {"text_config": "x"}, {"rope_scaling": [1]}, {"dtype": "zz"}, {"torch_dtype": 7}, {"eos_token_id": {"a": 1}},
    {"eos_token_id": "2"}, {"quantization_config": "x"}, {"quantization_config": [1]}, {"architectures": 5},
    {"max_position_embeddings": "x"}, {"hidden_act": "nothing"}, {"num_key_value_heads": "x"}, {"head_dim": -1},
]  # fmt: skip


def _doctor(directory: Path) -> None:
    try:
        read_model(str(directory))
    except ValueError as problem:  # which the doctor reports as a finding
        raise UsageError(str(problem)) from problem


READERS: list[Callable[[Path], Any]] = [
    lambda path: read_text_config("model.path", path),
    lambda path: answer_ends(path, SimpleNamespace(eos_token_id=1)),
    outline,
    is_tied,
    _doctor,
]


@pytest.mark.parametrize("change", CHANGES, ids=json.dumps)
def test_a_configuration_of_wrong_values_is_read_or_refused_in_a_sentence(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for read in READERS:
        with contextlib.suppress(UsageError):
            read(tmp_path)


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"quantization_config": "x"}, {"dtype": "zz"}], ids=str)
def test_values_that_make_no_configuration_are_named_where_two_models_are_compared(
    change: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    for read in (require_unquantised, lambda path: check_same_architecture(path, path)):
        with pytest.raises(UsageError, match=rf"config\.json of '{tmp_path}' makes no configuration: .*; restore it"):
            read(tmp_path)
