"""GRPO against its formula, token by token in plain loops, and against RLOO where both are the same gradient."""

from __future__ import annotations

import math

import pytest
import torch

from learner.losses.config import CorrectionConfig, GrpoLossConfig
from learner.losses.games import GameBatch, game_loss
from learner.losses.grpo import grpo_loss
from tests.learner.losses.games import loss_of

LENGTHS = ((3, 1, 2, 4), (2, 2, 1, 3))


def batch_of(seed: int, spread: float = 0.5) -> GameBatch:
    """Two groups of four completions of uneven lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 4, 4, dtype=torch.float64)
    for g, lengths in enumerate(LENGTHS):
        for i, length in enumerate(lengths):
            mask[g, i, :length] = 1.0

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(2, 4, 4, generator=generator, dtype=torch.float64) * mask

    policy = noise(1.0) - 2.0 * mask
    scores = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    return GameBatch(
        policy=policy.requires_grad_(),
        reference=policy.detach() + noise(0.3),
        behaviour=policy.detach() + noise(spread),
        opponent=policy.detach(),
        mask=mask,
        preferences=torch.full((2, 4, 4), 0.5, dtype=torch.float64),
        scores=scores,
        players=4,
        anchor=policy.detach() + noise(0.2),
    )


def slow(batch: GameBatch, config: GrpoLossConfig, weight: float) -> tuple[list[float], list[list[list[float]]], float]:
    """Losses, their gradients by log pi by hand, and the share of tokens that are cut."""
    high = config.clip if config.clip_high is None else config.clip_high
    losses, gradients, cut, count = [], [], 0, 0
    for g, lengths in enumerate(LENGTHS):
        scores = batch.scores[g].tolist()
        mean = sum(scores) / 4
        deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / 4)
        total, rows = 0.0, []
        for i, length in enumerate(lengths):
            a = (scores[i] - mean) / ((deviation + 1e-6) if config.scale else 1.0)
            row = [0.0] * 4
            for t in range(length):
                pi, mu, b, u = (
                    float(each[g, i, t].detach())
                    for each in (batch.policy, batch.reference, batch.behaviour, batch.anchor)
                )
                r = math.exp(pi - b)
                outside = (a > 0 and r > 1 + high) or (a < 0 and r < 1 - config.clip)
                limited = min(max(r, 1 - config.clip), 1 + high)
                gain, slope = (limited * a, 0.0) if outside else (r * a, r * a)
                pull, drag = 0.0, 0.0
                for strength, other in ((config.tau, mu), (weight, u)):
                    pull += strength * (math.exp(other - pi) - (other - pi) - 1)
                    drag += strength * (1 - math.exp(other - pi))
                total += (pull - gain) / length / 4
                row[t] = (drag - slope) / length / 4
                cut, count = cut + outside, count + 1
            rows.append(row)
        losses.append(total)
        gradients.append(rows)
    return losses, gradients, cut / count


@pytest.mark.parametrize(
    "settings", [{}, {"scale": False}, {"clip": 0.1, "clip_high": 0.4}, {"tau": 0.0}, {"tau": 0.5}], ids=str
)
def test_loss_and_gradient_are_those_of_the_formula(settings):
    batch, config = batch_of(1), GrpoLossConfig(**settings)
    output = grpo_loss(batch, config, 0.3)
    losses, gradients, cut = slow(batch, config, 0.3)
    torch.testing.assert_close(output.loss.detach(), torch.tensor(losses, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(output.loss.sum(), batch.policy)
    torch.testing.assert_close(gradient, torch.tensor(gradients, dtype=torch.float64))
    sizes = batch.mask.sum((-1, -2))
    share = float((output.metrics["player_truncated"] * sizes).sum() / sizes.sum())
    assert share == pytest.approx(cut)
    assert cut > 0.0


def test_on_fresh_completions_of_one_length_it_is_the_policy_gradient_of_centred_scores():
    """RLOO's baseline leaves the completion itself out: K / (K - 1) times as much. Its KL is of whole completions."""
    batch = batch_of(2)
    whole = torch.ones_like(batch.mask)
    policy = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    fresh = GameBatch(
        policy, policy.detach(), policy.detach(), policy.detach(), whole, batch.preferences, batch.scores, 4
    )
    (own,) = torch.autograd.grad(grpo_loss(fresh, GrpoLossConfig(scale=False)).loss.sum(), policy)
    rloo = game_loss(fresh, loss_of("rloo", CorrectionConfig(opponents="none")))
    (other,) = torch.autograd.grad(rloo.loss.sum(), policy)
    torch.testing.assert_close(own * 4, other * 3 / 4)


def test_equal_scores_have_no_gradient_but_the_pull():
    batch = batch_of(4, spread=0.0)
    even = GameBatch(**{name: getattr(batch, name) for name in batch.__slots__} | {"scores": torch.ones(2, 4)})
    output = grpo_loss(even, GrpoLossConfig(tau=0.0))
    (gradient,) = torch.autograd.grad(output.loss.sum(), batch.policy)
    assert gradient.abs().max() == 0.0
