"""Answers of the model in training."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learner.tensors.sampling import sample_answer


def model_of(vocabulary: int = 12) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def test_equal_weights_give_equal_answers_and_the_process_keeps_its_random_stream_and_mode():
    model = model_of().train()
    model.gradient_checkpointing_enable()
    before = torch.get_rng_state()
    answer = sample_answer(model, (3, 4, 5), 20, ends=())
    assert answer == sample_answer(model, (3, 4, 5), 20, ends=())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert len(answer) == 20


def test_each_token_is_drawn_from_the_whole_context_as_without_a_cache():
    """The slow path: every prefix anew, with the same stream of random numbers."""
    model, ids = model_of(), [3, 4, 5]
    generator = torch.Generator().manual_seed(len(ids))
    for _ in range(10):
        probabilities = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    assert tuple(ids[3:]) == sample_answer(model, (3, 4, 5), 10, ends=())


def test_an_end_is_never_drawn():
    model = model_of(vocabulary=4)
    assert set(sample_answer(model, (1,), 50, ends=(0, 3))) == {1, 2}
