"""Part: a learner's tokens per second, its share of the card's arithmetic, and its peak memory beside doctor's sum."""

import os
import re
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_acceptance.learners import learner_config, random_pairs
from benchmarks.gpu_acceptance.parts import Setup, SkippedError
from launch.doctor.footprint import CONTEXT_BYTES, activation_bytes, learner_memory, pass_of, size
from launch.doctor.model_facts import ModelFacts, read_model
from learner.config import LearnerSpec

MICRO_BATCHES = 2
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 with sums in float32, as NVIDIA gives them; the first name that a card's holds counts."""


def peak_flops(card: str) -> float | None:
    """Return the most FLOP/s that a card is said to reach, or None for a card that is not in the table."""
    return next((flops for name, flops in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", card)), None)


def flops_per_token(facts: ModelFacts, tied: bool, row_tokens: int) -> float:
    """Return the FLOPs per token of an update with a reference: policy forward and backward, reference forward.

    6 per weight and token, 2 for a pass without gradient, and attention's products over the whole row: Chowdhery et
    al. 2022, "PaLM", appendix B. An embedding that is not also the head multiplies nothing.
    """
    multiplied = facts.parameters - (0 if tied else facts.vocabulary * facts.hidden)
    attention = 12 * facts.layers * facts.heads * facts.head_size * row_tokens
    return (6 * multiplied + attention) * (1 + 1 / 3)


def learner(setup: Setup) -> Iterator[dict[str, Any]]:
    """Train on pairs of random tokens, without publication."""
    facts = read_model(setup.model)
    assert facts is not None
    config = learner_config(setup)
    rows = max(2, setup.micro_batch_tokens // setup.row_tokens // 2 * 2)
    half = setup.row_tokens // 2
    largest = pass_of(half, half, 2, max(3 * half, config.micro_batch_tokens))
    estimate = learner_memory(facts, facts, config, average=False)[0]
    estimate += activation_bytes(facts, config, largest)
    yield {"parameters": facts.parameters, "estimate_bytes": int(estimate)}
    os.environ |= {"DS_ACCELERATOR": "cuda" if setup.cuda else "cpu", "LOCAL_RANK": "0"}
    import torch

    from actors.generation.weights import is_tied
    from benchmarks.gpu_acceptance.memory import gpu_peak_bytes, live_bytes, peak_bytes

    if setup.cuda and (free := torch.cuda.mem_get_info()[0]) < estimate + CONTEXT_BYTES:
        raise SkippedError(
            f"doctor's sum is {size(estimate)} without CUDA's context, and the card has {size(free)} free"
        )
    from learner.training.engine import TrainEngine

    batches = [random_pairs(setup, MICRO_BATCHES * rows // 2, seed) for seed in range(setup.rounds + 2)]
    before = 0 if setup.cuda else live_bytes()
    engine = TrainEngine(LearnerSpec(config=config, model_dir=setup.model, total_updates=1000))
    engine.update(batches[0])  # afterwards the optimizer's moments are there
    if setup.cuda:
        peak = gpu_peak_bytes(lambda: engine.update(batches[1]))
    else:
        peak = live_bytes() - before + peak_bytes(lambda: engine.update(batches[1]))
    yield {"peak_bytes": peak, "estimate_over_peak": estimate / peak}
    updates = [engine.update(batch) for batch in batches[2:]]
    rate = statistics.median(update.tokens / update.seconds for update in updates)
    yield {"tokens_per_second": rate, "tokens": updates[0].tokens}
    achieved = rate * flops_per_token(facts, is_tied(setup.model), setup.row_tokens)
    yield {"flops_per_second": achieved}
    card = torch.cuda.get_device_properties(0).name if setup.cuda else ""
    most = setup.peak_flops or peak_flops(card)
    yield {"mfu": achieved / most, "peak_flops": most} if most else {"mfu": None}
    engine.policy.close()
