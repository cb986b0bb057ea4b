"""Scores of a tiny random reward model, against each sequence alone, unpadded, read off by hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from actors.errors import RunError, UsageError
from actors.judges.config import RewardModelJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.models.classifier import batches_by_length
from actors.judges.models.reward_model import RewardModelJudge
from actors.records import Completion, Group, Lease, Prompt

WORDS = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(37))]
PAD, BOS, EOS, W0 = range(4)
TEMPLATE = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"


def save_tokenizer(path: Path, words: Sequence[str] = WORDS, chat_template: str | None = None) -> str:
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(path)
    return str(path)


def save_model(path: Path, model_class: Any = LlamaForSequenceClassification, **settings: Any) -> str:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "num_labels": 1,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.5,
    }
    model_class(LlamaConfig(**sizes | settings)).save_pretrained(path)
    return save_tokenizer(path)


def random_groups(count: int = 6, completions: int = 3) -> list[Group]:
    """Groups of mixed lengths; about half of the completions are unfinished."""
    rng = np.random.default_rng(0)

    def words(most: int) -> list[int]:
        return rng.integers(W0, len(WORDS), size=rng.integers(1, most)).tolist()

    groups = []
    for index in range(count):
        ids = words(8)
        prompt = Prompt(f"p:{index}", (BOS, *ids), " ".join(WORDS[i] for i in ids))
        answers = []
        for _ in range(completions):
            said, finished = words(12), bool(rng.integers(2))
            token_ids = (*said, EOS) if finished else tuple(said)
            zeros = (0,) * len(token_ids)
            text = " ".join(WORDS[i] for i in said)
            answers.append(Completion(token_ids, (-1.0,) * len(token_ids), zeros, text, finished))
        groups.append(Group(Lease(index, 0, prompt, 0, 60.0), tuple(answers)))
    return groups


def judged(judge: Any, groups: Sequence[Group]) -> np.ndarray:
    return np.array([judgement.scores for judgement in asyncio.run(judge.judge(groups))])


def one_by_one(path: str, groups: Sequence[Group]) -> np.ndarray:
    """Head of the last hidden state of each sequence alone: no batch, no padding, no pooling by the library."""
    model = LlamaForSequenceClassification.from_pretrained(path).eval()
    table = []
    with torch.no_grad():
        for group in groups:
            sequences = [[*group.lease.prompt.token_ids, *one.token_ids] for one in group.completions]
            states = [model.model(torch.tensor([sequence])).last_hidden_state[0, -1] for sequence in sequences]
            table.append([float(model.score.weight[0] @ state) for state in states])
    return np.array(table)


@pytest.mark.parametrize("pad", [PAD, None], ids=["with padding token", "without padding token"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batched_scores_are_those_of_each_sequence_alone(tmp_path: Path, pad: int | None, batch_tokens: int) -> None:
    path = save_model(tmp_path / "rm", pad_token_id=pad)
    groups = random_groups()
    judge = RewardModelJudge(RewardModelJudgeConfig(path=path, batch_tokens=batch_tokens), policy_tokenizer=path)
    scores, expected = judged(judge, groups), one_by_one(path, groups)
    assert expected.std() > 0.1
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_text_tokenised_again_scores_as_the_sampled_ids(tmp_path: Path) -> None:
    path = save_model(tmp_path / "rm")
    judge = make_judge(RewardModelJudgeConfig(path=path))
    np.testing.assert_allclose(judged(judge, random_groups()), one_by_one(path, random_groups()), atol=1e-5)


def test_ids_of_another_vocabulary_are_not_taken_for_the_judges_own(tmp_path: Path) -> None:
    path = save_model(tmp_path / "rm")
    policy = save_tokenizer(tmp_path / "policy", [*WORDS[:3], *reversed(WORDS[3:])])
    judge = RewardModelJudge(RewardModelJudgeConfig(path=path), policy_tokenizer=policy)
    completion = Completion((len(WORDS) - 1, EOS), (-1.0, -1.0), (0, 0), "w0", True)
    assert judge.token_ids(Prompt("p:0", (BOS, len(WORDS) - 2), "w1"), completion) == [BOS, W0 + 1, W0, EOS]


def test_the_sampled_ids_themselves_are_read_where_the_vocabulary_is_the_same(tmp_path: Path) -> None:
    path = save_model(tmp_path / "rm")
    judge = RewardModelJudge(RewardModelJudgeConfig(path=path), policy_tokenizer=path)
    completion = Completion((W0 + 5, EOS), (-1.0, -1.0), (0, 0), "text that it cannot tokenise", True)
    assert judge.token_ids(Prompt("p:0", (BOS, W0 + 9), "nor this"), completion) == [BOS, W0 + 9, W0 + 5, EOS]


def test_an_unfinished_completion_gets_no_end_of_sequence(tmp_path: Path) -> None:
    judge = RewardModelJudge(RewardModelJudgeConfig(path=save_model(tmp_path / "rm")))
    completion = Completion((W0 + 2,), (-1.0,), (0,), "w2", False)
    assert judge.token_ids(Prompt("p:0", (BOS, W0), "w0"), completion) == [BOS, W0, W0 + 2]


def test_chat_prompts_are_written_in_the_judges_own_template(tmp_path: Path) -> None:
    path = save_model(tmp_path / "rm")
    save_tokenizer(tmp_path / "rm", chat_template=TEMPLATE)
    judge = RewardModelJudge(RewardModelJudgeConfig(path=path), policy_tokenizer=save_tokenizer(tmp_path / "policy"))
    prompt = Prompt("p:0", (BOS, W0), "rendered", metadata={"messages": [{"role": "user", "content": "w7"}]})
    completion = Completion((W0 + 2, EOS), (-1.0, -1.0), (0, 0), "w2", True)
    assert judge.token_ids(prompt, completion) == [W0 + 7, EOS, W0 + 2, EOS]


def test_batches_cover_everything_once_within_the_bound_and_sorted_by_length() -> None:
    rng = np.random.default_rng(1)
    for bound in (1, 7, 30, 1000):
        lengths = rng.integers(1, 20, size=50).tolist()
        batches = list(batches_by_length(lengths, bound))
        assert sorted(index for batch in batches for index in batch) == list(range(50))
        assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= bound for b in batches)
        flat = [lengths[index] for batch in batches for index in batch]
        assert flat == sorted(flat, reverse=True)
    assert list(batches_by_length([2, 9, 3, 3], 9)) == [[1], [2, 3, 0]]
    assert list(batches_by_length([], 9)) == []


def test_the_event_loop_stays_free_during_a_forward_pass(tmp_path: Path) -> None:
    """The forward pass here waits for something that only the event loop can do."""
    judge = RewardModelJudge(RewardModelJudgeConfig(path=save_model(tmp_path / "rm")))
    released = threading.Event()
    forward = judge._model.forward
    judge._model.forward = lambda *a, **k: released.wait(timeout=10) and forward(*a, **k)

    async def scenario() -> float:
        started = time.monotonic()
        task = asyncio.create_task(judge.judge(random_groups(1)))
        await asyncio.sleep(0.01)
        released.set()
        await task
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_a_sequence_beyond_the_models_positions_is_an_error(tmp_path: Path) -> None:
    path = save_model(tmp_path / "rm", max_position_embeddings=4)
    with pytest.raises(RunError, match=r"tokens, and the reward model .* has 4 positions"):
        judged(RewardModelJudge(RewardModelJudgeConfig(path=path)), random_groups())


def test_a_model_of_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 3 labels; a reward model has exactly 1"):
        RewardModelJudge(RewardModelJudgeConfig(path=save_model(tmp_path / "rm", num_labels=3)))


def test_a_language_model_is_not_taken_for_a_reward_model_with_a_random_head(tmp_path: Path) -> None:
    path = save_model(tmp_path / "lm", LlamaForCausalLM)
    with pytest.raises(UsageError, match=r"lacks the weights 'score\.weight' of LlamaForSeq"):
        RewardModelJudge(RewardModelJudgeConfig(path=path))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json, so it holds no model"):
        RewardModelJudge(RewardModelJudgeConfig(path=save_tokenizer(tmp_path / "rm")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_asking_for_a_gpu_where_there_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"judge\.gpus is 1, but torch finds no CUDA device"):
        RewardModelJudge(RewardModelJudgeConfig(path=save_model(tmp_path / "rm"), gpus=1))
