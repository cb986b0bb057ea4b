"""Losses on preferred pairs as pure functions of log-probs. Must not depend on models, ranks or batching.

Every loss is a convex function f of one number per pair, the log-ratio difference

    h = [log pi(y_w|x) - log pi(y_l|x)] - [log mu(y_w|x) - log mu(y_l|x)]        (nats)

with y_w chosen, y_l rejected, pi the policy and mu the frozen reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learner.losses.config import BestOfNLossConfig, PairLossConfig


@dataclass(frozen=True, slots=True)
class LossOutput:
    """One loss per pair, and its metrics."""

    loss: Tensor  # [b], nats for dpo; carries the gradient
    metrics: dict[str, Tensor]
    """[b] each, detached: `margin` (implicit reward margin beta * h) and `accuracy` (1 if h > 0, else 0)."""


def _loss_of_difference(h: Tensor, config: PairLossConfig) -> Tensor:
    """Return f(h) [b] without label smoothing; h [b] in nats."""
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
    """Compute each pair's loss from sequence log-probs (nats, summed over the completion's tokens); all inputs [b].

    * dpo: -log sigmoid(beta h). Rafailov et al. 2023, "Direct Preference Optimization", eq. 7.
    * ipo: (h - 1/(2 beta))^2. Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
      Preferences", eq. 17, whose tau is beta here.
    * slic: max(0, 1 - beta h). Zhao et al. 2023, "SLiC-HF", eq. 1, on log-ratios to the reference and with the margin
      normalised to 1, as in Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", eq. 10.

    `probability` p is the probability that chosen is preferred to rejected, 1 if unset. The loss is then its
    expectation, p f(h) + (1 - p) f(-h). Label smoothing eps flips each preference with probability eps, so it replaces
    p by (1 - eps) p + eps (1 - p); for dpo and p = 1 this is the conservative DPO of Mitchell 2023, "A note on DPO with
    noisy preferences".
    """
    h = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    loss = _loss_of_difference(h, config)
    if config.label_smoothing > 0.0 or probability is not None:
        eps = config.label_smoothing
        p = 1.0 - eps if probability is None else (1.0 - eps) * probability + eps * (1.0 - probability)
        loss = p * loss + (1.0 - p) * _loss_of_difference(-h, config)
    margin = config.beta * h.detach()
    return LossOutput(loss=loss, metrics={"margin": margin, "accuracy": (margin > 0.0).to(margin.dtype)})


def has_residual(config: PairLossConfig | BestOfNLossConfig) -> bool:
    """Return whether the loss has a fixed point at which its pairs' `residual` is 0 on average."""
    return config.kind in ("dpo", "ipo")


def residual(margin: Tensor, config: PairLossConfig) -> Tensor:
    """Return what the label exceeds the policy's own preference by [b], from `margin` = beta h [b].

    With label p it is p - sigma(beta h) for dpo and p - 1/2 - beta h for ipo: the loss's slope in h, divided by -beta
    and by -2 / beta.
    """
    label = 1.0 - config.label_smoothing
    return label - margin.sigmoid() if config.kind == "dpo" else label - 0.5 - margin


def best_of_n_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> LossOutput:
    """Compute -log pi(y_w) (nats) of each pair's best completion from sequence log-probs; all inputs [b].

    Noukhovitch et al. 2024, "Asynchronous RLHF", section 3.3 (best-of-2). The margin is h, with beta 1.
    """
    margin = ((chosen - rejected) - (ref_chosen - ref_rejected)).detach()
    return LossOutput(loss=-chosen, metrics={"margin": margin, "accuracy": (margin > 0.0).to(margin.dtype)})


def tie_loss(config: PairLossConfig | BestOfNLossConfig) -> float:
    """Return the constant loss of a tie, f(0): h = 0, because both completions are equal, so the gradient is 0.

    With `best_of_n` a tie has no best completion, and counts as 0.
    """
    if isinstance(config, BestOfNLossConfig):
        return 0.0
    zero = torch.zeros(1, dtype=torch.float64)
    return float(preference_loss(zero, zero, zero, zero, config).loss[0])
