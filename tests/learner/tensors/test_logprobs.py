"""Chunked log-probs against plain log_softmax in float64, and the memory they promise to save."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig
from transformers.models.auto import AutoModelForCausalLM

from actors.errors import UsageError
from learner.tensors.batching import TokenBatch
from learner.tensors.logprobs import (
    LogitTransform,
    LogProbHead,
    Mixture,
    PolicyWithLogProbs,
    linear_logprobs,
    mixture_logprobs,
)

N, D, V = 37, 8, 23


def inputs(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype)
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    bias = torch.randn(V, generator=generator, dtype=dtype)
    targets = torch.randint(V, (N,), generator=generator)
    upstream = torch.randn(N, generator=generator, dtype=torch.float32)
    return hidden, weight, bias, targets, upstream


def naive(hidden, weight, bias, targets, scale, softcap, temperature):
    z = hidden @ weight.T
    if bias is not None:
        z = z + bias
    z = z * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return (z / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [1, 5, 37, 512])
@pytest.mark.parametrize(
    ("with_bias", "scale", "softcap", "temperature"),
    [(False, 1.0, None, 1.0), (True, 1.0, None, 0.7), (False, 0.25, None, 1.3), (True, 2.0, 3.0, 0.7)],
)
def test_values_and_gradients_equal_those_of_log_softmax_in_float64(chunk, with_bias, scale, softcap, temperature):
    hidden, weight, bias, targets, upstream = inputs()
    leaves = [t.requires_grad_() for t in (hidden, weight) + ((bias,) if with_bias else ())]
    expected = naive(hidden, weight, bias if with_bias else None, targets, scale, softcap, temperature)
    expected_grads = torch.autograd.grad((expected * upstream).sum(), leaves)

    single = [t.detach().float().requires_grad_() for t in leaves]
    ours = linear_logprobs(
        single[0], single[1], targets, single[2] if with_bias else None,
        chunk=chunk, transform=LogitTransform(scale, softcap, temperature),
    )  # fmt: skip
    ours_grads = torch.autograd.grad((ours * upstream).sum(), single)

    assert torch.allclose(ours.double(), expected, atol=2e-5)
    for got, want in zip(ours_grads, expected_grads, strict=True):
        assert torch.allclose(got.double(), want, atol=5e-5)


@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_head_in_float32_rounds_no_logit_of_bfloat16_weights(chunk, softcap):
    """Against float64 on the same values; the head in bfloat16 is a hundred times further away."""
    hidden, weight, _, targets, upstream = inputs()
    leaves = [t.bfloat16().double().requires_grad_() for t in (hidden, weight)]
    expected = naive(*leaves, None, targets, 1.0, softcap, 0.7)
    expected_grads = torch.autograd.grad((expected * upstream).sum(), leaves)

    half = [t.detach().bfloat16().requires_grad_() for t in leaves]
    exact, rounded = (
        linear_logprobs(*half, targets, chunk=chunk, transform=LogitTransform(1.0, softcap, 0.7, in_float32))
        for in_float32 in (True, False)
    )
    assert torch.allclose(exact.double(), expected, atol=2e-5)
    assert float((rounded.detach().double() - expected).abs().max()) > 2e-3
    for got, want in zip(torch.autograd.grad((exact * upstream).sum(), half), expected_grads, strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-4)  # rounded once, at the end


def test_bfloat16_inputs_are_reduced_in_float32():
    """On bfloat16's own grid log-probs near -11 are 0.06 apart; the reduction here must be far finer than that."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.zeros(N, D, dtype=torch.bfloat16)
    weight = torch.randn(60_000, D, generator=generator, dtype=torch.bfloat16)
    targets = torch.randint(60_000, (N,), generator=generator)
    logprobs = linear_logprobs(hidden, weight, targets)
    assert logprobs.dtype == torch.float32
    assert torch.allclose(logprobs, torch.full((N,), -torch.tensor(60_000.0).log().item()), atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's result has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_tensor_larger_than_chunk_times_vocabulary_exists_forward_or_backward():
    tokens, vocabulary, chunk = 400, 1000, 16
    hidden = torch.randn(tokens, D, requires_grad=True)
    weight = torch.randn(vocabulary, D, requires_grad=True)
    with LargestTensor() as largest:
        targets = torch.zeros(tokens, dtype=torch.int64)
        linear_logprobs(hidden, weight, targets, chunk=chunk, transform=LogitTransform(softcap=5.0)).sum().backward()
    assert largest.elements == chunk * vocabulary


def head(weight, bias, chunk, scale, softcap):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.float()
    if bias is not None:
        linear.bias.data = bias.float()
    return LogProbHead(linear, chunk, LogitTransform(scale, softcap))


@pytest.mark.parametrize("chunk", [5, 512])
@pytest.mark.parametrize("beta", [0.125, 0.7])
@pytest.mark.parametrize(
    ("with_bias", "scale", "softcap", "temperature"),
    [(False, 1.0, None, 1.0), (True, 1.0, None, 0.7), (True, 2.0, 3.0, 1.4)],
)
def test_the_mixture_is_what_an_engine_samples_at_that_temperature(chunk, beta, with_bias, scale, softcap, temperature):
    """The engine samples p ~ (pi^(1-b) mu^b)^(1/T) of the models at temperature 1; the learner divides both logits."""
    sides, tables = [], []
    for seed in range(2):
        hidden, weight, bias, targets, _ = inputs(seed=seed)
        bias = bias if with_bias else None
        tokens = torch.arange(V).repeat(N)
        logprobs = naive(hidden.repeat_interleave(V, 0), weight, bias, tokens, scale, softcap, 1.0)
        tables.append(logprobs.view(N, V))
        sides.append((hidden.float(), head(weight, bias, chunk, scale, softcap)))
    powers = (tables[0].exp() ** (1.0 - beta) * tables[1].exp() ** beta) ** (1.0 / temperature)
    expected = (powers / powers.sum(-1, keepdim=True)).log().gather(-1, targets[:, None])[:, 0]

    (hidden, own), (other_hidden, other) = sides
    ours = mixture_logprobs(hidden.requires_grad_(), own, targets, Mixture(beta, other_hidden, other), temperature)
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert not ours.requires_grad


def test_no_tensor_of_a_mixture_is_larger_than_chunk_times_vocabulary():
    tokens, vocabulary, chunk = 400, 1000, 16
    own, other = (head(torch.randn(vocabulary, D), None, chunk, 1.0, None) for _ in range(2))
    hidden = torch.randn(tokens, D)
    with LargestTensor() as largest:
        mixture_logprobs(hidden, own, torch.zeros(tokens, dtype=torch.int64), Mixture(0.5, hidden, other))
    assert largest.elements == chunk * vocabulary


TINY = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
MODELS = {
    "llama": LlamaConfig(**TINY, intermediate_size=64),
    "llama tied": LlamaConfig(**TINY, intermediate_size=64, tie_word_embeddings=True),
    "gpt2 tied": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2),
    "gemma2 capped": Gemma2Config(
        **TINY, intermediate_size=64, head_dim=16, num_key_value_heads=1, final_logit_softcapping=2.0
    ),
    "granite scaled": GraniteConfig(**TINY, intermediate_size=64, logits_scaling=4.0),
}


def build(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_completion_log_probs_and_gradients_equal_those_of_the_models_own_logits(name):
    model = build(name)
    first, second = [3, 7, 9, 11, 4, 5], [8, 2, 6]
    upstream = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])

    policy = PolicyWithLogProbs(model, chunk=2, temperature=0.7)
    policy.check(1e-4)
    input_ids = torch.tensor([first, [*second, 0, 0, 0]])
    rows, columns = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 3, 4, 0, 1])
    ours = policy(TokenBatch(input_ids, rows, columns, torch.tensor([11, 4, 5, 2, 6]), tokens=9))
    (ours * upstream).sum().backward()
    ours_grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    parts = []
    for tokens, prompt in ((first, 3), (second, 1)):
        logp = (model(input_ids=torch.tensor([tokens])).logits[0].double() / 0.7).log_softmax(-1)
        parts.append(logp[range(prompt - 1, len(tokens) - 1), tokens[prompt:]])
    expected = torch.cat(parts)
    (expected * upstream).sum().backward()

    assert torch.allclose(ours.double(), expected, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours_grads[name], parameter.grad, atol=1e-4), name


@pytest.mark.parametrize("name", ["llama", "gemma2 capped"])
def test_a_forward_pass_with_a_mixture_gives_both_log_probs_at_their_positions(name):
    model, other = build(name), build(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    ids = torch.tensor([[3, 7, 9, 11, 4]])
    targets = torch.tensor([11, 4])
    batch = TokenBatch(ids, torch.tensor([0, 0]), torch.tensor([2, 3]), targets, tokens=5)
    policy, reference = (PolicyWithLogProbs(each, chunk=1, temperature=0.7) for each in (model, other))
    reference_logprobs, hidden = reference(batch, with_hidden=True)
    logprobs, mixed = policy(batch, mixture=Mixture(0.25, hidden, reference.head))

    pi, mu = ((each(input_ids=ids).logits[0, 2:4].double() / 0.7).log_softmax(-1) for each in (model, other))
    expected = (0.75 * pi + 0.25 * mu).log_softmax(-1)
    for ours, table in ((logprobs, pi), (reference_logprobs, mu), (mixed, expected)):
        assert torch.allclose(ours.double(), table.gather(-1, targets[:, None])[:, 0], atol=1e-5)
    assert logprobs.requires_grad
    assert not hidden.requires_grad


def test_the_check_refuses_a_model_whose_logits_are_transformed_in_an_unknown_way():
    model = build("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: 2.0 * output)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM differ from the model's own by .* nats"):
        PolicyWithLogProbs(model).check(1e-3)


def test_a_model_without_a_language_model_head_is_refused():
    with pytest.raises(UsageError, match="LlamaModel has no linear language-model head"):
        PolicyWithLogProbs(build("llama").model)
