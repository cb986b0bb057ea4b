"""Presets: whole, within the hardware that their names promise, and clear about what only the user can know."""

from pathlib import Path

import pytest

from actors.errors import UsageError
from actors.foreign.model_place import PRETRAINED
from launch.settings.loading import load_config, preset_names
from launch.settings.verbs import SFT, TRAIN
from tests.house import ROOT

USER_KNOWS = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm:f"]


def gpus(config):
    return (
        config.generators.count * config.generators.tensor_parallel_size * config.generators.gpus
        + config.learner.ranks * config.learner.gpus_per_rank
        + getattr(config.judging.judge, "gpus", 0.0)
    )


@pytest.mark.parametrize("preset", ["embedded", "embedded-nash-md", "embedded-bradley-terry"])
def test_an_embedded_preset_needs_nothing_and_no_gpu(preset):
    config = load_config(preset)
    assert config.model.path == "world"
    assert config.learner.gpus_per_rank == 0
    assert config.generators.dtype == config.learner.dtype == "float32"
    assert config.cluster.address == "auto", "its own Ray, or that of the job it was submitted as"


def test_the_chat_preset_trains_what_make_pretrained_brings_in_bfloat16_on_two_cores():
    config = load_config("chat")
    assert config.model.path == f"./models/{PRETRAINED}"
    assert f"PRETRAINED := models/{PRETRAINED}\n" in (ROOT / "Makefile").read_text()
    assert (config.generators.cpus, config.learner.cpus_per_rank, config.learner.gpus_per_rank) == (1, 1, 0)
    assert config.generators.dtype == config.learner.dtype == "bfloat16"
    assert config.prompts.validation_fraction == 0.25, "evaluations ask prompts that it never trains on"


@pytest.mark.parametrize(("preset", "total"), [("node-8gpu", 8), ("cluster-2node", 16)])
def test_a_gpu_preset_uses_the_gpus_that_it_promises(preset, total):
    config = load_config(preset, USER_KNOWS)
    assert gpus(config) == total
    assert config.publication.transport == "nccl"
    assert config.replay.prompts_per_update % config.learner.ranks == 0


def test_the_preset_for_one_gpu_uses_one_and_nothing_that_needs_two():
    config = load_config("gpu-1", USER_KNOWS)
    assert gpus(config) == pytest.approx(1.0)
    assert config.publication.transport == "shm"
    assert config.learner.offload_optimizer
    assert config.learner.zero_stage == 3


@pytest.mark.parametrize("preset", ["gpu-1-lora", "gpu-1-80gb"])
def test_the_presets_of_adapters_use_one_gpu_and_publish_them_alone(preset):
    config = load_config(preset, USER_KNOWS)
    assert gpus(config) == pytest.approx(1.0)
    assert config.adapter is not None
    assert config.learner.offload_weights == (preset == "gpu-1-lora")


@pytest.mark.parametrize("preset", ["gpu-1", "gpu-1-lora", "gpu-1-80gb", "node-8gpu", "cluster-2node"])
def test_a_gpu_preset_asks_for_all_that_only_the_user_knows_at_once(preset):
    with pytest.raises(UsageError) as caught:
        load_config(preset)
    for override in USER_KNOWS:
        key = override.partition("=")[0]
        assert f"{key}: missing; pass {key}=VALUE" in str(caught.value)
    assert ": 3 mistakes" in str(caught.value)


@pytest.mark.parametrize("preset", preset_names())
def test_a_run_of_a_preset_is_named_after_it(preset):
    known = {"gsm8k": ["prompts.source=/gsm8k"], "gpu-1": USER_KNOWS, "node-8gpu": USER_KNOWS}
    known |= dict.fromkeys(("cluster-2node", "gpu-1-lora", "gpu-1-80gb"), USER_KNOWS)
    assert load_config(preset, known.get(preset, [])).name == preset


def test_training_on_gsm8k_starts_from_what_fine_tuning_on_it_left_and_asks_alike():
    train, sft = (
        load_config("gsm8k", ["prompts.source=/gsm8k"]),
        load_config("gsm8k", ["data.source=/gsm8k"], SFT),
    )
    assert Path(train.model.path) == sft.directory / "final"
    assert train.prompts.template == sft.data.template
    assert train.generators.max_model_len <= sft.model.scratch.max_tokens


@pytest.mark.parametrize(("verb", "key"), [(TRAIN, "prompts.source"), (SFT, "data.source")])
def test_the_gsm8k_presets_ask_where_the_data_are(verb, key):
    with pytest.raises(UsageError, match=rf"{key}: missing; pass {key}=VALUE"):
        load_config("gsm8k", [], verb)
