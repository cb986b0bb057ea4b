"""The anchor leaves every loss's fixed point where it is, by enumeration, and makes a delayed step contract."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from learner.games.tabular import online_dpo_fixed_point, regularised_nash, softmax
from learner.losses.anchor import anchored, pulled_to
from learner.losses.config import CorrectionConfig, PairLossConfig
from learner.losses.games import GameBatch, game_loss
from learner.losses.pairs import preference_loss
from tests.learner.losses.games import loss_of

N = 7
"""Outcomes of the game."""
WEIGHT = 0.32
STRENGTH = 0.1
SCORES = torch.linspace(-0.4, 0.6, N, dtype=torch.float64)
UNWEIGHTED = CorrectionConfig(baseline="constant", opponents="none")


def random_game(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Preferences [7, 7], log mu and log pi of one game."""
    random = torch.Generator().manual_seed(seed)
    scores = 2.0 * torch.randn(N, N, generator=random, dtype=torch.float64)
    mu, pi = torch.randn(2, N, generator=random, dtype=torch.float64).log_softmax(-1)
    return torch.sigmoid(scores - scores.T), mu, pi


def expected_gradient(
    kind: str, pi: torch.Tensor, mu: torch.Tensor, slow: torch.Tensor | None, preferences: torch.Tensor
) -> torch.Tensor:
    """The expected gradient by the logits: every tuple of outcomes, weighted by its probability under pi."""
    logits = pi.clone().requires_grad_()
    policy = logits.log_softmax(-1)
    pair = kind in ("dpo", "ipo", "slic")
    if pair:
        loss, prior = PairLossConfig(kind=kind, beta=STRENGTH), mu
        if slow is not None:
            prior, loss = pulled_to(mu, slow, STRENGTH, WEIGHT), anchored(loss, WEIGHT)
        drawn = torch.tensor(list(itertools.product(range(N), repeat=2)))
        one, other = drawn.T
        values = (policy[one], policy[other], prior[one], prior[other])
        losses = preference_loss(*values, loss, preferences[one, other]).loss
    else:
        drawn = torch.tensor(list(itertools.product(range(N), repeat=4)))
        batch = GameBatch(
            policy=policy[drawn][..., None],
            reference=mu[drawn][..., None],
            behaviour=pi[drawn][..., None],
            opponent=pi[drawn][..., None],
            mask=torch.ones(*drawn.shape, 1, dtype=torch.float64),
            preferences=preferences[drawn[:, :, None], drawn[:, None, :]],
            scores=SCORES[drawn],
            players=4,
            anchor=None if slow is None else slow[drawn][..., None],
        )
        losses = game_loss(batch, loss_of(kind, UNWEIGHTED, tau=STRENGTH), anchor_weight=WEIGHT).loss
    return torch.autograd.grad((losses * pi[drawn].sum(-1).exp()).sum(), logits)[0]


SCALES = {
    "nash_pg": 1.0,
    "rloo": 1.0,
    "online_ipo": (STRENGTH / (STRENGTH + WEIGHT)),
    "ipo_md": (STRENGTH / (STRENGTH + WEIGHT)),
    "ipo": (STRENGTH / (STRENGTH + WEIGHT)),
    "dpo": (STRENGTH + WEIGHT) / STRENGTH,
    "slic": (STRENGTH + WEIGHT) / STRENGTH,
}
"""By hand: with h' the log-ratio to m and u = pi, (tau + kappa) h' = tau h. Losses depend on that alone (dpo, slic), or
on it divided by tau + kappa where they had tau (the squares), and their gradient has a factor tau + kappa more."""


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("seed", [0, 1])
def test_at_rest_the_anchored_gradient_is_the_loss_s_own(kind, seed):
    """So where one is 0 the other is: the fixed point does not move."""
    preferences, mu, pi = random_game(seed)
    plain = expected_gradient(kind, pi, mu, None, preferences)
    at_rest = expected_gradient(kind, pi, mu, pi, preferences)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(at_rest, SCALES[kind] * plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["nash_pg", "online_ipo", "ipo_md", "dpo"])
def test_the_equilibrium_is_a_fixed_point_with_and_without_an_anchor(kind):
    """The equilibrium of the regularised game, and online DPO's own fixed point, by solvers that know no losses. There
    the anchored gradient is 0, and the anchor pulls back to it."""
    preferences, mu, _ = random_game(2)
    solve = online_dpo_fixed_point if kind == "dpo" else regularised_nash
    pi = torch.from_numpy(solve(preferences.numpy(), mu.exp().numpy(), STRENGTH)).log()
    assert expected_gradient(kind, mu, mu, mu, preferences).abs().max() > 1e-3
    assert expected_gradient(kind, pi, mu, pi, preferences).abs().max() < 1e-9
    away = (pi + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).log_softmax(-1)
    pull = expected_gradient(kind, away, mu, pi, preferences) - expected_gradient(kind, away, mu, away, preferences)
    assert (pull * (away - pi)).sum() > 0.0  # the negative gradient points home


def test_the_difference_of_best_answers_is_at_most_half_as_wide_as_that_of_the_logits():
    """span(A(softmax z - softmax z')) <= span(z - z') / 2 for any A with entries within +-1/2: what makes the delayed
    step contract at every lag once tau + kappa > 1/2. Over random games, near and far logits."""
    random = np.random.default_rng(0)
    largest = 0.0
    for _ in range(4000):
        n = int(random.integers(2, 9))
        upper = np.triu(random.choice([-0.5, 0.5, random.uniform(-0.5, 0.5)], size=(n, n)), 1)
        z = random.normal(size=n) * random.exponential(2.0)
        apart = random.normal(size=n) * random.choice([1e-3, 1.0, 10.0])
        change = (upper - upper.T) @ (softmax(z) - softmax(z + apart))
        largest = max(largest, np.ptp(change) / np.ptp(apart))
    assert 0.4 < largest <= 0.5
