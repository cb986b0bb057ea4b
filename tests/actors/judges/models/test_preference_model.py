"""A trained preference model as a judge, against the model asked directly."""

import asyncio

import numpy as np
import pytest
import torch

from actors.errors import UsageError
from actors.judges.config import PreferenceModelJudgeConfig, RewardModelJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.models.preference_model import PreferenceModelJudge
from actors.judges.models.preference_network import PreferenceModel, probabilities
from actors.records import Completion, Group, Lease, Prompt
from actors.world import EOS, RESPONSE_WORDS, prompt_rows, prompt_token_ids
from tests.fakes.models import tiny_preference_model

KINDS = [("bradley_terry", 0), ("pairwise", 0), ("skew", 2)]


def completion(*symbols, finished=True):
    ids = tuple(4 + symbol for symbol in symbols) + ((EOS,) if finished else ())
    text = " ".join(RESPONSE_WORDS[symbol] for symbol in symbols)
    return Completion(ids, (-1.0,) * len(ids), (0,) * len(ids), text, finished)


def groups():
    """Two prompts; an unfinished completion, and one that is there twice."""
    prompts = [Prompt(f"p:{x}", prompt_token_ids(x), prompt_rows()[x]["prompt"]) for x in (2, 9)]
    sets = [
        (completion(0, 3), completion(5), completion(1, 1, 2)),
        (completion(4), completion(0, 1, 2, 3, finished=False), completion(4)),
    ]
    return [Group(Lease(i, 0, prompt, 0, 60.0), ys) for i, (prompt, ys) in enumerate(zip(prompts, sets, strict=True))]


def judged(config, tokenizer=None):
    return asyncio.run(make_judge(config, tokenizer=tokenizer).judge(groups()))


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0])
def path(request, tmp_path):
    tiny_preference_model(tmp_path, request.param[0], skew_blocks=request.param[1])
    return str(tmp_path)


def test_preferences_are_the_models_and_scores_are_rewards_or_mean_wins(path):
    model = PreferenceModel.load(path)
    prompts = [group.lease.prompt.token_ids for group in groups()]
    answers = [[one.token_ids for one in group.completions] for group in groups()]
    for number, (judgement, logits) in enumerate(
        zip(judged(PreferenceModelJudgeConfig(path=path), path), model.tables(prompts, answers), strict=True)
    ):
        expected = probabilities(logits)
        np.testing.assert_allclose(judgement.preferences, expected, atol=1e-6)
        if model.form.kind == "bradley_terry":
            np.testing.assert_allclose(np.subtract.outer(judgement.scores, judgement.scores), logits, atol=1e-6)
        else:
            others = (expected.sum(axis=1) - 0.5) / 2
            np.testing.assert_allclose(judgement.scores, others, atol=1e-6)
        assert [judgement.preferences[i][i] for i in range(3)] == [0.5] * 3
        assert (judgement.preferences[0][2] == 0.5) == (number == 1), "the same answer twice"


def test_text_tokenised_again_is_judged_as_the_sampled_ids(path):
    config = PreferenceModelJudgeConfig(path=path)
    for again, sampled in zip(judged(config), judged(config, path), strict=True):
        np.testing.assert_allclose(again.preferences, sampled.preferences, atol=1e-6)


def test_a_bradley_terry_directory_is_a_reward_model_too(tmp_path):
    tiny_preference_model(tmp_path, "bradley_terry")
    ours = judged(PreferenceModelJudgeConfig(path=str(tmp_path)), str(tmp_path))
    theirs = judged(RewardModelJudgeConfig(path=str(tmp_path)), str(tmp_path))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_chats_are_written_as_in_training_where_the_templates_differ(tmp_path):
    from transformers import AutoTokenizer

    tiny_preference_model(tmp_path, "pairwise")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ending = "{{ '<sep>' if m.role == 'user' else '<eos>' }}"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} " + ending + " {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    judge = PreferenceModelJudge(PreferenceModelJudgeConfig(path=str(tmp_path)))
    prompt = Prompt("p:0", (1, 1, 1), "rendered", metadata={"messages": [{"role": "user", "content": "red north"}]})
    assert judge.token_ids(prompt, completion(0, 3)) == ((10, 14, 3), (4, 7, EOS))
    assert judge.token_ids(prompt, completion(0, 3, finished=False)) == ((10, 14, 3), (4, 7))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_asking_for_a_gpu_where_there_is_none_is_refused(tmp_path):
    tiny_preference_model(tmp_path, "pairwise")
    with pytest.raises(UsageError, match=r"judge\.gpus is 1, but torch finds no CUDA device"):
        PreferenceModelJudge(PreferenceModelJudgeConfig(path=str(tmp_path), gpus=1))
