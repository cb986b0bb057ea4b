"""Models built without weights, as ranks other than 0 build them: given rank 0's tensors they compute the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors.errors import UsageError
from actors.judges.models.classifier import load_classifier
from learner.backend.loading import _layout, load_for_ranks, without_weights
from learner.backend.models import load_policy
from learner.config import LearnerConfig
from learner.tensors.batching import collate
from learner.tensors.logprobs import PolicyWithLogProbs

SIZES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 10_000.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", {"intermediate_size": 96, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "tied": ("Llama", {"intermediate_size": 96, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}),
    "gemma2": ("Gemma2", {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}),
    "neox": ("GPTNeoX", {"intermediate_size": 96}),
    "phi3": ("Phi3", {"intermediate_size": 96, "pad_token_id": 0}),
    "olmo2": ("Olmo2", {"intermediate_size": 96}),
    "gpt2": ("GPT2", {}),
}
SEQUENCES = [((1, 2, 3), (4, 5)), ((6, 7), (8, 9, 10, 11))]


def make_model(name: str, directory: Path) -> Path:
    import transformers

    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**SIZES, **settings)
    torch.manual_seed(1)
    classes = {"GPT2": "GPT2LMHeadModel"}
    getattr(transformers, classes.get(family, f"{family}ForCausalLM"))(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_weights_needs_only_the_tensors_of_a_loaded_one(name: str, dtype: str, tmp_path: Path) -> None:
    directory, config = make_model(name, tmp_path), LearnerConfig(dtype=dtype)
    loaded = load_policy(directory, dtype, config.logprob_chunk, 0.7)
    random_state = torch.get_rng_state()
    model = without_weights(AutoModelForCausalLM, directory, dtype)
    empty = PolicyWithLogProbs(model, config.logprob_chunk, 0.7)
    assert torch.equal(torch.get_rng_state(), random_state), "ranks would draw other numbers"
    assert _layout(empty) == _layout(loaded)
    with torch.no_grad():
        for own, given in zip(empty.parameters(), loaded.parameters(), strict=True):
            own.copy_(given)
        for own, given in zip(empty.buffers(), loaded.buffers(), strict=True):
            own.copy_(given)
        batch = collate(SEQUENCES, torch.device("cpu"))
        assert torch.equal(empty(batch), loaded(batch))


def test_a_single_process_loads_as_ever_and_its_check_may_refuse(tmp_path: Path) -> None:
    directory, seen = make_model("tied", tmp_path), []
    assert load_for_ranks(directory, LearnerConfig(dtype="float32"), check=seen.append) is seen[0]
    (directory / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="safetensors"):
        load_for_ranks(directory, LearnerConfig(dtype="float32"))


def test_a_directory_that_a_rank_cannot_build_from_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be built.*; give the directory of a Hugging Face model"):
        without_weights(AutoModelForCausalLM, tmp_path, "float32")


def test_a_preference_model_is_built_without_weights_as_it_is_loaded_with_a_new_head(tmp_path: Path) -> None:
    directory = make_model("tied", tmp_path)
    loaded, missing = load_classifier(directory, 3, "float32", new_head=True)
    assert missing == ["score.weight"]
    built = without_weights(AutoModelForSequenceClassification, directory, "float32", num_labels=3)
    assert _layout(built) == _layout(loaded)
