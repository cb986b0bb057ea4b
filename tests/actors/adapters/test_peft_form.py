"""Adapters in a model, against peft's own loading, merging and naming."""

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import UsageError
from actors.hub import unique_tensors
from tests.learner.backend.ranks import make_model

LORA = LoraConfig(rank=3, alpha=6)
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture
def directory(tmp_path):
    return make_model(tmp_path / "model")


@pytest.fixture
def model(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.before = model(input_ids=IDS).logits.detach()
    peft_form.adapt(model, LORA, str(directory))
    return model


def trained(model):
    """The same model with adapters that do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in peft_form.tensors(model).values():
            tensor.normal_(std=0.3)
    return model


def test_new_adapters_change_nothing_and_alone_have_gradients(model):
    assert torch.equal(model(input_ids=IDS).logits, model.before)
    with_gradient = {id(each) for each in model.parameters() if each.requires_grad}
    assert with_gradient == {id(each) for each in peft_form.tensors(model).values()}


def test_names_are_those_of_peft_s_files(model, directory):
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    theirs = get_peft_model_state_dict(get_peft_model(base, PeftConfig(r=3, target_modules="all-linear")))
    shapes = {name: tuple(each.shape) for name, each in theirs.items()}
    assert {name: tuple(each.shape) for name, each in peft_form.tensors(model).items()} == shapes
    assert peft_form.outline(directory, LORA) == shapes


def test_without_adapters_the_model_is_its_base(model):
    trained(model)
    with peft_form.without_adapters(model):
        assert torch.equal(model(input_ids=IDS).logits, model.before)
    assert not torch.allclose(model(input_ids=IDS).logits, model.before, atol=0.1)
    assert all(each.requires_grad for each in peft_form.tensors(model).values())


def test_adapters_are_back_after_an_error(model):
    wanted = trained(model)(input_ids=IDS).logits
    with pytest.raises(ZeroDivisionError), peft_form.without_adapters(model):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=IDS).logits, wanted)


def test_merged_weights_are_a_model_without_adapters(model, directory):
    wanted = trained(model)(input_ids=IDS).logits
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    whole.load_state_dict(peft_form.merged(model, unique_tensors(model)))
    torch.testing.assert_close(whole(input_ids=IDS).logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_merged_weight_is_w_plus_scaled_b_a(model):
    name = "model.layers.0.self_attn.q_proj"
    held = dict(trained(model).named_parameters())
    w, a, b = (held[name + part] for part in (".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"))
    expected = [[w[i, j] + 2.0 * sum(b[i, k] * a[k, j] for k in range(3)) for j in range(4)] for i in range(4)]
    found = peft_form.merged(model, held)[f"{name}.weight"]
    torch.testing.assert_close(found[:4, :4], torch.tensor(expected))


def test_a_weight_and_its_factors_belong_together(model):
    units = peft_form.units(model.state_dict())
    assert sorted(name for unit in units for name in unit) == sorted(model.state_dict())
    assert {len(unit) for unit in units} == {1, 3}
    assert sum(len(unit) == 3 for unit in units) == 2 * 7  # layers, linear layers of each


def test_a_layer_can_be_left_as_it_is_and_trained_whole(directory):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1)
    peft_form.adapt(model, LORA, whole="score")
    others = {name for name, each in model.named_parameters() if each.requires_grad and "lora_" not in name}
    assert others == {"score.weight"}
    assert "score.weight" in peft_form.merged(model, unique_tensors(model))


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "nothing"], ["embed_tokens"], ["input_layernorm"]])
def test_targets_are_linear_layers_beside_the_head(directory, targets):
    model = AutoModelForCausalLM.from_pretrained(directory)
    with pytest.raises(UsageError, match=rf"lora.targets names '{targets[-1]}'.* are down_proj, gate_proj, k_proj"):
        peft_form.adapt(model, LoraConfig(targets=targets))


def test_only_the_named_layers_are_adapted(directory):
    names = peft_form.outline(directory, LoraConfig(rank=3, targets=["q_proj", "v_proj"]))
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}
    assert set(names.values()) == {(3, 32), (32, 3)}
