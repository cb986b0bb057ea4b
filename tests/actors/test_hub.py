"""What a model holds by its configuration, what its files hold, and what is refused where they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors import hub
from actors.errors import UsageError
from tests.fakes.architectures import ARCHITECTURES, architecture, rewrite
from tests.fakes.models import tiny_llama

MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_outline_without_weights_has_the_tensors_that_the_trained_model_saves(tmp_path: Path, name: str) -> None:
    architecture(tmp_path / "hub", name)
    outline = hub.outline(tmp_path / "hub")
    assert (outline.missing, outline.mismatched) == ([], [])
    model, missing = hub.load_complete(AutoModelForCausalLM, tmp_path / "hub", "float32")
    model.save_pretrained(tmp_path / "saved")
    assert missing == []
    assert outline.tensors == hub.file_tensors(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("llama-1", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt-2", "h.0.attn.bias"),
        ("gpt-neox", "gpt_neox.layers.0.attention.masked_bias"),
    ],
)
def test_names_in_the_files_that_the_model_does_not_load_are_listed(tmp_path: Path, name: str, unused: str) -> None:
    architecture(tmp_path, name)
    outline = hub.outline(tmp_path)
    assert unused in outline.unused
    assert not set(outline.unused) & set(outline.tensors)


def test_a_complete_model_has_nothing_unused(tmp_path: Path) -> None:
    architecture(tmp_path, "llama-3")
    assert hub.outline(tmp_path).unused == []


@pytest.mark.parametrize("model_class", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_a_missing_matrix_is_refused_by_name_with_or_without_reading_the_weights(tmp_path, model_class) -> None:
    tiny_llama(tmp_path, seed=0)
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != MATRIX})
    for check in (
        lambda: hub.load_complete(model_class, tmp_path, "float32", may_lack=("score.weight",)),
        lambda: hub.outline(tmp_path, model_class).require_complete(tmp_path, may_lack=("score.weight",)),
    ):
        with pytest.raises(UsageError, match=rf"lacks the weights '{MATRIX}' of Llama.*would be random; restore"):
            check()


def test_only_a_new_head_may_be_missing(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0)
    head = ("score.weight",)
    _, missing = hub.load_complete(AutoModelForSequenceClassification, tmp_path, "float32", may_lack=head, num_labels=1)
    assert missing == ["score.weight"]
    outline = hub.outline(tmp_path, AutoModelForSequenceClassification, num_labels=1)
    outline.require_complete(tmp_path, may_lack=head)
    assert outline.tensors["score.weight"] == ((1, 64), "float32")
    assert outline.unused == ["lm_head.weight"]
    with pytest.raises(UsageError, match=r"lacks the weights 'score\.weight' of LlamaForSequenceClassification"):
        outline.require_complete(tmp_path)


def test_a_weight_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0)
    rewrite(tmp_path, lambda tensors: tensors | {"model.norm.weight": torch.ones(63)})
    for check in (
        lambda: hub.load_complete(AutoModelForCausalLM, tmp_path, "float32"),
        lambda: hub.outline(tmp_path).require_complete(tmp_path),
    ):
        with pytest.raises(
            UsageError, match=r"'model\.norm\.weight' .* has the shape \(63,\) .* LlamaForCausalLM needs \(64,\)"
        ):
            check()


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0)
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if "layers.1" not in n})
    with pytest.raises(UsageError, match=r"'model\.layers\.1\.input_layernorm\.weight', .* and 6 more of"):
        hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")


def test_a_tied_head_may_be_repeated_but_not_differ(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0, tied=True)
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")
    assert "lm_head.weight" not in hub.outline(tmp_path).tensors
    rewrite(tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1.0})
    with pytest.raises(UsageError, match=r"ties the output projection .* two different ones; set \"tie_word_emb"):
        hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")


def test_transformers_report_is_silent_and_its_verbosity_stays(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    from transformers.utils import logging

    tiny_llama(tmp_path, seed=0)
    rewrite(tmp_path, lambda tensors: tensors | {"v_head.weight": torch.ones(1)})
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")
    assert hub.outline(tmp_path).unused == ["v_head.weight"]
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_quantised_model_is_refused_for_training(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0)
    hub.require_unquantised(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UsageError, match=r"is quantised \(fp8\), and training and weight sync need whole weights"):
        hub.require_unquantised(tmp_path)


def test_attention_scores_that_a_model_caps_are_capped_in_training_too(tmp_path: Path) -> None:
    """Torch's fused attention, which transformers chooses, ignores Gemma 2's cap."""
    architecture(tmp_path, "gemma-2")
    model, _ = hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    fused = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    tokens = torch.arange(40)[None]
    torch.testing.assert_close(model(tokens).logits, eager(tokens).logits)
    assert (fused(tokens).logits - eager(tokens).logits).abs().max() > 1e-3


def test_file_tensors_come_from_every_file_of_the_index(tmp_path: Path) -> None:
    a, b = torch.zeros(2, 3), torch.zeros(3, dtype=torch.bfloat16)
    save_file({"a": a}, tmp_path / "model-1.safetensors")
    save_file({"b": b}, tmp_path / "model-2.safetensors")
    save_file({"c": a}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.file_tensors(tmp_path) == {"a": ((2, 3), "float32"), "b": ((3,), "bfloat16")}


def test_a_directory_without_safetensors_says_how_to_get_them(tmp_path: Path) -> None:
    for read in (hub.file_tensors, hub.outline):
        with pytest.raises(UsageError, match="save_pretrained"):
            read(tmp_path)


def test_weights_without_a_known_configuration_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"holds no model that transformers can build: .*; give a Hugging Face dir"):
        hub.outline(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 8, 60], ids=["nothing", "half a length", "length", "half a header"])
def test_a_header_that_was_cut_off_is_refused_by_its_file(tmp_path: Path, left: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(6), "b": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read as safetensors"):
        hub.file_tensors(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_weights_that_were_cut_off_are_refused_by_every_loader(tmp_path: Path, size: int) -> None:
    """The safetensors library raises an error of its own, which ended `offbeat chat` with it and code 1."""
    tiny_llama(tmp_path, seed=0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read as safetensors: .*; restore it"):
        hub.load_complete(AutoModelForCausalLM, tmp_path, "float32")


@pytest.mark.parametrize("name", ["num_hidden_layers", "vocab_size"])
def test_a_configuration_without_layers_or_tokens_is_refused(tmp_path: Path, name: str) -> None:
    """`offbeat sft` trained what was left of a model with -1 layers."""
    tiny_llama(tmp_path, seed=0)
    config = json.loads((tmp_path / "config.json").read_text())
    for value in (0, -1):
        (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(UsageError, match=rf"config\.json has {value} as {name}; allowed: integer >= 1; restore"):
            hub.read_config(tmp_path)
