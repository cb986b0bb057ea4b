"""Every architecture through the whole chain: files, learner, engine, publication, saved model, and back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors import hub
from actors.generation import weights
from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.records import Canary
from learner.backend.models import load_policy, rehearse, settle_generation, write_model
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from learner.tensors.batching import collate
from tests.actors.generation.test_engine import run
from tests.fakes.architectures import WORDS, architecture, long_but
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import spec_of

TEMPERATURE = 0.8
TOLERANCE = 2e-4
"""Nats, on any sampled token in float32; measured: 1e-5 at most."""
CANARY = canary_tokens(WORDS, 16)
PROMPTS = [[2 + number, 5, 9, 30, 11] for number in range(4)]


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    yield publisher
    publisher.close()


def engine_of(directory: Path, reference: Path | None = None) -> Engine:
    """With a `reference`, two models in one engine."""
    settings = GeneratorConfig(dtype="float32", max_model_len=64, max_running_prompts=4, kv_cache_mib=16)
    sampling = SamplingConfig(max_new_tokens=16, temperature=TEMPERATURE)
    opponent = OpponentConfig(kind="mixture", beta=0.5)
    mixed = {} if reference is None else {"opponent": opponent, "reference_dir": reference}
    return Engine(spec_of(directory, settings, sampling, seed=3, **mixed))


def policy_of(directory: Path) -> Any:
    policy = load_policy(directory, "float32", temperature=TEMPERATURE)
    # vLLM runs some architectures through transformers, and then changes their classes in this process.
    policy.model.get_decoder().do_not_compile = True
    return policy


def scores(policy: Any, prompt: list[int], response: tuple[int, ...], temperature: float | None = None) -> list[float]:
    """The learner's log-probs of a response."""
    with torch.no_grad():
        return policy(collate([(prompt, response)]), temperature).tolist()


def gap(engine: Engine, policy: Any) -> float:
    """The largest difference of any sampled token between engine and learner, in nats."""
    for number, prompt in enumerate(PROMPTS):
        engine.add(str(number), prompt)
    return max(
        abs(ours - theirs)
        for name, completion in run(engine).items()
        for ours, theirs in zip(
            scores(policy, PROMPTS[int(name)], completion.token_ids), completion.logprobs, strict=True
        )
    )


def mixture_gap(engine: Engine, policy: Any, reference: Any, beta: float) -> float:
    """The largest difference of any token sampled at `beta` from the mixture by its formula, in nats."""
    engine._requests.opponent_params = engine._requests.sampling_params(beta)
    for number, prompt in enumerate(PROMPTS):
        engine.add(str(number), prompt, opponent=True)
    worst = 0.0
    for name, completion in run(engine).items():
        prompt, response = PROMPTS[int(name)], list(completion.token_ids)
        with torch.no_grad():
            ours, theirs = (part.model(torch.tensor([prompt + response])).logits[0] for part in (policy, reference))
        mixed = (1 - beta) * ours.double().log_softmax(-1) + beta * theirs.double().log_softmax(-1)
        rows = (mixed / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(response)[:, None])[:, 0]
        worst = max(worst, (expected - torch.tensor(completion.logprobs)).abs().max().item())
    return worst


def train(policy: Any) -> None:
    """Change every weight, as far as its own spread."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in hub.unique_tensors(policy.model).values():
            tensor.add_(0.1 * torch.randn_like(tensor))


def publish(policy: Any, publisher: Publisher) -> Any:
    canary = Canary(CANARY, tuple(scores(policy, list(CANARY[:1]), CANARY[1:], 1.0)))
    state = hub.checkpoint_names(policy.model, hub.unique_tensors(policy.model))
    return publisher.publish(1, {name: tensor.detach() for name, tensor in state.items()}, canary)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("name", long_but("llama-3", "qwen-3-moe", "gemma-2"))
def test_an_architecture_is_sampled_mixed_published_and_saved_on_policy(tmp_path, publisher, name) -> None:
    """All of transformers comes first: vLLM runs some architectures through its classes, and changes them."""
    directory, final = tmp_path / "hub", tmp_path / "final"
    architecture(directory, name)
    policy, trained = policy_of(directory), policy_of(directory)
    train(trained)
    settle_generation(trained.model, directory, (1,), TEMPERATURE)
    rehearse(trained.model, directory)
    write_model(final, trained.model, trained.model.state_dict(), directory)
    saved = weights.outline_once(str(final))
    assert (saved.missing, saved.mismatched, saved.unused) == ([], [], [])
    again = policy_of(final)
    assert scores(again, PROMPTS[0], (3, 4)) == pytest.approx(scores(trained, PROMPTS[0], (3, 4)), abs=1e-6)

    engine = engine_of(directory)
    assert gap(engine, policy) < TOLERANCE
    assert gap(engine, trained) > 10 * TOLERANCE, "training changed too little to tell"
    engine.load(publish(trained, publisher))
    assert gap(engine, trained) < TOLERANCE
    del engine
    gc.collect()
    engine = engine_of(final, reference=directory)
    assert gap(engine, trained) < TOLERANCE
    assert mixture_gap(engine, trained, policy, 1.0) < TOLERANCE
    assert mixture_gap(engine, trained, policy, 0.5) < TOLERANCE
