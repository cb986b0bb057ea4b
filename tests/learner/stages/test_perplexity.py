"""Log-perplexities against one sequence at a time without padding, and samples against the exact distribution."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import world
from actors.errors import UsageError
from learner.stages.perplexity import PerplexityModel
from learner.world.policy import TINY, build_policy

PROMPTS = [world.prompt_token_ids(index) for index in range(world.PROMPTS)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough that log-probs differ by more than rounding."""
    path = tmp_path_factory.mktemp("policy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_policy(TINY)
        for parameter in model.parameters():
            parameter.data.mul_(4.0)
    model.save_pretrained(path)
    return path


def slow(directory: Path, prompt: list[int], response: list[int]) -> float:
    """Token by token from the model's own logits, in float64."""
    model = type(build_policy(TINY)).from_pretrained(directory, dtype=torch.float64).eval()
    total = 0.0
    for end in range(len(response)):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response[:end]]])).logits[0, -1]
        total -= float(logits.log_softmax(-1)[response[end]])
    return total / len(response)


@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 8192])
def test_log_perplexities_are_those_of_one_sequence_at_a_time(directory: Path, micro_batch_tokens: int) -> None:
    generator = random.Random(1)
    sequences = [
        ([generator.randrange(18) for _ in range(generator.randint(1, 9))],
         [generator.randrange(18) for _ in range(generator.randint(1, 9))])
        for _ in range(12)
    ]  # fmt: skip
    found = PerplexityModel(directory, micro_batch_tokens=micro_batch_tokens).log_perplexities(sequences)
    expected = [slow(directory, *sequence) for sequence in sequences]
    assert found == pytest.approx(expected, abs=2e-5)
    assert np.ptp(expected) > 1.0, "a mean over the prompt, or in another order, would show"


def test_no_sequences_have_no_perplexities(directory: Path) -> None:
    assert PerplexityModel(directory).log_perplexities([]).shape == (0,)


def test_token_ids_of_another_tokenizer_are_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="token id 18 is outside the model's vocabulary of 18"):
        PerplexityModel(directory).log_perplexities([([1], [2]), ([1], [18, 2])])


def test_the_context_is_the_model_s(directory: Path) -> None:
    assert PerplexityModel(directory).context == 64


def test_samples_follow_the_model_s_own_distribution_whatever_its_generation_settings(directory: Path) -> None:
    """First tokens after one prompt, beside the softmax; `top_k: 1` in the directory must not matter."""
    (directory / "generation_config.json").write_text('{"do_sample": true, "top_k": 1, "temperature": 0.01}')
    model = PerplexityModel(directory)
    prompt = PROMPTS[5]
    count = 2000
    samples = model.sample([prompt] * count, max_new_tokens=1, ends=(world.EOS,), seed=0)
    seen = np.bincount([response[0] for _, response in samples], minlength=18) / count
    exact = np.exp([-model.log_perplexities([(prompt, [token])])[0] for token in range(18)])
    assert exact.sum() == pytest.approx(1.0, abs=1e-5)
    spread = np.sqrt(exact * (1 - exact) / count)
    assert np.all(np.abs(seen - exact) < 4.5 * spread + 1e-3)
    assert exact.max() < 0.9, "a distribution that greedy sampling would miss"


def test_samples_are_seeded_end_once_and_do_not_depend_on_padding(directory: Path) -> None:
    """A prompt among longer ones is scored and continued as it is alone: the padding is masked."""
    model = PerplexityModel(directory)
    before = torch.get_rng_state()
    first, again, other = (
        model.sample(PROMPTS * 4, max_new_tokens=6, ends=(world.EOS,), seed=seed) for seed in (0, 0, 1)
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    for _, response in first:
        assert response.count(world.EOS) == (response[-1] == world.EOS)
        assert 1 <= len(response) <= 6
    assert {len(response) for _, response in first} > {6}
    long = [[world.BOS] + [7] * 8, [world.BOS]] * 1000
    short = [tuple(response) for prompt, response in model.sample(long, max_new_tokens=1, ends=(world.EOS,), seed=0)
             if len(prompt) == 1]  # fmt: skip
    exact = math.exp(-model.log_perplexities([([world.BOS], [short[0][0]])])[0])
    assert short.count(short[0]) / 1000 == pytest.approx(exact, abs=4.5 * math.sqrt(exact * (1 - exact) / 1000))


def test_prompts_that_fill_the_context_are_not_answered_and_others_end_at_it(directory: Path) -> None:
    model = PerplexityModel(directory)
    samples = model.sample([[7] * 64, [7] * 62], max_new_tokens=6, ends=(world.EOS,), seed=0)
    assert [len(prompt) for prompt, _ in samples] == [62]
    assert len(samples[0][1]) <= 2
