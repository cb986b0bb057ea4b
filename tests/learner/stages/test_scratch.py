"""Tokenizers and models from nothing: lossless, repeatable, and what transformers and vLLM expect on disk."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from actors.data.text import load_tokenizer
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model, train_tokenizer

TEXTS = [
    f"Natalia sold {i} clips, then {i * 7} more; how many? The quick brown fox jumps over lazy dogs #### {i * 8}"
    for i in range(40)
]
SMALL = ScratchConfig(vocabulary=300, layers=1, heads=2, max_tokens=64)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("scratch") / "start"
    make_model(path, TEXTS, SMALL)
    return path


@settings(deadline=None)
@given(st.text(max_size=40))
def test_every_text_is_encoded_and_decoded_without_loss(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@settings(deadline=None)
@given(st.integers(0, 10**12))
def test_every_digit_is_a_token_of_its_own(tokenizer, number):
    ids = tokenizer(str(number))["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == list(str(number))


def test_what_is_frequent_is_one_token_and_the_vocabulary_has_the_wanted_size(tokenizer):
    assert len(tokenizer("clips")["input_ids"]) < 5
    assert len(tokenizer) == 300
    # 256 bytes and two special tokens are there whatever the texts say.
    assert len(train_tokenizer([], 300)) == 258


def test_the_same_texts_give_the_same_tokenizer_and_others_another(tokenizer):
    same, other = train_tokenizer(TEXTS, 300), train_tokenizer(["other texts"] * 40, 300)
    assert same.get_vocab() == tokenizer.get_vocab()
    assert other.get_vocab() != tokenizer.get_vocab()


def test_the_directory_loads_as_model_and_tokenizer(directory, tokenizer):
    model, loaded = AutoModelForCausalLM.from_pretrained(directory), load_tokenizer(str(directory))
    text = "Natalia sold 48 clips,\n äöü"
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    logits = model(input_ids=torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), len(loaded))
    assert loaded.decode(ids) == text


def test_an_engine_finds_where_answers_end_and_how_long_sequences_may_be(directory):
    config = json.loads((directory / "config.json").read_text())
    loaded = load_tokenizer(str(directory))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["eos_token_id"] == loaded.eos_token_id
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == loaded.eos_token_id
    assert config["max_position_embeddings"] == 64
    assert config["vocab_size"] == len(loaded)
    assert config["head_dim"] == 32


def test_the_seed_alone_decides_the_weights(directory, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("same", 0), ("other", 1)):
        make_model(tmp_path / name, TEXTS, SMALL.model_copy(update={"seed": seed}))
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left alone"
    first, same, other = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (directory, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_the_number_of_parameters_is_told(tmp_path):
    # Embeddings, shared with the head: 258 x 64. A layer: four 64 x 64 projections of attention, three of 64 x 192,
    # and two norms of 64; a last norm of 64.
    assert make_model(tmp_path / "m", [], SMALL) == 258 * 64 + 4 * 64 * 64 + 3 * 64 * 192 + 2 * 64 + 64
