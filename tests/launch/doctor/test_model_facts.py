"""Model sizes from file headers, against the models themselves."""

import json
from pathlib import Path

import pytest

from launch.doctor.model_facts import WORLD_POLICY, ModelFacts, count_parameters, facts_of, is_hub_name, read_model
from tests.fakes.models import tiny_llama


def test_headers_give_the_size_that_the_model_has(tmp_path: Path):
    model = tiny_llama(tmp_path, seed=0)
    assert read_model(str(tmp_path)) == ModelFacts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=2,
        hidden=64,
        kv_heads=1,
        head_size=32,
        vocabulary=96,
        heads=2,
        intermediate=128,
        gated=True,
    )


def test_tied_weights_count_once_and_shards_add_up(tmp_path: Path):
    model = tiny_llama(tmp_path, seed=0, tied=True)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(tmp_path) == expected
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "stray.safetensors").write_bytes(b"of something else")
    assert count_parameters(tmp_path) == expected


def test_the_world_s_policy_is_as_it_is_built(tmp_path: Path):
    from learner.world.policy import build_policy

    build_policy().save_pretrained(tmp_path)
    assert read_model(str(tmp_path)) == WORLD_POLICY == read_model("world")


def test_gpt2_names_its_sizes_otherwise():
    config = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
    assert facts_of(config, 1) == ModelFacts(1, 12, 768, 12, 64, 50257, heads=12, intermediate=4 * 768, gated=False)


def test_a_model_of_images_and_text_has_its_sizes_in_a_section():
    text = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9, "head_dim": 16}
    text |= {"intermediate_size": 24, "hidden_activation": "gelu_pytorch_tanh"}
    facts = facts_of({"text_config": text, "vision_config": {}}, 1)
    assert facts == ModelFacts(1, 3, 8, 2, 16, 9, heads=2, intermediate=24, gated=True)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, r"config\.json cannot be read: .*No such file"),
        ({"config.json": "{"}, r"config\.json cannot be read"),
        ({"config.json": "{}"}, r"holds no \.safetensors file"),
        ({"config.json": "{}", "model.safetensors": "short"}, r"model\.safetensors cannot be read as safetensors"),
        ({"config.json": "{}", "model.safetensors": "x" * 64}, r"model\.safetensors cannot be read as safetensors"),
    ],
)
def test_files_that_do_not_tell_are_named(tmp_path: Path, files: dict[str, str], problem: str):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_model(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ValueError, match=r"gone\.safetensors cannot be read as safetensors: .*No such file"):
        read_model(str(tmp_path))


def test_a_config_without_sizes_says_which_is_missing():
    with pytest.raises(ValueError, match="num_attention_heads or n_head"):
        facts_of({"hidden_size": 8}, 1)


def test_a_hub_name_that_is_not_cached_has_no_size_and_is_not_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", None)
    assert read_model("nobody/offbeat-test-model") is None


def test_a_cached_hub_name_is_read_from_the_cache(tmp_path: Path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    tiny_llama(snapshot, seed=0)
    facts = read_model("owner/name")
    assert facts is not None
    assert facts.hidden == 64


def test_paths_are_told_from_hub_names(tmp_path: Path):
    assert is_hub_name("owner/name")
    assert is_hub_name("gpt2")
    assert not is_hub_name(str(tmp_path))
    assert not is_hub_name("./missing")
    assert not is_hub_name("a/b/c")
