"""Weights a part at a time, in the names and shapes of the checkpoint, against transformers' conversion of them all."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from actors.hub import checkpoint_names, unique_tensors
from learner.backend import checkpoint_layout
from learner.backend.checkpoint_layout import CheckpointLayout
from tests.fakes.architectures import architecture

HRM = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
HRM |= {"vocab_size": 96, "num_layers_per_stack": 2}


def by_parts(model) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """The checkpoint, and the names of each part's own tensors."""
    layout = CheckpointLayout(model)
    parts = layout.parts()
    made = {}
    for part in parts:
        made |= {name: tensor.detach() for name, tensor in layout.convert(part).items()}
    assert {name: (t.shape, t.dtype) for name, t in made.items()} == {
        name: (t.shape, t.dtype) for name, t in layout.outline.items()
    }
    return made, [list(part) for part in parts]


@pytest.fixture
def one_group_is_one_part(monkeypatch):
    monkeypatch.setattr(checkpoint_layout, "_PART_NUMEL", 1)


def assert_whole(model, made) -> None:
    whole = checkpoint_names(model, {name: tensor.detach() for name, tensor in unique_tensors(model).items()})
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", ["llama-tied", "gpt-2", "qwen-3-moe"])
def test_a_model_that_splits_tensors_or_keeps_them_goes_tensor_by_tensor(tmp_path, name, one_group_is_one_part):
    architecture(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    made, parts = by_parts(model)
    assert_whole(model, made)
    assert [len(part) for part in parts] == [1] * len(unique_tensors(model))


def test_tensors_that_the_checkpoint_holds_as_one_go_together(tmp_path, one_group_is_one_part):
    """In memory this architecture has a projection for each of queries, keys and values; in its files they are one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("hrm_text", **HRM))
    made, parts = by_parts(model)
    assert_whole(model, made)
    assert len(made) < len(unique_tensors(model))
    assert 2 < len(parts) < len(unique_tensors(model))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == made.keys()
    assert all(torch.equal(saved[name], made[name]) for name in saved)


def test_a_model_that_no_division_suits_goes_whole(monkeypatch, one_group_is_one_part):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("hrm_text", **HRM))
    monkeypatch.setattr(checkpoint_layout, "_LAYER", checkpoint_layout.re.compile("never"))
    made, parts = by_parts(model)
    assert_whole(model, made)
    assert len(parts) == 1
