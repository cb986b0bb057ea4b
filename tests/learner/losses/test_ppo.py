"""Generalised advantages by their definition, and PPO's loss and gradient against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.losses.config import PpoLossConfig
from learner.losses.ppo import generalised_advantages, ppo_loss
from tests.learner.losses.test_grpo import LENGTHS, batch_of


def test_advantages_are_the_discounted_sum_of_what_each_token_was_better_than_expected():
    """Three tokens of values 1, 2, 4 and rewards 0, 0, 10; gamma .5, decay .5. By hand: delta = 0.5 * 2 - 1 = 0,
    0.5 * 4 - 2 = 0, 10 - 4 = 6; advantages 0.25^2 * 6, 0.25 * 6, 6. Behind the end there is nothing."""
    rewards = torch.tensor([[0.0, 0.0, 10.0, 99.0]])
    values, mask = torch.tensor([[1.0, 2.0, 4.0, 7.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert generalised_advantages(rewards, values, mask, 0.5, 0.5).tolist() == [[0.375, 1.5, 6.0, 0.0]]


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("settings", [{}, {"gamma": 0.9, "decay": 0.5}, {"clip": 0.05, "value_weight": 2.0}], ids=str)
def test_loss_and_gradients_are_those_of_the_formula(settings, anchored):
    random = torch.Generator().manual_seed(7)
    values = torch.randn(2, 4, 4, generator=random, dtype=torch.float64).requires_grad_()
    batch, config, weight = replace(batch_of(5), values=values), PpoLossConfig(tau=0.1, **settings), 0.4
    batch = batch if anchored else replace(batch, anchor=None)
    output = ppo_loss(batch, config, weight)
    by_policy, by_values = torch.autograd.grad(output.loss.sum(), [batch.policy, values])
    for g, lengths in enumerate(LENGTHS):
        total, error, count, cut = 0.0, 0.0, sum(lengths), 0
        for i, length in enumerate(lengths):
            pi, mu, b = (each[g, i].detach().tolist() for each in (batch.policy, batch.reference, batch.behaviour))
            u, v = (batch.anchor[g, i].tolist() if anchored else mu), values[g, i].tolist()
            pull = weight if anchored else 0.0
            rewards = [-0.1 * (pi[t] - mu[t]) - pull * (pi[t] - u[t]) for t in range(length)]
            rewards[-1] += float(batch.scores[g, i])
            ahead = [*v[1:length], 0.0]
            delta = [rewards[t] + config.gamma * ahead[t] - v[t] for t in range(length)]
            for t in range(length):
                a = sum((config.gamma * config.decay) ** (k - t) * delta[k] for k in range(t, length))
                r = float(torch.tensor(pi[t] - b[t], dtype=torch.float64).exp())
                limited = min(max(r, 1 - config.clip), 1 + config.clip)
                outside = limited * a < r * a
                total += -min(r * a, limited * a) + config.value_weight * a**2 / 2  # V - R is -A
                error, cut = error + a**2, cut + outside
                assert float(by_policy[g, i, t]) == pytest.approx(0.0 if outside else -r * a / count)
                assert float(by_values[g, i, t]) == pytest.approx(-config.value_weight * a / count)
        assert float(output.loss[g]) == pytest.approx(total / count)
        assert float(output.metrics["value_error"][g]) == pytest.approx(error / count)
        assert float(output.metrics["player_truncated"][g]) == pytest.approx(cut / count)
    assert ("kl_anchor" in output.metrics) == anchored
