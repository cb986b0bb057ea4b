"""`offbeat merge` against peft's own merging, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "has use_dora True, which offbeat merge does not know; merge it with peft"),
        ({"use_rslora": True}, "has use_rslora True, which"),
        ({"rank_pattern": {"q_proj": 5}}, "has rank_pattern {'q_proj': 5}, which"),
        ({"layers_to_transform": 0}, "has layers_to_transform 0, which"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which"),
        ({"bias": "all", "peft_type": "IA3"}, "has bias 'all', peft_type 'IA3', which"),
        ({"r": 0}, "it has r: 0; allowed: whole numbers, r from 1 to 512 and lora_alpha from 1"),
        ({"lora_alpha": None}, "it has lora_alpha: None; allowed"),
        ({"base_model_name_or_path": None}, "names no base model; give it with --base MODEL"),
    ],
)
def test_an_adapter_of_another_form_is_refused_by_the_field_that_makes_it_so(adapter, tmp_path, fields, said):
    path = adapter[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(UsageError) as refused:
        run_merge(adapter[0], tmp_path / "whole")
    assert said in str(refused.value)
    assert not (tmp_path / "whole").exists()


def test_an_adapter_of_an_embedding_is_refused(adapter, tmp_path):
    file = adapter[0] / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file(load_file(file) | {name: torch.zeros(3, 18)}, file)
    with pytest.raises(UsageError, match=f"has a tensor {name}, which offbeat merge does not know; merge it with peft"):
        run_merge(adapter[0], tmp_path / "whole")


def test_layers_named_by_an_expression_are_those_that_the_file_holds(adapter, tmp_path):
    directory, model = adapter
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": r".*\.(q_proj|down_proj)"}))
    run_merge(directory, tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(whole(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [r".*layers\.1\.self_attn\.q_proj", ["layers.1.self_attn.q_proj"]])
def test_layers_that_the_adapter_names_and_leaves_out_stay_as_they_are(adapter, tmp_path, targets):
    directory, model = adapter
    path, file = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    kept = {name: each for name, each in load_file(file).items() if "layers.1.self_attn.q_proj" in name}
    save_file(kept, file)
    with pytest.raises(UsageError, match="use the base that it was trained on"):
        run_merge(directory, tmp_path / "whole")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": targets}))
    run_merge(directory, tmp_path / "whole")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name and "layers.1.self_attn.q_proj" not in name:
                tensor.zero_()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(whole(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_without_tensors_is_refused_as_that(adapter, tmp_path):
    save_file({}, adapter[0] / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"changes no layer: adapter_model\.safetensors holds no tensors"):
        run_merge(adapter[0], tmp_path / "whole")


def test_what_is_no_adapter_is_refused_before_torch_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"""
import sys
from pathlib import Path
from launch.cli import main
code = main(["merge", {str(tmp_path)!r}, {str(tmp_path / "whole")!r}])
assert code == 2 and not {{"torch", "transformers", "peft"}} & set(sys.modules), code
"""],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "holds no LoRA adapter: it lacks adapter_config.json" in done.stderr


def test_a_target_that_cannot_be_written_is_refused_before_the_base_is_read(adapter, tmp_path):
    (tmp_path / "file").touch()
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UsageError, match=r"cannot be written: .*file is not a writable directory; give another"):
        run_merge(adapter[0], tmp_path / "file" / "whole")


def test_an_adapter_of_another_base_is_refused(adapter, tmp_path):
    from dataclasses import replace

    build_policy(replace(TINY, hidden=32)).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="use the base that it was trained on"):
        run_merge(adapter[0], tmp_path / "whole", base=str(tmp_path / "other"))
    assert not (tmp_path / "whole").exists()
