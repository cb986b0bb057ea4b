"""PPO on scored completions with a value for each token, as pure functions. Must not depend on models or ranks."""

import torch
from torch import Tensor

from learner.losses.anchor import anchored, pulled_to
from learner.losses.clipping import clipped_gains
from learner.losses.config import PpoLossConfig
from learner.losses.games import GameBatch, GameOutput, distances


def ppo_loss(batch: GameBatch, config: PpoLossConfig, anchor_weight: float = 0.0) -> GameOutput:
    """Compute the loss and metrics of each group, [g] each: the mean over all tokens of its completions of

        -min(r A, clip(r, 1 - clip, 1 + clip) A) + value_weight (V - R)^2 / 2,        r = pi / b

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7 and 9. A is `generalised_advantages` of the
    rewards -tau (log pi - log mu), to which a completion's last token adds its score, and R = A + V. A and R are
    constants. `value_error` is the mean of (V - R)^2.
    """
    assert batch.values is not None
    own = slice(batch.players)
    mask = batch.mask[:, own].to(batch.policy.dtype)
    policy, values = batch.policy[:, own], batch.values[:, own] * mask
    prior = batch.reference
    if batch.anchor is not None:
        prior, config = pulled_to(prior, batch.anchor, config.tau, anchor_weight), anchored(config, anchor_weight)
    last = mask * (mask.flip(-1).cumsum(-1).flip(-1) == 1.0)
    rewards = batch.scores[:, own, None].to(mask) * last - config.tau * (policy.detach() - prior[:, own]) * mask
    advantage = generalised_advantages(rewards, values.detach(), mask, config.gamma, config.decay)
    returns = advantage + values.detach()

    gains, ratios = clipped_gains(batch, advantage, config.clip, config.clip)
    error = (values - returns).square()
    count = mask.sum((-1, -2)).clamp(min=1.0)
    loss = ((0.5 * config.value_weight * error - gains) * mask).sum((-1, -2)) / count

    whole = advantage[..., 0]
    metrics = {
        **distances(batch),
        **ratios,
        "advantage_std": whole.std(-1, correction=0),
        "value_error": (error.detach() * mask).sum((-1, -2)) / count,
    }
    return GameOutput(loss=loss, metrics=metrics, advantages=whole)


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, decay: float) -> Tensor:
    """Return the advantage [..., t] of each token: sum over l of (gamma decay)^l delta_{t+l},

        delta_t = r_t + gamma V_{t+1} - V_t,

    with V = 0 after the last token. Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized
    Advantage Estimation", eq. 16. Tokens of a completion stand first; `mask` [..., t] is 0 behind them.
    """
    advantages = torch.zeros_like(rewards)
    following, later = torch.zeros_like(rewards[..., 0]), torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        delta = rewards[..., t] + gamma * following - values[..., t]
        later = (delta + gamma * decay * later) * mask[..., t]
        following = values[..., t] * mask[..., t]
        advantages[..., t] = later
    return advantages
