"""Losses on games in expectation: golden gradients, fixed points, and how the losses relate. On policy unless said."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from learner.losses.config import CorrectionConfig
from tests.learner.games.tabular_games import (
    CENTRED,
    COMB,
    COMB_MU,
    COMB_P,
    COMB_PI,
    COMB_STALE,
    CONSTANT,
    HUGE,
    MIX,
    MU,
    ONE,
    PI,
    RPS,
    SQUARE,
    STALE,
    TAU,
    WRPS,
    Setting,
    Tree,
    ascent,
    close,
    comb,
    nash_md_pg,
    rps,
    tensor,
)


@pytest.mark.parametrize(("players", "correction"), [(1, CONSTANT), (2, CENTRED)])
def test_nash_pg_with_drawn_opponents_follows_the_field_computed_by_hand(players, correction):
    """pi (A - pi.A), A = P mixture - 1/2 - tau log(pi / mu), with beta = 1/8."""
    expected = tensor([[0.047951344884, -0.060127753409, 0.012176408525]])
    assert close(ascent(rps(), "nash_pg", correction, players, 1), expected)


@pytest.mark.parametrize("sampled_by_policy", [False, True])
def test_ipo_md_has_minus_four_over_tau_times_the_centred_advantages_under_the_mixture(sampled_by_policy):
    """Drawn from the mixture, or from the policy and weighted to it."""
    expected = tensor([[-1.934981924057, 2.356010049531, -0.421028125474]])
    assert close(4.0 / TAU * MIX.exp() * (centred := centred_advantages()), -expected, 1e-9)
    assert centred.shape == (1, 3)
    correction = CorrectionConfig(opponents="sequence" if sampled_by_policy else "none", opponent_cap=HUGE)
    drawn = ascent(rps(opponents_from=PI if sampled_by_policy else MIX), "ipo_md", correction, 1, 2)
    assert close(drawn, -expected, 1e-9)
    if sampled_by_policy:
        assert close(ascent(rps(), "ipo_md", correction, 2, 0), -expected, 1e-9)


def centred_advantages() -> Tensor:
    advantage = (RPS @ MIX.exp()[0] - 0.5 - TAU * (PI - MU)[0])[None]
    return advantage - (MIX.exp() * advantage).sum()


@pytest.mark.parametrize("kl", ["sequence", "reward_to_go"])
@pytest.mark.parametrize(("players", "drawn"), [(2, 1), (4, 0)])
def test_both_baselines_and_both_kl_charges_agree_on_policy(players, drawn, kl):
    setting = Setting(COMB, COMB_P, COMB_PI, COMB_MU, COMB_PI, *[COMB_PI if drawn == 0 else comb().opponent] * 2)
    expected = nash_md_pg(COMB, COMB_P, COMB_PI, COMB_MU, setting.opponent)
    for baseline in ("leave_one_out", "constant"):
        correction = CorrectionConfig(baseline=baseline, kl=kl)
        assert close(ascent(setting, "nash_pg", correction, players, drawn), expected)


REWARD = tensor([0.0, 1.0, 0.6, 0.6])
REWARD_MU = tensor([[0.5, 0.5], [0.98, 0.02], [0.5, 0.5]]).log()
REWARD_TAU = 0.2


def regularised_reward(logits: Tensor) -> tuple[float, float]:
    """Expected reward less tau KL, and KL."""
    logp, logmu = SQUARE.logprobs(logits).sum(-1), SQUARE.logprobs(REWARD_MU).sum(-1)
    kl = float((logp.exp() * (logp - logmu)).sum())
    return float((logp.exp() * REWARD).sum()) - REWARD_TAU * kl, kl


def climb(direction, logits: Tensor, step: float, steps: int) -> Tensor:
    for _ in range(steps):
        logits = logits + step * direction(logits)
    return logits


def reward_direction(logits: Tensor, kl: str) -> Tensor:
    setting = Setting(SQUARE, torch.full((4, 4), 0.5), logits, REWARD_MU, logits, logits, logits, REWARD)
    return ascent(setting, "rloo", CorrectionConfig(baseline="constant", kl=kl), 1, 0, REWARD_TAU)


def own_token_direction(logits: Tensor) -> Tensor:
    """A fault seen in a peer: each token's gradient is charged with that token's own log-ratio, nothing after it."""
    leaf = logits.clone().requires_grad_()
    logp = SQUARE.logprobs(leaf)
    own = (logp - SQUARE.logprobs(REWARD_MU)).detach()
    probability = logp.detach().sum(-1, keepdim=True).exp()
    return torch.autograd.grad((probability * (REWARD[:, None] - REWARD_TAU * own) * logp).sum(), leaf)[0]


@pytest.mark.parametrize("kl", ["sequence", "reward_to_go"])
def test_ascent_on_two_token_completions_ends_at_the_reference_tilted_by_the_reward(kl):
    """The optimum is mu exp(r / tau), normalised, in closed form."""
    final = climb(partial(reward_direction, kl=kl), REWARD_MU, 10.0, 400)
    optimum = torch.softmax(SQUARE.logprobs(REWARD_MU).sum(-1) + REWARD / REWARD_TAU, 0)
    assert close(optimum, tensor([0.04078, 0.1235, 0.41786, 0.41786]), 1e-5)
    assert close(SQUARE.logprobs(final).sum(-1).exp(), optimum, 1e-4)
    assert regularised_reward(final) == pytest.approx((0.4973, 0.638), abs=5e-4)


def test_charging_only_a_tokens_own_log_ratio_ends_elsewhere():
    final = climb(own_token_direction, REWARD_MU, 10.0, 400)
    assert regularised_reward(final) == pytest.approx((0.3650, 1.692), abs=5e-4)


NASH_MD_POINTS = [
    (RPS, 0.125, (0.38707, 0.18830, 0.42463)),
    (RPS, 0.5, (0.26422, 0.06445, 0.67134)),
    (WRPS, 0.125, (0.74067, 0.01824, 0.24109)),
    (WRPS, 0.5, (0.7788, 0.0121, 0.2091)),
]


def mixture_fixed_point(preferences: Tensor, beta: float, tree: Tree = ONE, mu: Tensor = MU) -> Tensor:
    """log pi [completions], pi = mu exp(P pi^beta / tau) normalised, by damped iteration."""
    logmu = tree.logprobs(mu).sum(-1)
    logp = logmu
    for _ in range(600):
        mixture = torch.softmax((1.0 - beta) * logp + beta * logmu, 0)
        logp = (0.9 * logp + 0.1 * (logmu + preferences @ mixture / TAU)).log_softmax(0)
    return logp


@pytest.mark.parametrize(("preferences", "beta", "point"), NASH_MD_POINTS)
def test_nash_pg_converges_to_the_best_response_to_its_own_mixture(preferences, beta, point):
    """Opponents are the other half of the policy's completions, weighted to it; steps are natural gradients."""

    def direction(logits: Tensor) -> Tensor:
        mixture = (1.0 - beta) * logits.log_softmax(-1) + beta * MU
        setting = Setting(ONE, preferences, logits, MU, logits, logits, mixture)
        correction = CorrectionConfig(opponent_cap=HUGE, baseline="constant")
        return ascent(setting, "nash_pg", correction, 2, 0) / logits.softmax(-1)

    final = climb(direction, MU, 1.0, 250).softmax(-1)[0]
    assert close(final, tensor(point), 6e-5)
    assert close(final, mixture_fixed_point(preferences, beta).exp(), 1e-8)


@pytest.mark.parametrize("sampler", [MU, STALE])
def test_online_ipo_vanishes_at_the_nash_policy_whatever_sampled_the_pair(sampler):
    nash = tensor([[0.417154297805, 0.211330397515, 0.371515304681]]).log()
    at_nash = Setting(ONE, RPS, nash, MU, sampler, nash, nash)
    assert close(ascent(at_nash, "online_ipo", CENTRED, 2, 1), torch.zeros_like(MU), 1e-9)
    elsewhere = Setting(ONE, RPS, PI, MU, sampler, PI, PI)
    assert ascent(elsewhere, "online_ipo", CENTRED, 2, 1).abs().max() > 0.1


@pytest.mark.parametrize(("players", "drawn"), [(2, 1), (4, 0)])
def test_online_ipo_is_the_centred_policy_gradient_times_four_over_tau(players, drawn):
    """With r = h - v / tau = -A / tau: the gradient of the mean over l != i of (r_i - r_l)^2 is 4 / K times the sum of
    (r_i - mean of the other r) grad log pi(y_i), sample by sample, whatever the sampler."""
    setting = comb(behaviour=COMB_STALE, opponents_from=COMB_STALE)
    centred = ascent(setting, "nash_pg", CENTRED, players, drawn)
    assert centred.abs().max() > 1e-3
    assert close(ascent(setting, "online_ipo", CENTRED, players, drawn), 4.0 / TAU * centred, 1e-11)
