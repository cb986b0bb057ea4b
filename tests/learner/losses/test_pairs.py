"""Preference losses against values and gradients derived by hand, and DPO's fixed point on a known game."""

import math

import pytest
import torch

from learner.losses.config import BestOfNLossConfig, PairLossConfig
from learner.losses.pairs import best_of_n_loss, has_residual, preference_loss, residual, tie_loss

BETA = 0.5


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def loss_and_gradient(kind: str, h: float, eps: float = 0.0, beta: float = BETA) -> tuple[float, float, float]:
    """Loss at difference h, and its gradient by the chosen and by the rejected log-prob of the policy."""
    reference = torch.tensor([-3.0, -5.0], dtype=torch.float64)
    chosen = torch.tensor([-4.0 + h], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-6.0], dtype=torch.float64, requires_grad=True)
    config = PairLossConfig(kind=kind, beta=beta, label_smoothing=eps)
    output = preference_loss(chosen, rejected, reference[:1], reference[1:], config)
    output.loss.sum().backward()
    return float(output.loss[0].detach()), float(chosen.grad[0]), float(rejected.grad[0])


@pytest.mark.parametrize("h", [-3.0, -0.5, 0.0, 2.0])
def test_dpo_is_the_logistic_loss_with_the_bounded_gradient(h):
    loss, by_chosen, by_rejected = loss_and_gradient("dpo", h)
    assert loss == pytest.approx(math.log(1.0 + math.exp(-BETA * h)))
    assert by_chosen == pytest.approx(-BETA * sigmoid(-BETA * h))
    assert by_rejected == pytest.approx(BETA * sigmoid(-BETA * h))


@pytest.mark.parametrize("h", [-1.0, 0.0, 1.0, 4.0])
def test_ipo_pulls_the_difference_to_one_over_two_beta(h):
    loss, by_chosen, by_rejected = loss_and_gradient("ipo", h)
    assert loss == pytest.approx((h - 1.0) ** 2)
    assert by_chosen == pytest.approx(2.0 * (h - 1.0))
    assert by_rejected == pytest.approx(-2.0 * (h - 1.0))


@pytest.mark.parametrize(("h", "loss", "slope"), [(-2.0, 2.0, -BETA), (1.0, 0.5, -BETA), (3.0, 0.0, 0.0)])
def test_slic_is_flat_once_the_margin_is_reached(h, loss, slope):
    assert loss_and_gradient("slic", h) == pytest.approx((loss, slope, -slope))


@pytest.mark.parametrize("kind", ["dpo", "ipo", "slic"])
def test_label_smoothing_mixes_the_loss_with_that_of_the_swapped_pair(kind):
    loss, slope, _ = loss_and_gradient(kind, 0.7, eps=0.2)
    right_loss, right_slope, _ = loss_and_gradient(kind, 0.7)
    wrong_loss, wrong_slope, _ = loss_and_gradient(kind, -0.7)
    assert loss == pytest.approx(0.8 * right_loss + 0.2 * wrong_loss)
    assert slope == pytest.approx(0.8 * right_slope - 0.2 * wrong_slope)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "slic"])
def test_a_probability_mixes_the_loss_with_that_of_the_swapped_pair(kind):
    """p = 0.7 smoothed by 0.2 is the belief 0.8 * 0.7 + 0.2 * 0.3 = 0.62, p = 0 the swapped pair, and p = 1 no more
    than smoothing."""
    right, wrong = loss_and_gradient(kind, 0.7)[0], loss_and_gradient(kind, -0.7)[0]
    h = torch.full((3,), 0.7, dtype=torch.float64)
    zeros, p = torch.zeros_like(h), torch.tensor([0.7, 0.0, 1.0], dtype=torch.float64)
    plain = preference_loss(h, zeros, zeros, zeros, PairLossConfig(kind=kind, beta=BETA), p).loss
    assert plain.tolist() == pytest.approx([0.7 * right + 0.3 * wrong, wrong, right])
    smooth = preference_loss(h, zeros, zeros, zeros, PairLossConfig(kind=kind, beta=BETA, label_smoothing=0.2), p).loss
    beliefs = [0.62, 0.2, 0.8]
    assert smooth.tolist() == pytest.approx([belief * right + (1 - belief) * wrong for belief in beliefs])


def test_smoothed_dpo_is_least_where_the_policy_believes_the_smoothed_label():
    """The minimum of (1 - eps) f(h) + eps f(-h) is at sigmoid(beta h) = 1 - eps."""
    h = math.log(0.9 / 0.1) / BETA
    _, slope, _ = loss_and_gradient("dpo", h, eps=0.1)
    assert slope == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("kind", "constant"), [("dpo", math.log(2.0)), ("ipo", 1.0), ("slic", 1.0)])
def test_a_tie_costs_the_loss_at_zero_difference(kind, constant):
    assert tie_loss(PairLossConfig(kind=kind, beta=BETA)) == pytest.approx(constant)
    assert tie_loss(PairLossConfig(kind=kind, beta=BETA, label_smoothing=0.3)) == pytest.approx(constant)


def test_a_far_lost_pair_has_a_finite_loss_and_gradient():
    assert loss_and_gradient("dpo", -1e4) == pytest.approx((BETA * 1e4, -BETA, BETA))


def test_margin_is_beta_times_the_difference_and_accuracy_needs_it_positive():
    policy = torch.tensor([-1.0, -2.0, -2.0])
    zeros = torch.zeros(3)
    other = torch.tensor([-3.0, -1.0, -2.0])
    metrics = preference_loss(policy, other, zeros, zeros, PairLossConfig(beta=BETA)).metrics
    assert metrics["margin"].tolist() == [1.0, -0.5, 0.0]
    assert metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("sampler", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)])
def test_dpo_with_bradley_terry_labels_ends_at_the_same_policy_whatever_samples_the_pairs(sampler):
    """pi* is mu exp(r / beta), normalised: Rafailov et al. 2023, eq. 4."""
    reward = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    mu = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    sampler = torch.tensor(sampler, dtype=torch.float64)
    weight = sampler[first] * sampler[second] * torch.sigmoid(reward[first] - reward[second])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0)

    def closure():
        optimizer.zero_grad()
        logp = logits.log_softmax(0)
        pairs = preference_loss(logp[first], logp[second], mu.log()[first], mu.log()[second], PairLossConfig(beta=BETA))
        loss = (weight * pairs.loss).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    target = torch.softmax(mu.log() + reward / BETA, 0)
    assert torch.allclose(logits.softmax(0).detach(), target, atol=1e-6)


def test_best_of_n_is_the_likelihood_of_the_best_completion_alone():
    """-log pi(y_w); its margin is the log-ratio difference, by hand: (-2 - -5) - (-3 - -4) = 2."""
    chosen, rejected = torch.tensor([-2.0], requires_grad=True), torch.tensor([-5.0], requires_grad=True)
    output = best_of_n_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-4.0]))
    output.loss.sum().backward()
    assert output.loss.tolist() == [2.0]
    assert chosen.grad.tolist() == [-1.0]
    assert rejected.grad is None
    assert (output.metrics["margin"].tolist(), output.metrics["accuracy"].tolist()) == ([2.0], [1.0])
    assert tie_loss(BestOfNLossConfig()) == 0.0


@pytest.mark.parametrize(("kind", "scale"), [("dpo", -BETA), ("ipo", -2.0 / BETA)])
@pytest.mark.parametrize(("h", "eps"), [(0.0, 0.0), (1.3, 0.0), (-0.4, 0.2), (2.0, 0.2)])
def test_the_residual_is_the_slope_of_the_loss_in_preferences(kind, scale, h, eps):
    """At h = 0 it is the label's excess over 1/2, which for a certain label is 1/2."""
    config = PairLossConfig(kind=kind, beta=BETA, label_smoothing=eps)
    found = float(residual(torch.tensor([BETA * h], dtype=torch.float64), config)[0])
    assert scale * found == pytest.approx(loss_and_gradient(kind, h, eps)[1])
    assert has_residual(config)
    assert float(residual(torch.zeros(1, dtype=torch.float64), config)[0]) == pytest.approx(0.5 - eps)


def test_a_hinge_and_a_likelihood_have_no_residual_that_vanishes():
    assert not has_residual(PairLossConfig(kind="slic"))
    assert not has_residual(BestOfNLossConfig())
