"""Verifiers of `offbeat evaluate`: how they rank, and which are refused before anything is sampled."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.data.text import load_tokenizer
from actors.errors import UsageError
from launch.evaluate.verifiers import find_verifier
from learner.backend import manifest
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model
from tests.launch.evaluate.cases import config, group


def slow_logprob(directory, prompt, response):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    ids = torch.tensor([*prompt, *response])
    with torch.no_grad():
        logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


@pytest.mark.parametrize("damaged", ["verifier", "reference"])
def test_a_damaged_verifier_or_reference_is_refused(models, tmp_path, damaged):
    for name in ("verifier", "reference"):
        shutil.copytree(models / name, tmp_path / name)
    record = json.loads((tmp_path / "verifier" / "dpo.json").read_text()) | {"reference": str(tmp_path / "reference")}
    (tmp_path / "verifier" / "dpo.json").write_text(json.dumps(record))
    manifest.seal(tmp_path / damaged)
    weights = bytearray((tmp_path / damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / damaged / "model.safetensors").write_bytes(weights)
    with pytest.raises(UsageError, match=rf"{damaged} is not as it was written: model\.safetensors has other content"):
        find_verifier(str(tmp_path / "verifier"), "reward")


def test_a_verifier_ranks_by_its_log_likelihood_or_by_its_reward_against_its_reference(models):
    both = [group(["a", "b"], (1, 0)), replace(group(["a", "b", "c"], (1, 0, 0)))]
    settings = config("generators.dtype=float32")
    ours, theirs = (
        [[slow_logprob(models / name, (1, 2), c.token_ids) for c in each.completions] for each in both]
        for name in ("verifier", "reference")
    )
    likelihoods = find_verifier(str(models / "verifier"), "likelihood").scores(both, settings)
    rewards = find_verifier(str(models / "verifier"), "reward").scores(both, settings)
    for number in range(2):
        assert likelihoods[number] == pytest.approx(ours[number], abs=1e-4)
        expected = [0.2 * (mine - other) for mine, other in zip(ours[number], theirs[number], strict=True)]
        assert rewards[number] == pytest.approx(expected, abs=1e-4)
    assert abs(rewards[0][0]) > 1e-3


def test_rewards_need_a_verifier_that_tells_its_reference(models):
    with pytest.raises(UsageError, match=r"reference/dpo\.json does not hold them .*or --rank likelihood"):
        find_verifier(str(models / "reference"), "reward")


def test_a_verifier_with_another_tokenizer_is_refused(models, tmp_path):
    """The scores of other tokens' log-probs would look like any others."""
    make_model(
        tmp_path / "other", ["#### #### ####"] * 9, ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=64)
    )
    policy = load_tokenizer(str(models / "verifier"))
    find_verifier(str(models / "verifier"), "reward").check_reads(policy)
    wider = load_tokenizer(str(tmp_path / "other"))
    first = len(policy.get_vocab())
    with pytest.raises(UsageError, match=rf"another tokenizer .*: token {first}, '#+', is not one there; give"):
        find_verifier(str(models / "verifier"), "likelihood").check_reads(wider)
    find_verifier(str(tmp_path / "other"), "likelihood").check_reads(policy)  # further tokens are never read


def test_a_verifier_without_a_tokenizer_is_taken_at_its_word(models, tmp_path):
    shutil.copytree(models / "reference", tmp_path / "bare")
    for file in tmp_path.glob("bare/token*"):
        file.unlink()
    find_verifier(str(tmp_path / "bare"), "likelihood").check_reads(load_tokenizer(str(models / "verifier")))
