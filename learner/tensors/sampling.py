"""An answer of the model in training itself, without an engine."""

from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def sample_answer(model: Any, prompt: Sequence[int], length: int, ends: Sequence[int]) -> tuple[int, ...]:
    """Sample `length` tokens after `prompt` at temperature 1, never one of `ends`.

    Equal weights give equal answers; random streams of the process are not touched. `model` is a causal language model
    of transformers, whose mode is restored.
    """
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(len(prompt))
    training, answer = model.training, []
    model.eval()  # with checkpointed gradients it would keep no cache
    ids, cache = torch.tensor([list(prompt)], device=device), None
    for _ in range(length):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits, cache = output.logits[0, -1].float(), output.past_key_values
        logits[list(ends)] = -torch.inf
        answer.append(int(torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)))
        ids = torch.tensor([answer[-1:]], device=device)
    model.train(training)
    return tuple(answer)
