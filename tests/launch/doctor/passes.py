"""The peak of a forward and backward pass on CPU, beside what doctor estimates; also on ranks that split its row.

`python -m tests.launch.doctor.passes RANK WORLD PORT DIRECTORY SCENARIO`, started by `run_ranks`, measures the model in
`DIRECTORY`/model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu_acceptance.memory import peak_bytes
from launch.doctor.footprint import activation_bytes, pass_of
from launch.doctor.model_facts import read_model
from learner.backend.models import checkpoint_activations, load_policy
from learner.backend.sharded import join_process_group
from learner.config import TrainerConfig
from learner.tensors.sequence_groups import split_sequences
from learner.tensors.shared_prompts import collate_shared
from learner.training.process import set_environment
from tests.learner.backend.ranks import CONFIG, place_of

PROGRAM = "tests.launch.doctor.passes"
LONG = 64, 992
"""Tokens of a prompt, and of each of its two completions, which are long enough to be split without a mask."""


def measured_pass(
    directory: Path, dtype: str, lengths: tuple[int, int], items: int, *, recomputes: bool, split: int = 1
) -> tuple[int, float]:
    """Return the peak of a pass over `items` prompts of two completions (bytes), and the estimate.

    Gradients of weights are there before, and no bucket of them is reduced.
    """
    policy = load_policy(directory, dtype)
    assert policy.shares_prompts
    split_sequences(policy, split, str(directory))
    if recomputes:
        checkpoint_activations(policy.model)
        policy.model.enable_input_require_grads()
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    prompt, completion = lengths
    generator = torch.Generator().manual_seed(0)
    facts = read_model(str(directory))
    assert facts is not None

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(facts.vocabulary, (count,), generator=generator).tolist())

    sequences = [(given, tokens(completion)) for given in [tokens(prompt) for _ in range(items)] for _ in range(2)]
    peak = peak_bytes(lambda: policy(collate_shared(sequences)).sum().backward())
    config = TrainerConfig(
        dtype=dtype,
        zero_stage=1,
        ranks=split,
        sequence_parallel=split,
        gradient_checkpointing=recomputes,
        deepspeed={"zero_optimization": {"reduce_bucket_size": 1}},
    )
    counted = pass_of(prompt, completion, 2, items * (prompt + 2 * completion), split)
    return peak, activation_bytes(facts, config, counted)


def _main(rank: int, world: int, port: int, directory: Path, scenario: str) -> None:
    set_environment(CONFIG, place_of(rank, world, port))
    torch.set_num_threads(1)
    join_process_group(CONFIG)
    # Not with recomputed layers: gloo's threads hold what was exchanged for a moment, which is a third of their peak.
    found = measured_pass(directory / "model", "bfloat16", LONG, 2, recomputes=False, split=world)
    torch.save(found, directory / f"{scenario}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5])
