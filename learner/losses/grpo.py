"""GRPO on groups of scored completions, as a pure function. Must not depend on models, ranks or batching."""

from torch import Tensor

from learner.losses.clipping import clipped_gains
from learner.losses.config import GrpoLossConfig
from learner.losses.games import GameBatch, GameOutput, distances

SMALLEST_SCALE = 1e-6
"""Added to a group's standard deviation: scores that are all equal give advantages of 0."""


def grpo_loss(batch: GameBatch, config: GrpoLossConfig, anchor_weight: float = 0.0) -> GameOutput:
    """Compute the loss and metrics of each group, [g] each: the mean over completions of the mean over their tokens of

        -min(r A, clip(r, 1 - clip, 1 + clip_high) A) + tau (mu/pi - log mu/pi - 1),        r = pi / b

    with A the score minus the group's mean, divided by its standard deviation if `scale`. Shao et al. 2024,
    "DeepSeekMath", eq. 3 and 4; their old policy is b, which sampled the token. An anchor adds the divergence to u.
    """
    own = slice(batch.players)
    mask = batch.mask[:, own].to(batch.policy.dtype)
    policy, scores = batch.policy[:, own], batch.scores[:, own].to(mask)
    centred = scores - scores.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    advantage = centred / (deviation + SMALLEST_SCALE) if config.scale else centred

    high = config.clip if config.clip_high is None else config.clip_high
    gains, ratios = clipped_gains(batch, advantage[..., None], config.clip, high)
    pull = config.tau * _divergence(batch.reference[:, own] - policy)
    if batch.anchor is not None:
        pull = pull + anchor_weight * _divergence(batch.anchor[:, own] - policy)
    tokens = mask.sum(-1).clamp(min=1.0)
    loss = (((pull - gains) * mask).sum(-1) / tokens).mean(-1)

    metrics = {**distances(batch), **ratios, "advantage_std": advantage.std(-1, correction=0)}
    return GameOutput(loss=loss, metrics=metrics, advantages=advantage)


def _divergence(log_ratio: Tensor) -> Tensor:
    """Estimate KL(pi || mu) on each token from log_ratio = log mu - log pi: never negative (Schulman 2020's k3)."""
    return log_ratio.exp() - log_ratio - 1.0
