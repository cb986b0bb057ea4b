"""The program of ranks that split rows between them: log-probs and gradients of several architectures.

`python -m tests.learner.tensors.split_rows RANK WORLD PORT DIRECTORY SCENARIO`, started by `run_ranks`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.backend.models import checkpoint_activations
from learner.backend.sharded import join_process_group
from learner.tensors.layout import Block
from learner.tensors.sequence_groups import split_sequences
from learner.tensors.shared_prompts import collate_shared, supports
from learner.training.process import set_environment
from tests.learner.backend.ranks import CONFIG, place_of
from tests.learner.tensors.test_shared_prompts import SUPPORTED, gradients, policy_of, sequences

PROGRAM = "tests.learner.tensors.split_rows"
WAYS = ("masked", "causal", "recomputed")
"""Attention by masks, as for short sequences; without, as for long ones; and with layers that are recomputed."""


def split_row(name: str, way: str, world: int) -> dict[str, Any]:
    """Log-probs on this rank, and the sum over ranks of the gradients that each computes."""
    policy = policy_of(SUPPORTED[name])
    policy.shares_prompts = supports(policy, 1e-3)
    if way == "recomputed":
        checkpoint_activations(policy.model)
        policy.model.enable_input_require_grads()
    split_sequences(policy, world, name)
    Block.long = property(lambda _: way == "causal")  # type: ignore[assignment, misc]
    batch = collate_shared(sequences())
    logprobs = policy(batch)
    found = gradients(policy, logprobs)
    for gradient in found.values():
        dist.all_reduce(gradient)
    assert batch.layout is not None
    return {"logprobs": logprobs.detach(), "gradients": found, "masks": len(batch.layout.masks)}


def exchanges(world: int) -> list[tuple[Tensor, Tensor]]:
    """What this rank gets for its queries [1, h, t / n, d], and gives back, beside what DeepSpeed makes of the same."""
    from deepspeed.sequence.layer import single_all_to_all

    from learner.tensors.sequence_groups import sequence_group

    group = sequence_group(world)
    torch.manual_seed(dist.get_rank())
    query = torch.randn(1, 4, 3, 5)
    (heads,) = group.to_heads([query])
    theirs = single_all_to_all(query.transpose(1, 2), 2, 1, 0, group.process_group)
    back = single_all_to_all(theirs, 1, 2, 0, group.process_group)
    return [(heads[None], theirs), (group.to_positions(heads), back), (back.transpose(1, 2), query)]


def _main(rank: int, world: int, port: int, directory: Path, scenario: str) -> None:
    set_environment(CONFIG, place_of(rank, world, port))
    torch.set_num_threads(1)
    join_process_group(CONFIG)
    results: dict[Any, Any] = {(name, way): split_row(name, way, world) for name in SUPPORTED for way in WAYS}
    torch.save(results | {"exchanges": exchanges(world)}, directory / f"{scenario}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5])
