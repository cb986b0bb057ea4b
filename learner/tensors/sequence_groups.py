"""Groups of ranks that share micro-batches (`learner.sequence_parallel`), and which models can be split over them."""

from typing import Any, NamedTuple

import torch.distributed as dist

from actors.errors import UsageError
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.sequence_parallel import SequenceGroup

_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest position, of which a rank sees only its own."""


class Share(NamedTuple):
    """Micro-batches that a rank computes, alone or with others."""

    group: int
    """Its number among the groups, each of which computes a micro-batch at a time."""
    groups: int
    leads: bool
    """True if the rank reports them: one rank of each group does."""


def share_of(rank: int, ranks: int, size: int) -> Share:
    """Return the share of `rank` if groups of `size` of all `ranks` compute micro-batches together."""
    return Share(rank // size, ranks // size, leads=rank % size == 0)


def split_sequences(policy: PolicyWithLogProbs, size: int, name: str) -> None:
    """Let `policy`, of the model `name`, split its rows over groups of `size` ranks. Collective.

    Raises UsageError if the model's attention cannot be split.
    """
    if size == 1:
        return
    check_heads(policy.model.config.get_text_config(), size, name)
    if not policy.shares_prompts:
        raise UsageError(
            f"learner.sequence_parallel {size} needs attention that shares prompts, and that of {name} "
            f"({type(policy.model).__name__}) does not; set learner.sequence_parallel to 1, or use another architecture"
        )
    policy.sequences = sequence_group(size)


def check_heads(settings: Any, size: int, name: str) -> None:
    """Raise UsageError unless groups of `size` ranks can split the attention of a model with these settings."""
    heads = getattr(settings, "num_attention_heads", None)
    if isinstance(heads, int) and heads % size:
        fitting = [str(count) for count in range(1, heads + 1) if heads % count == 0]
        raise UsageError(
            f"learner.sequence_parallel {size} does not divide the {heads} attention heads of {name}; set it to one of "
            f"{', '.join(fitting)}"
        )
    found = sorted(_kinds(getattr(settings, "rope_parameters", None)) & set(_BY_LENGTH))
    if size > 1 and found:
        raise UsageError(
            f"learner.sequence_parallel {size} splits sequences, and the rotary embeddings of {name} ({found[0]}) "
            "depend on their whole length; set learner.sequence_parallel to 1, or use another model"
        )


def sequence_group(size: int) -> SequenceGroup:
    """Form groups of `size` consecutive ranks, and return this rank's. Collective."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks, size)]
    return SequenceGroup(size, rank % size, groups[rank // size])


def _kinds(rotary: Any) -> set[str]:
    """Return the kinds of rotary embeddings, of all layers or of each type of layer."""
    if not isinstance(rotary, dict):
        return set()
    nested = [kind for value in rotary.values() for kind in _kinds(value)]
    return {*nested, *([rotary["rope_type"]] if isinstance(rotary.get("rope_type"), str) else [])}
