"""Preference losses as pure functions of log-probs. Knows nothing of models, ranks or batching.

Every loss is a convex function f of one number per pair, the log-ratio difference

    h = [log pi(y_w|x) - log pi(y_l|x)] - [log mu(y_w|x) - log mu(y_l|x)]        (nats)

with y_w chosen, y_l rejected, pi the policy and mu the frozen reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.config import PairLossConfig


@dataclass(frozen=True, slots=True)
class LossOutput:
    """One loss per pair, and what is worth watching."""

    loss: Tensor
    """[b], nats for dpo; carries the gradient."""
    metrics: dict[str, Tensor]
    """[b] each, detached: `margin` (implicit reward margin beta * h) and `accuracy` (1 where h > 0, else 0)."""


def _loss_of_difference(h: Tensor, config: PairLossConfig) -> Tensor:
    """f(h) without label smoothing; h [b] nats -> [b]."""
    if config.kind == "dpo":
        return -logsigmoid(config.beta * h)
    if config.kind == "ipo":
        return (h - 1.0 / (2.0 * config.beta)).square()
    return (1.0 - config.beta * h).clamp(min=0.0)


def preference_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    config: PairLossConfig,
    probability: Tensor | None = None,
) -> LossOutput:
    """Loss of each pair from sequence log-probs (nats, summed over the completion's tokens); all inputs [b].

    * dpo: -log sigmoid(beta h). Rafailov et al. 2023, "Direct Preference Optimization", eq. 7.
    * ipo: (h - 1/(2 beta))^2. Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
      Preferences", eq. 17, whose tau is beta here.
    * slic: max(0, 1 - beta h). Zhao et al. 2023, "SLiC-HF", eq. 1, on log-ratios to the reference and with the margin
      normalised to 1, as in Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", eq. 10.

    With `probability` p, that chosen is preferred to rejected, each becomes p f(h) + (1 - p) f(-h), the expected loss
    under that preference; unset, p is 1. With label smoothing eps the preference is taken to be the other way round
    with probability eps, whatever p: (1 - eps) p + eps (1 - p) takes p's place (for dpo and p = 1 the conservative DPO
    of Mitchell 2023, "A note on DPO with noisy preferences").
    """
    h = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    loss = _loss_of_difference(h, config)
    if config.label_smoothing > 0.0 or probability is not None:
        eps = config.label_smoothing
        p = 1.0 - eps if probability is None else (1.0 - eps) * probability + eps * (1.0 - probability)
        loss = p * loss + (1.0 - p) * _loss_of_difference(-h, config)
    margin = config.beta * h.detach()
    return LossOutput(loss=loss, metrics={"margin": margin, "accuracy": (margin > 0.0).to(margin.dtype)})


def tie_loss(config: PairLossConfig) -> float:
    """The constant loss of a tie, f(0): both completions count as one, so h = 0 and there is no gradient."""
    zero = torch.zeros(1, dtype=torch.float64)
    return float(preference_loss(zero, zero, zero, zero, config).loss[0])
