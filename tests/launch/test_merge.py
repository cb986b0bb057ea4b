"""`offbeat merge` against peft's own merging, and what it refuses."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors import world
from actors.errors import UsageError
from launch.merge import run_merge
from launch.verify import run_verify
from learner.world.policy import TINY, build_policy

IDS = torch.arange(1, 9)[None]


@pytest.fixture
def adapter(tmp_path):
    """An adapter as peft writes it, and its base."""
    torch.manual_seed(0)
    build_policy(TINY).save_pretrained(tmp_path / "base")
    world.tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = PeftConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_the_model_is_the_one_that_the_adapter_makes_of_its_base(adapter, tmp_path, capsys):
    directory, model = adapter
    assert run_merge(directory, tmp_path / "whole") == 0
    assert capsys.readouterr().out == f"{directory} merged into {tmp_path / 'base'}: {tmp_path / 'whole'}\n"
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(whole(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(whole(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=0.1)
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").vocab_size == 18
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    assert run_verify(tmp_path / "whole") == 0


def test_the_base_can_have_moved(adapter, tmp_path):
    directory, model = adapter
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="base' does not exist"):
        run_merge(directory, tmp_path / "whole")
    run_merge(directory, tmp_path / "whole", base=str(tmp_path / "elsewhere"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(whole(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


def test_nothing_is_written_where_something_is(adapter, tmp_path):
    (tmp_path / "whole").mkdir()
    with pytest.raises(UsageError, match="whole exists; give a directory that does not"):
        run_merge(adapter[0], tmp_path / "whole")


def test_a_directory_without_adapter_is_refused(adapter, tmp_path):
    with pytest.raises(UsageError, match=r"base holds no LoRA adapter: it lacks adapter_config\.json"):
        run_merge(tmp_path / "base", tmp_path / "whole")


@pytest.mark.parametrize("field", ["use_dora", "use_rslora"])
def test_other_forms_of_adapters_are_refused_with_their_name(adapter, tmp_path, field):
    path = adapter[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: True}))
    with pytest.raises(UsageError, match=f"adapter has {field}, which offbeat merge does not know; merge it with peft"):
        run_merge(adapter[0], tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    from dataclasses import replace

    build_policy(replace(TINY, hidden=32)).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="use the base that it was trained on"):
        run_merge(adapter[0], tmp_path / "whole", base=str(tmp_path / "other"))
    assert not (tmp_path / "whole").exists()
