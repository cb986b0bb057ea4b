"""The clipped policy gradient of PPO and GRPO, as a pure function. Must not depend on models, ranks or batching."""

import torch
from torch import Tensor

from learner.losses.games import GameBatch, effective_share


def clipped_gains(batch: GameBatch, advantage: Tensor, low: float, high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return min(r A, clip(r, 1 - low, 1 + high) A) of the players' tokens, and the metrics of their ratios, [g] each.

    r = pi / b; `advantage` A and the result are [g, K, t]. Schulman et al. 2017, "Proximal Policy Optimization
    Algorithms", eq. 7. `player_truncated` is the share of tokens whose ratio is cut, without gradient.
    """
    own = slice(batch.players)
    mask = batch.mask[:, own].to(batch.policy.dtype)
    ratio = ((batch.policy[:, own] - batch.behaviour[:, own]) * mask).exp()
    kept, cut = ratio * advantage, ratio.clamp(1.0 - low, 1.0 + high) * advantage
    truncated = (cut.detach() < kept.detach()) * mask
    return torch.minimum(kept, cut), {
        "player_ess": effective_share(ratio.detach().flatten(1), mask.flatten(1)),
        "player_truncated": truncated.sum((-1, -2)) / mask.sum((-1, -2)).clamp(min=1.0),
    }
