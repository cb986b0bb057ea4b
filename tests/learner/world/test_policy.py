"""Supervised training of the small policy: what it learns, and what it leaves on the disk."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors import world
from actors.errors import RunError, UsageError
from learner.world import policy as sft
from learner.world.exact import corpus_cross_entropy, load_policy


def train(directory, **changes):
    settings = {"updates": 30, "seed": 0, "batch": 64, "lr": 5e-3, "size": sft.TINY, **changes}
    return sft.train_sft(directory, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sft") / "policy"
    return directory, train(directory)


def weights(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


def test_the_packed_loss_and_its_gradient_are_those_of_one_row_per_response():
    torch.manual_seed(0)
    model = sft.build_policy(sft.TINY)
    prompts = np.arange(16).repeat(5)
    responses = torch.from_numpy(world.corpus_responses(prompts, np.random.default_rng(0)))
    packed = sft.packed_loss(model, responses.view(16, 5, 4))
    packed.backward()
    packed_gradient = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    total, tokens = 0.0, 0
    for prompt, response in zip(prompts, responses, strict=True):
        kept = response[response != world.PAD]
        row = torch.cat([torch.tensor(world.prompt_token_ids(prompt)), kept])
        logprobs = torch.log_softmax(model(input_ids=row[None]).logits[0], dim=-1)
        total = total - logprobs[torch.arange(3, len(row) - 1), row[4:]].sum()
        tokens += len(kept)
    plain = total / tokens
    plain.backward()
    torch.testing.assert_close(packed, plain)
    for fast, parameter in zip(packed_gradient, model.parameters(), strict=True):
        torch.testing.assert_close(fast, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "millions"), [("small", 0.33), ("medium", 1.33), ("large", 5.32)])
def test_sizes_have_the_parameters_that_their_setting_promises(size, millions):
    """Each of three layers: 4 h^2 of attention and 3 h i of the feed-forward part, without biases."""
    parameters = sum(parameter.numel() for parameter in sft.build_policy(sft.SIZES[size]).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.01)


def test_training_comes_near_the_corpus_and_reports_the_exact_loss(trained):
    """A policy that ignores its input but knows the six symbols and <eos> would have a loss of 3.2 ln 7 = 6.2 nats."""
    directory, report = trained
    assert world.corpus_entropy() == report.corpus_entropy < report.loss < report.corpus_entropy + 0.7
    assert corpus_cross_entropy(load_policy(directory)) == pytest.approx(report.loss, abs=1e-5)
    assert load_policy(directory).probabilities[:, world.INVALID].max() < 0.2


def test_more_updates_come_nearer(trained, tmp_path):
    assert train(tmp_path / "policy", updates=90).loss < trained[1].loss - 0.1


def test_the_directory_is_one_that_transformers_loads(trained):
    directory, report = trained
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == report.parameters
    assert AutoTokenizer.from_pretrained(directory)("gold west").input_ids == list(world.prompt_token_ids(15))
    generation = GenerationConfig.from_pretrained(directory)
    assert (generation.eos_token_id, generation.pad_token_id) == (world.EOS, world.PAD)


def test_an_equal_request_finds_its_model_done(trained):
    directory, report = trained
    before = (directory / "model.safetensors").stat().st_mtime_ns
    again = train(directory)
    assert again.reused
    assert not report.reused
    assert (again.loss, again.seconds) == (report.loss, report.seconds)
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_replaces_them(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    torch.manual_seed(123)
    train(first, updates=3)
    torch.manual_seed(456)
    train(second, updates=3)
    old = weights(first)
    assert all(torch.equal(old[name], tensor) for name, tensor in weights(second).items())
    assert not train(second, updates=3, seed=1).reused
    assert not torch.equal(old["lm_head.weight"], weights(second)["lm_head.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_training_leaves_the_callers_random_state_and_threads_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    train(tmp_path / "policy", updates=1, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(1), expected)


def test_a_failed_write_leaves_the_last_good_model_and_no_rubble(tmp_path, monkeypatch):
    directory = tmp_path / "policy"
    train(directory, updates=1)
    document = (directory / sft.SETTINGS_FILE).read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sft.GenerationConfig, "save_pretrained", full)
    with pytest.raises(RunError, match=r"cannot write .*policy: No space left on device; free space there, then use"):
        train(directory, updates=2)
    assert (directory / sft.SETTINGS_FILE).read_text() == document
    assert json.loads(document)["settings"]["updates"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_directory_with_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds no model of the embedded world.*give a new directory"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_that_does_not_hold_every_prompt_equally_often_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"batch 40: .*multiple of the embedded world's 16 prompts"):
        train(tmp_path / "policy", batch=40)
