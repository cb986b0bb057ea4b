"""Part: behaviour log-probs of an engine with two models, against what the learner computes for the same tokens."""

import os
import statistics
from collections.abc import Iterator
from typing import Any

from actors.generation.config import OpponentConfig
from benchmarks.gpu_acceptance.learners import engine_of, learner_config, random_prompts
from benchmarks.gpu_acceptance.parts import FailedError, Sample, Setup
from learner.config import LearnerSpec
from learner.losses.config import GameLossConfig

BETAS = (0.0, 0.5, 1.0)
PROMPTS, NEW_TOKENS = 8, 16
LARGEST = {"float32": 1e-2, "bfloat16": 3.0}
MEAN = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats: on one token, and over all. A GPU may round float32's products to fewer bits. In bfloat16 kernels of two
libraries differ by tenths, on single tokens by more; wrong weights or keys by several on most tokens."""
LEAST_APART = 1.0
"""Nats by which the two models must differ on a token, or the figures say nothing."""


def mixture(setup: Setup) -> Iterator[dict[str, Any]]:
    """Sample at each beta in one engine, then score the tokens with the learner's policy, reference and mixture."""
    opponent = OpponentConfig(kind="mixture", beta=0.5)
    with engine_of(setup, opponent=opponent, eager=setup.eager, new_tokens=NEW_TOKENS) as engine:
        prompts = random_prompts(setup, PROMPTS)
        sampled = {beta: engine.call("sample", prompts, beta, 7)[0] for beta in BETAS}
    largest, means, apart = dict[str, float](), list[float](), 0.0
    for beta, differences, between in _compared(setup, sampled):
        largest[f"beta_{beta:g}"] = max(differences)
        means.append(statistics.mean(differences))
        apart = max(apart, between)
        yield largest | {"largest": max(largest.values()), "mean": max(means), "models_apart": apart}
    tokens = sum(len(sample.tokens) for samples in sampled.values() for sample in samples)
    yield {"tokens": tokens}
    for name, found, limit in (
        ("at most", max(largest.values()), LARGEST[setup.dtype]),
        ("in the mean", max(means), MEAN[setup.dtype]),
    ):
        if not found <= limit:
            raise FailedError(f"engine and learner differ by {found:.3g} nats on a token {name}; {limit:g} are allowed")
    if not apart >= LEAST_APART:
        raise FailedError(f"the two models differ by {apart:.3g} nats at most, so the comparison says nothing")


def _compared(setup: Setup, sampled: dict[float, list[Sample]]) -> Iterator[tuple[float, list[float], float]]:
    """Yield for each beta the differences from the engine, and the largest one between the two models (nats)."""
    os.environ |= {"DS_ACCELERATOR": "cuda" if setup.cuda else "cpu", "LOCAL_RANK": "0"}
    import torch

    from learner.training.engine import TrainEngine
    from learner.training.policies import Pass, Policies

    loss = GameLossConfig(opponent=OpponentConfig(kind="mixture", beta=0.5))
    config = learner_config(setup, loss)
    engine = TrainEngine(
        LearnerSpec(config=config, model_dir=setup.model, reference_dir=setup.reference, total_updates=1)
    )
    for beta, samples in sampled.items():
        opponent = OpponentConfig(kind="mixture", beta=beta)
        policies = Policies(engine.policies.policy, engine.policies.reference, None, opponent, 1.0)
        with torch.no_grad():
            found = policies.logprobs(
                [(sample.prompt, sample.tokens) for sample in samples], Pass(slice(None), opponent=True)
            )
        engines = torch.tensor([value for sample in samples for value in sample.logprobs], device=found.opponent.device)
        yield (
            beta,
            (found.opponent - engines).abs().tolist(),
            float((found.policy - found.reference).abs().max()),
        )
    engine.policy.close()
