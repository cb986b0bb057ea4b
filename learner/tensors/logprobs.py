"""Token log-probs of completions from hidden states, a chunk of tokens at a time. Knows nothing of losses or ranks.

A vocabulary of 150,000 makes the logits the largest tensor of a language model's training step by far. Here only the
positions that predict completion tokens meet the vocabulary, `chunk` of them at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from actors.errors import UsageError


def _slices(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


class _LinearLogProb(torch.autograd.Function):
    """log softmax(transform(h W^T + bias))[target] for each row; transform is z * scale, then c tanh(z / c)."""

    @staticmethod
    def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: tuple[float, float]):
        """float32 logits [n, v] of a chunk; `scale` is applied before and after the soft cap."""
        z = (hidden @ weight.T).float()
        if bias is not None:
            z += bias.float()
        z *= scale[0]
        if softcap is not None:
            z = z.div_(softcap).tanh_().mul_(softcap)
        return z.mul_(scale[1])

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, chunk, softcap, scale):
        logsumexp = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs = torch.empty_like(logsumexp)
        for part in _slices(len(hidden), chunk):
            z = _LinearLogProb._logits(hidden[part], weight, bias, softcap, scale)
            logsumexp[part] = z.logsumexp(-1)
            logprobs[part] = z.gather(-1, targets[part, None])[:, 0] - logsumexp[part]
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
        ctx.chunk, ctx.softcap, ctx.scale = chunk, softcap, scale
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad):
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_weight else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if needs_bias else None
        for part in _slices(len(hidden), ctx.chunk):
            z = _LinearLogProb._logits(hidden[part], weight, bias, ctx.softcap, ctx.scale)
            # The cap's slope needs the capped logits, which the softmax below overwrites.
            slope = None if ctx.softcap is None else (z / (ctx.softcap * ctx.scale[1])).square_().neg_().add_(1.0)
            g = grad[part, None]
            d_logits = z.sub_(logsumexp[part, None]).exp_().mul_(-g)
            d_logits.scatter_add_(-1, targets[part, None], g)
            if slope is not None:
                d_logits *= slope
            d_logits *= ctx.scale[0] * ctx.scale[1]
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[part]
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 4,
        )


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    chunk: int = 512,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs [n] (float32, nats) of `targets` [n] under softmax of the logits of `hidden` [n, d], `weight` [v, d].

    The logits are `z = (hidden weight^T + bias) * logit_scale`, capped to `softcap * tanh(z / softcap)` where the model
    caps, and divided by `temperature`. At most [chunk, v] logits exist at a time; logsumexp is float32 whatever the
    inputs are, because on bfloat16's grid log-probs near -11 nats are 0.06 apart. Differentiable once, by `hidden`,
    `weight` and `bias`; the gradient of `weight` is summed over chunks in float32.
    """
    return _LinearLogProb.apply(hidden, weight, bias, targets, chunk, softcap, (logit_scale, 1.0 / temperature))


class LogProbHead(nn.Module):
    """A language model head that answers with the log-probs of given tokens instead of logits.

    It holds the head's own parameters, shared as tied embeddings are, so that ZeRO-3 gathers them around this
    module's forward and backward pass exactly as it does for the layer they came from.
    """

    def __init__(self, head: nn.Module, chunk: int, logit_scale: float, softcap: float | None) -> None:
        super().__init__()
        self.weight = head.weight
        self.register_parameter("bias", getattr(head, "bias", None))
        self.chunk, self.logit_scale, self.softcap = chunk, logit_scale, softcap

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """float32 logits [n, v] of `hidden` [n, d], divided by `temperature`."""
        scale = (self.logit_scale, 1.0 / temperature)
        return _LinearLogProb._logits(hidden, self.weight, self.bias, self.softcap, scale)

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float, mixture: Mixture | None = None) -> Any:
        """Log-probs [n] of `targets` [n]; with `mixture` also theirs under it, [n] without gradient."""
        logprobs = linear_logprobs(
            hidden, self.weight, targets, self.bias,
            chunk=self.chunk, logit_scale=self.logit_scale, softcap=self.softcap, temperature=temperature,
        )  # fmt: skip
        if mixture is None:
            return logprobs
        return logprobs, mixture_logprobs(hidden, self, targets, mixture, temperature)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a policy pi is mixed with: a second model mu at the same positions, and its weight."""

    beta: float
    """b of pi^(1-b) mu^b."""
    hidden: Tensor
    """[n, d] of mu."""
    head: LogProbHead
    """Of mu, its weights whole."""


@torch.no_grad()
def mixture_logprobs(
    hidden: Tensor, head: LogProbHead, targets: Tensor, mixture: Mixture, temperature: float = 1.0
) -> Tensor:
    """Log-probs [n] (float32, nats) of `targets` [n] under the mixture of pi = softmax(head(hidden)) and mu.

        log pi^b = (1 - b) log pi + b log mu - log sum_v pi^(1-b) mu^b

    token by token (Munos et al. 2023, "Nash Learning from Human Feedback", section 7, at each prefix). Both models'
    logits are divided by `temperature` T, which is the same distribution as (pi^(1-b) mu^b)^(1/T), normalised, of the
    models at temperature 1. At most `head.chunk` rows of each model's logits exist at a time.
    """
    logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for part in _slices(len(targets), head.chunk):
        # The models' own normalisers cancel in the softmax of the mixed logits.
        z = head.logits(hidden[part], temperature)
        z = z.lerp_(mixture.head.logits(mixture.hidden[part], temperature), mixture.beta)
        logprobs[part] = z.gather(-1, targets[part, None])[:, 0] - z.logsumexp(-1)
    return logprobs


class PolicyWithLogProbs(nn.Module):
    """Any decoder-only causal language model of transformers, seen as a function from tokens to log-probs.

    `chunk` is in tokens; `temperature` divides the logits.
    Raises UsageError when the model has no linear head over a decoder.
    """

    def __init__(self, model: nn.Module, chunk: int = 512, temperature: float = 1.0) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        if head is None or decoder is None or decoder is model or getattr(head, "weight", None) is None:
            raise UsageError(
                f"the model class {type(model).__name__} has no linear language-model head over a decoder; "
                "give a decoder-only causal language model (transformers' AutoModelForCausalLM)"
            )
        self.model = model
        self.head = LogProbHead(head, chunk, *_head_transform(model.config))
        self.temperature = temperature

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        targets: Tensor,
        temperature: float | None = None,
        *,
        mixture: Mixture | None = None,
        with_hidden: bool = False,
        position_ids: Tensor | None = None,
    ) -> Any:
        """Log-probs [n] (float32, nats) of `targets` [n], predicted at `input_ids[rows, columns]`; input_ids [b, t].

        Sequences are padded on the right, so that causal attention keeps the padding from every real token and no
        attention mask is needed. `temperature` overrides the module's own. With `mixture` a pair: these, and the
        log-probs [n] under the mixture with that model, without gradient. With `with_hidden` a pair: these, and the
        last hidden states [n, d] at the positions, without gradient. Where a row holds several sequences,
        `position_ids` [b, t] start again at each of them.
        """
        positions = {} if position_ids is None else {"position_ids": position_ids}
        states = self.model.get_decoder()(input_ids=input_ids, use_cache=False, **positions).last_hidden_state
        hidden = states[rows, columns]
        result = self.head(hidden, targets, self.temperature if temperature is None else temperature, mixture)
        return (result, hidden.detach()) if with_hidden else result

    @torch.no_grad()
    def check(self, tolerance: float) -> None:
        """Compares itself with the model's own logits on a short sequence, before any training.

        Raises UsageError when a log-prob differs by more than `tolerance` nats: the model class then does something to
        its logits that this module does not know of, and would be trained towards the wrong distribution.
        """
        tokens = torch.arange(8, device=self.head.weight.device)[None] % self.head.weight.shape[0]
        positions = torch.arange(7, device=tokens.device)
        ours = self(tokens, torch.zeros_like(positions), positions, tokens[0, 1:], temperature=1.0)
        logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        theirs = logits.log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
        difference = float((ours - theirs).abs().max())
        if not difference <= tolerance:
            raise UsageError(
                f"log-probs computed from the head of {type(self.model).__name__} differ from the model's own by "
                f"{difference:.3g} nats, more than {tolerance:g}; this architecture transforms its logits in a way "
                "that is not supported. Use another architecture, or check that its weights are finite"
            )


def _head_transform(config: Any) -> tuple[float, float | None]:
    """Factor and soft cap on the logits: Cohere multiplies, Granite divides, Gemma 2 caps, most do nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    return scale, None if softcap is None else float(softcap)
