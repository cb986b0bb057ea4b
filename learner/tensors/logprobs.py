"""Token log-probs of completions from hidden states, a chunk of tokens at a time. Must not depend on losses.

With a vocabulary of 150,000 the logits are by far the largest tensor of a training step. Here logits exist only for the
positions that predict completion tokens, `chunk` of them at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from actors.errors import UsageError
from learner.tensors.batching import TokenBatch
from learner.tensors.sequence_parallel import SequenceGroup


def _slices(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """A model's transform of its head's output z: z * scale, then softcap * tanh(z / softcap), then z / temperature."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    in_float32: bool = False
    """True to compute z in float32 from weights and hidden states of any dtype; False in their dtype."""

    @property
    def after_cap(self) -> float:
        """Factor applied after the soft cap."""
        return 1.0 / self.temperature


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    """Compute float32 logits [n, v] of a chunk."""
    z = _in_float32(hidden, weight.T) if transform.in_float32 else (hidden @ weight.T).float()
    if bias is not None:
        z += bias.float()
    z *= transform.scale
    if transform.softcap is not None:
        z = z.div_(transform.softcap).tanh_().mul_(transform.softcap)
    return z.mul_(transform.after_cap)


def _in_float32(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices with a float32 result; on a GPU without a float32 copy of either, as the engine does."""
    if left.is_cuda and left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class _LinearLogProb(torch.autograd.Function):
    """log softmax(transform(h W^T + bias))[target] for each row."""

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, chunk, transform):
        logsumexp = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs = torch.empty_like(logsumexp)
        for part in _slices(len(hidden), chunk):
            z = _logits(hidden[part], weight, bias, transform)
            logsumexp[part] = z.logsumexp(-1)
            logprobs[part] = z.gather(-1, targets[part, None])[:, 0] - logsumexp[part]
            del z  # before the next chunk's is made
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
        ctx.chunk, ctx.transform = chunk, transform
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors
        transform: LogitTransform = ctx.transform
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_weight else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if needs_bias else None
        for part in _slices(len(hidden), ctx.chunk):
            z = _logits(hidden[part], weight, bias, transform)
            slope = None
            if transform.softcap is not None:
                # Computed from the capped logits, which the softmax below overwrites.
                slope = (z / (transform.softcap * transform.after_cap)).square_().neg_().add_(1.0)
            g = grad[part, None]
            d_logits = z.sub_(logsumexp[part, None]).exp_().mul_(-g)
            d_logits.scatter_add_(-1, targets[part, None], g)
            if slope is not None:
                d_logits *= slope
            d_logits *= transform.scale * transform.after_cap
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            if not transform.in_float32:
                d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight.to(d_logits.dtype)
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[part].to(d_logits.dtype)
            del z, g, d_logits, slope  # before the next chunk's are made
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 3,
        )


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int = 512,
    transform: LogitTransform = LogitTransform(),
) -> Tensor:
    """Compute log-probs [n] (float32, nats) of `targets` [n] under softmax of transform(hidden weight^T + bias).

    `hidden` is [n, d], `weight` [v, d], `bias` [v]. At most [chunk, v] logits exist at a time. logsumexp is float32 for
    all input dtypes, because bfloat16 values near -11 are 0.06 apart. Differentiable once, with respect to `hidden`,
    `weight` and `bias`; the gradient of `weight` is summed over chunks in float32.
    """
    return _LinearLogProb.apply(hidden, weight, bias, targets, chunk, transform)


class LogProbHead(nn.Module):
    """A language-model head that returns log-probs of given tokens instead of logits.

    It shares the parameters of the original head, as tied embeddings do, so that ZeRO-3 gathers them around this
    module's forward and backward pass.
    """

    def __init__(self, head: nn.Module, chunk: int, transform: LogitTransform) -> None:
        super().__init__()
        self.weight = head.weight
        self.register_parameter("bias", getattr(head, "bias", None))
        self.chunk, self._transform = chunk, transform

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """Compute float32 logits [n, v] of `hidden` [n, d], divided by `temperature`."""
        return _logits(hidden, self.weight, self.bias, replace(self._transform, temperature=temperature))

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float, mixture: Mixture | None = None) -> Any:
        """Compute log-probs [n] of `targets` [n]; with `mixture` also those under it, [n] without gradient."""
        transform = replace(self._transform, temperature=temperature)
        logprobs = linear_logprobs(hidden, self.weight, targets, self.bias, chunk=self.chunk, transform=transform)
        if mixture is None:
            return logprobs
        return logprobs, mixture_logprobs(hidden, self, targets, mixture, temperature)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The model mu that a policy pi is mixed with at the same positions, and its weight."""

    beta: float  # b of pi^(1-b) mu^b
    hidden: Tensor  # last hidden states of mu, [n, d]
    head: LogProbHead  # head of mu, its weights gathered


@torch.no_grad()
def mixture_logprobs(
    hidden: Tensor, head: LogProbHead, targets: Tensor, mixture: Mixture, temperature: float = 1.0
) -> Tensor:
    """Compute log-probs [n] (float32, nats) of `targets` [n] under the mixture of pi = softmax(head(hidden)) and mu.

        log pi^b = (1 - b) log pi + b log mu - log sum_v pi^(1-b) mu^b

    token by token (Munos et al. 2023, "Nash Learning from Human Feedback", section 7, at each prefix). Both models'
    logits are divided by `temperature` T: that equals (pi^(1-b) mu^b)^(1/T), normalised, of the models at temperature
    1. At most `head.chunk` rows of each model's logits exist at a time.
    """
    logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for part in _slices(len(targets), head.chunk):
        # The models' normalisers cancel in the softmax of the mixed logits.
        z = head.logits(hidden[part], temperature)
        z = z.lerp_(mixture.head.logits(mixture.hidden[part], temperature), mixture.beta)
        logprobs[part] = z.gather(-1, targets[part, None])[:, 0] - z.logsumexp(-1)
        del z  # before the next chunk's is made
    return logprobs


class PolicyWithLogProbs(nn.Module):
    """A decoder-only causal language model of transformers as a function from tokens to log-probs.

    `chunk` is in tokens; `temperature` divides the logits. Raises UsageError if the model has no linear head over a
    decoder.
    """

    def __init__(self, model: nn.Module, chunk: int = 512, temperature: float = 1.0, head_dtype: str = "model") -> None:
        super().__init__()
        head = model.get_output_embeddings()
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        if head is None or decoder is None or decoder is model or getattr(head, "weight", None) is None:
            raise UsageError(
                f"model class {type(model).__name__} has no linear language-model head over a decoder; give a "
                "decoder-only causal language model (transformers' AutoModelForCausalLM)"
            )
        self.model = model
        transform = replace(_transform_of(model.config), in_float32=head_dtype == "float32")
        self.head = LogProbHead(head, chunk, transform)
        self.temperature = temperature
        self.value_head: nn.Linear | None = None
        self.shares_prompts = False  # whether `collate_shared` serves; set by who loads it
        self.sequences: SequenceGroup | None = None  # ranks that split each row; set by who loads it

    def add_value_head(self) -> None:
        """Add a linear head on the last hidden states that says the expected score, 0 at first."""
        weight = self.head.weight
        self.value_head = nn.Linear(weight.shape[1], 1, dtype=weight.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        batch: TokenBatch,
        temperature: float | None = None,
        *,
        mixture: Mixture | None = None,
        with_hidden: bool = False,
        with_values: bool = False,
    ) -> Any:
        """Compute log-probs [n] (float32, nats) of `batch.targets` [n].

        No attention mask is needed: padding is on the right, so that causal attention hides it from every real token.
        `temperature` overrides the module's own. With `mixture`, returns a pair: these, and the log-probs [n] under the
        mixture with that model, without gradient. With `with_hidden`, returns a pair: these, and the last hidden states
        [n, d] at their positions, without gradient; if ranks split the row, those of this rank's positions. With
        `with_values`, returns a pair: these, and the value head's values [n] (float32) before each target.
        """
        split = None if self.sequences is None else self.sequences.split(batch)
        part = batch if split is None else split.part
        options: dict[str, Any] = {} if part.position_ids is None else {"position_ids": part.position_ids}
        if part.layout is not None:
            # A mask of four dimensions keeps transformers from making one of [t, t].
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=part.input_ids.device)
            options |= {"layout": part.layout, "attention_mask": mask, "sequences": self.sequences}
        states = self.model.get_decoder()(input_ids=part.input_ids, use_cache=False, **options).last_hidden_state
        hidden = states[part.rows, part.columns]
        result = self.head(hidden, part.targets, self.temperature if temperature is None else temperature, mixture)
        if split is not None:
            result = split.whole(result) if mixture is None else tuple(map(split.whole, result))
        if with_values:
            assert self.value_head is not None
            values = self.value_head(hidden)[:, 0].float()
            return result, values if split is None else split.whole(values)
        return (result, hidden.detach()) if with_hidden else result

    @torch.no_grad()
    def check(self, tolerance: float) -> None:
        """Compare with the model's own logits on a short sequence.

        Raises UsageError if a log-prob differs by more than `tolerance` nats: the model class then transforms its
        logits in an unsupported way, and training would fit the wrong distribution.
        """
        tokens = torch.arange(8, device=self.head.weight.device)[None] % self.head.weight.shape[0]
        positions = torch.arange(7, device=tokens.device)
        batch = TokenBatch(tokens, torch.zeros_like(positions), positions, tokens[0, 1:], tokens=8)
        ours = self(batch, temperature=1.0)
        logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        theirs = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        difference = float((ours - theirs).abs().max())
        if not difference <= tolerance:
            raise UsageError(
                f"log-probs computed from the head of {type(self.model).__name__} differ from the model's own by "
                f"{difference:.3g} nats (tolerance {tolerance:g}): this architecture transforms its logits in an "
                "unsupported way. Use another architecture, or check that its weights are finite"
            )


def _transform_of(config: Any) -> LogitTransform:
    """Read the transform of a model's logits: Cohere multiplies, Granite divides, Gemma 2 caps, most do nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    return LogitTransform(scale, None if softcap is None else float(softcap))
