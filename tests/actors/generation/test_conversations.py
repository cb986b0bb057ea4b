"""Conversations in a real engine: the log-probs of the policy's tokens are the learner's, also over a weight sync."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors import hub
from actors.environments.config import EnvironmentConfig
from actors.environments.rollouts import Rollouts
from actors.generation.config import GeneratorConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.records import Canary, Completion, Prompt
from learner.backend.models import load_policy
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from learner.tensors.batching import collate, rollout
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama

WORDS = 96
STOPS = tuple(range(60, WORDS))
"""A third of all words end a turn of the policy."""
PROMPT = Prompt("p:0", (2, 3, 4), "w2 w3 w4")


class Parrot:
    """Says the same word twice, then nothing."""

    def reset(self, prompt: Prompt) -> None:
        self.left = 2

    def step(self, message: str) -> dict[str, str] | None:
        self.left -= 1
        return {"role": "user", "content": "w5"} if self.left >= 0 else None


def policy_of(directory: Path) -> Any:
    return load_policy(directory, "float32", temperature=1.0)


def gap(policy: Any, completion: Completion) -> float:
    """The largest difference (nats) of engine and learner on a token that the policy sampled."""
    with torch.no_grad():
        ours = policy(collate([rollout(PROMPT.token_ids, completion)])).tolist()
    theirs = completion.sampled(completion.logprobs)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.vllm
def test_a_conversation_is_on_policy_and_after_a_weight_sync_its_later_turns_are_the_new_policy_s(tmp_path):
    for name, seed in (("old", 1), ("new", 2)):
        tiny_llama(tmp_path / name, seed=seed, vocab_size=WORDS)
    old, new = policy_of(tmp_path / "old"), policy_of(tmp_path / "new")
    settings = GeneratorConfig(dtype="float32", max_model_len=80, max_running_prompts=4, kv_cache_mib=16)
    sampling = SamplingConfig(max_new_tokens=64, stop_token_ids=STOPS)
    engine = Engine(spec_of(tmp_path / "old", settings, sampling, seed=3))
    config = EnvironmentConfig(path=f"{__name__}:Parrot")
    rollouts = Rollouts(engine, config, tokenizer=engine.tokenizer, ends=engine.ends, stops=STOPS, limit=64)

    def sample(sync: bool) -> list[Completion]:
        for number in range(8):
            rollouts.add(str(number), PROMPT)
        done: dict[str, Any] = {}
        while rollouts.busy:
            done |= dict(rollouts.step())
            if sync and any(each.given for each in rollouts._conversations.values()):
                engine.load(publication)
                sync = False
        return list(done.values())

    conversations = sample(sync=False)
    assert sum(len(each.given) for each in conversations) > 8
    assert all(len(each.token_ids) <= 64 for each in conversations)
    assert max(gap(old, each) for each in conversations) < 2e-4
    heard = {each.token_ids[start:end] for each in conversations for start, end in each.given}
    assert heard == {(5,)}

    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    tokens = canary_tokens(WORDS, 16)
    with torch.no_grad():
        scored = new(collate([(tokens[:1], tokens[1:])])).tolist()
    state = hub.checkpoint_names(new.model, hub.unique_tensors(new.model))
    publication = publisher.publish(1, {n: t.detach() for n, t in state.items()}, Canary(tokens, tuple(scored)))
    both = [each for each in sample(sync=True) if set(each.versions) == {0, 1}]
    publisher.close()
    assert both, "no conversation crossed the weight sync"
    for each in both:
        assert list(each.versions) == sorted(each.versions)
        versions = each.sampled(each.versions)
        with torch.no_grad():
            ours = [policy(collate([rollout(PROMPT.token_ids, each)])).tolist() for policy in (old, new)]
        recorded = each.sampled(each.logprobs)
        differences = [abs(ours[version][t] - recorded[t]) for t, version in enumerate(versions)]
        assert max(differences) < 2e-4
