"""A preference model scores a pair equally in training and when judging, whatever the style of its chat template."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from actors.data.preference_layouts import PreferenceRow
from actors.data.preferences import PreferenceTokens, preference_tokens
from actors.data.text import load_tokenizer
from actors.hub import answer_ends
from actors.judges.config import PreferenceModelJudgeConfig, RewardModelJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.models.classifier import collate
from actors.judges.models.preference_network import PreferenceForm, PreferenceNetwork, write_form
from actors.records import Completion, Group, Lease, Prompt
from tests.actors.data.test_conversations import USER, save
from tests.fakes.chat_styles import STYLES

ANSWERS = ("blue gold", "sun")


def preference_model(directory: Path, form: PreferenceForm, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    write_form(directory, form)
    return model


@pytest.mark.parametrize("kind", ["bradley_terry", "pairwise"])
@pytest.mark.parametrize("name", STYLES)
def test_a_pair_is_scored_equally_in_training_and_when_judging(
    name: str, kind: Literal["bradley_terry", "pairwise"], tmp_path: Path
) -> None:
    """The same random model gave 0.075 in training and 0.027 when judging: it was read at another token."""
    path = save(STYLES[name], tmp_path)
    tokenizer = load_tokenizer(path)
    form = PreferenceForm(kind, tokenizer.eos_token_id)
    model = preference_model(tmp_path, form, len(tokenizer))
    ends = answer_ends(path, tokenizer)
    (pair,) = preference_tokens([PreferenceRow([USER], *ANSWERS)], tokenizer, ends)
    assert isinstance(pair, PreferenceTokens)
    sequences = form.sequences(tuple(pair.prompt), tuple(pair.chosen), tuple(pair.rejected))
    with torch.no_grad():
        one, other = PreferenceNetwork(model)(*collate(sequences)).chunk(2)
        trained = float(form.logits(one, other))

    prompt = Prompt("p", tuple(pair.prompt), "", metadata={"messages": [USER]})
    for end in ends:
        sampled = [
            Completion((*ids[:-1], end), (0.0,) * len(ids), (0,) * len(ids), text, finished=True)
            for ids, text in zip((pair.chosen, pair.rejected), ANSWERS, strict=True)
        ]
        group = Group(Lease(0, 0, prompt, 0, 60.0), tuple(sampled))
        for policy in (path, None):
            judge = make_judge(PreferenceModelJudgeConfig(path=path), tokenizer=policy)
            (judgement,) = asyncio.run(judge.judge([group]))
            assert judgement.preferences is not None
            won = judgement.preferences[0][1]
            np.testing.assert_allclose(np.log(won) - np.log1p(-won), trained, atol=1e-4)
            if kind == "bradley_terry":
                judge = make_judge(RewardModelJudgeConfig(path=path), tokenizer=policy)
                (scored,) = asyncio.run(judge.judge([group]))
                np.testing.assert_allclose(scored.scores[0] - scored.scores[1], trained, atol=1e-4)
