"""A prompt that stands once for all its completions: the row by hand, and log-probs and gradients of one at a time."""

import copy

import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from actors.errors import UsageError
from actors.hub import attention_of
from learner.backend.models import checkpoint_activations
from learner.tensors.batching import collate
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.shared_prompts import collate_shared, supports

VOCABULARY = 40
COMMON = {
    "vocab_size": VOCABULARY,
    # So large that a token's neighbours matter by nats.
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
}
SUPPORTED = {
    "llama": LlamaConfig(**COMMON, num_key_value_heads=2),
    "a window of four tokens": MistralConfig(**COMMON, num_key_value_heads=2, sliding_window=4),
    "qwen3": Qwen3Config(**COMMON, num_key_value_heads=1, head_dim=16),
    "gpt-2": GPT2Config(vocab_size=VOCABULARY, initializer_range=0.3, n_positions=64, n_embd=32, n_layer=3, n_head=4),
    "gpt-neox": GPTNeoXConfig(**COMMON),
    "phi-3": Phi3Config(**COMMON, num_key_value_heads=2, pad_token_id=0),
    "olmo-2": Olmo2Config(**COMMON, num_key_value_heads=2),
}
UNSUPPORTED = {
    "a cap on attention's logits, which fused attention leaves out": Gemma2Config(
        **COMMON, num_key_value_heads=2, head_dim=8
    ),
    "positions that are no argument of attention": BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4
    ),
    "no attention": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
}


def policy_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **attention_of(config))
    return PolicyWithLogProbs(model.float().eval(), chunk=7)


def sequences():
    """Three prompts, whose completions stand in any order; of one the environment wrote a part."""
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return tuple(torch.randint(VOCABULARY, (count,), generator=generator).tolist())

    first, second, third = tokens(9), tokens(2), tokens(17)
    lengths = [(first, 4), (second, 11), (first, 1), (third, 6), (first, 13), (second, 3)]
    return [(prompt, tokens(count), ((1, 2),) if count > 5 else ()) for prompt, count in lengths]


def gradients(policy, logprobs):
    """Of a sum in which every token has a weight of its own."""
    policy.zero_grad()
    (logprobs * torch.linspace(-1.0, 1.0, len(logprobs))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def test_a_row_by_hand():
    """Prompt 1 2 has completions 5 6 and 8, prompt 3 has 7 7 7, of which the environment wrote the second."""
    batch = collate_shared([((1, 2), (5, 6)), ((3,), (7, 7, 7), ((1, 2),)), ((1, 2), (8,))])
    assert batch.input_ids.tolist() == [[1, 2, 5, 6, 8, 3, 7, 7, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    # In the order of the sequences; 5 and 8 are both predicted where the prompt ends, the last 7 at the given one.
    assert batch.targets.tolist() == [5, 6, 7, 7, 8]
    assert (batch.rows.tolist(), batch.columns.tolist()) == ([0] * 5, [1, 2, 5, 7, 1])
    assert (batch.tokens, batch.padded_tokens) == (9, 9)


@pytest.mark.parametrize("sequence", [((), (1,)), ((1,), ())])
def test_an_empty_prompt_or_response_is_refused(sequence):
    with pytest.raises(UsageError, match="both must be at least 1"):
        collate_shared([((1,), (2,)), sequence])


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_log_probs_and_gradients_are_those_of_one_sequence_at_a_time(name, recomputes):
    policy = policy_of(SUPPORTED[name])
    assert supports(policy, 1e-3)
    if recomputes:
        checkpoint_activations(policy.model)
        policy.model.enable_input_require_grads()
    alone = torch.cat([policy(collate([sequence])) for sequence in sequences()])
    expected = gradients(policy, alone)
    together = policy(collate_shared(sequences()))
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    for name, gradient in gradients(policy, together).items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5 * float(expected[name].abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_whose_sequences_would_mix_is_not_supported_and_computes_as_before(name):
    policy = policy_of(UNSUPPORTED[name])
    before = policy(collate(sequences())).detach()
    assert not supports(policy, 1e-3)
    assert torch.equal(policy(collate(sequences())), before)


def test_rows_without_shared_prompts_are_computed_by_the_same_attention_as_before():
    policy = policy_of(SUPPORTED["llama"])
    before = policy(collate(sequences())).detach()
    assert supports(policy, 1e-3)
    assert torch.equal(policy(collate(sequences())), before)
