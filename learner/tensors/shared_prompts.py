"""Rows in which a prompt stands once for all its completions, and the attention that they need.

A completion attends to its prompt and to itself, as if it stood alone. Only attention knows: all else that a model
computes, it computes for each token of the row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from actors.records import without
from learner.tensors.batching import AnySequence, TokenBatch, checked, collate
from learner.tensors.layout import Block, Layout, layout_of
from learner.tensors.sequence_parallel import SequenceGroup

ATTENTION = "offbeat_shared_prompts"
"""Name under which transformers finds this module's attention."""


def collate_shared(sequences: Sequence[AnySequence], device: torch.device | str = "cpu") -> TokenBatch:
    """Put `sequences` in one row, equal prompts once; targets keep the order of `sequences`.

    Raises UsageError for an empty prompt or response.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    parts = [checked(sequence) for sequence in sequences]
    for index, (prompt, _, _) in enumerate(parts):
        members.setdefault(tuple(prompt), []).append(index)
    tokens: list[int] = []
    positions: list[int] = []
    columns: list[list[int]] = [[]] * len(parts)
    for prompt, indices in members.items():
        last = len(tokens) + len(prompt) - 1
        tokens += prompt
        positions += range(len(prompt))
        for index in indices:
            _, response, given = parts[index]
            columns[index] = without([last, *range(len(tokens), len(tokens) + len(response) - 1)], given)
            tokens += response
            positions += range(len(prompt), len(prompt) + len(response))
    groups = [(len(prompt), [len(parts[each][1]) for each in own]) for prompt, own in members.items()]
    places = torch.tensor([place for own in columns for place in own])
    targets = [token for _, response, given in parts for token in without(response, given)]
    return TokenBatch(
        input_ids=torch.tensor([tokens]).to(device),
        rows=torch.zeros_like(places).to(device),
        columns=places.to(device),
        targets=torch.tensor(targets).to(device),
        tokens=len(tokens),
        position_ids=torch.tensor([positions]).to(device),
        layout=layout_of(groups, device),
    )


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa`, or within the blocks of `layout`; the mask that comes with it means nothing.

    Shapes: query [1, h, t, d], key and value [1, h', t, d] with h' a divisor of h; returns [1, t, h, d]. With
    the option `sequences`, all three hold this rank's positions, and so does the result.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    layout.calls += 1
    sequences: SequenceGroup | None = options.get("sequences")
    if sequences is None:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    else:
        q, k, v = sequences.to_heads((query, key, value))
    window, heads = options.get("sliding_window"), q.shape[1] // k.shape[1]
    parts = [
        # Long sequences, for which ranks split them, get no mask: it would be as large on each as without the others.
        _attend_causally(block, q, k, v, scaling)
        if sequences is not None and window is None and block.long
        else _attend(block, q, k, v, layout.mask(number, window, heads, query.dtype), scaling)
        for number, block in enumerate(layout.blocks)
    ]
    output = torch.cat(parts).index_select(0, layout.outputs)
    return output[None] if sequences is None else sequences.to_positions(output), None


def _attend(block: Block, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attend within a block; query, key and value are [t, h, d], the result is [n * q, h, d]."""
    count, most = block.positions.shape
    q, k, v = (
        tensor.index_select(0, places).unflatten(0, (count, -1)).transpose(1, 2)
        for tensor, places in ((query, block.queries), (key, block.keys), (value, block.keys))
    )
    # Heads that share keys stand one after the other as queries, so that keys are not copied for each.
    heads, shared = q.shape[1], k.shape[1]
    q = q.reshape(count, shared, heads // shared * most, q.shape[-1])
    output = scaled_dot_product_attention(q, k, v, mask, scale=scaling)
    return output.reshape(count, heads, most, v.shape[-1]).transpose(1, 2).flatten(0, 1)


def _attend_causally(block: Block, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend as `_attend` without a mask: each completion after its prompt, whose queries are computed once more."""
    most, outputs = block.positions.shape[1], []
    for (queries, keys), places in zip(block.parts, block.keys.view(len(block.parts), -1), strict=True):
        q, k, v = (tensor.index_select(0, places[:keys]).transpose(0, 1)[None] for tensor in (query, key, value))
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        outputs.append(pad(output[0, :, -queries:].transpose(0, 1), (0, 0, 0, 0, 0, most - queries)))
    return torch.cat(outputs)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)


@torch.no_grad()
def supports(policy: Any, tolerance: float) -> bool:
    """Let a policy's model attend by layouts if it can; return whether it does.

    Two groups are scored in one row and each sequence alone. All layers must use this module's attention (others, as
    state-space layers, mix the sequences of a row), and no log-prob may differ by more than `tolerance` nats.
    """
    config = policy.model.config
    adopt(policy.model)
    if config._attn_implementation != ATTENTION:
        return False
    vocabulary, layers = policy.head.weight.shape[0], config.get_text_config().num_hidden_layers
    tokens = [index % vocabulary for index in range(1, 20)]
    sequences = [(tokens[:4], tokens[4:6]), (tokens[:4], tokens[6:12]), (tokens[12:14], tokens[14:])]
    device = policy.head.weight.device
    batch = collate_shared(sequences, device)
    try:
        shared = policy(batch)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False
    difference = (shared - policy(collate(sequences, device))).abs().max()
    calls = 0 if batch.layout is None else batch.layout.calls
    return calls == layers and float(difference) <= tolerance


def adopt(model: Any) -> None:
    """Let a model built with torch's fused attention attend by layouts, where it is given one."""
    if model.config._attn_implementation == "sdpa":
        model.config._attn_implementation = ATTENTION
