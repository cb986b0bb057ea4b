"""Losses on games off policy: what weights restore, what biases; weights, padding, precision and metrics by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from learner.losses.config import CorrectionConfig
from learner.losses.games import GameBatch, game_loss, importance_weights, opponent_weights, roles, sequence_weights
from tests.learner.games.tabular_games import (
    COMB,
    COMB_MU,
    COMB_P,
    COMB_STALE,
    HUGE,
    MIX,
    MU,
    ONE,
    PI,
    RPS,
    STALE,
    TAU,
    Setting,
    ascent,
    close,
    comb,
    comb_exact,
    nash_md_pg,
    rps,
    tensor,
)
from tests.learner.losses.games import loss_of


@pytest.mark.parametrize("baseline", ["leave_one_out", "constant"])
@pytest.mark.parametrize("kl", ["sequence", "reward_to_go"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_uncapped_weights_restore_the_on_policy_gradient(level, kl, baseline):
    """Players by sequence; opponents by the capped product or the product of capped tokens, the same uncapped."""
    correction = CorrectionConfig(
        baseline=baseline, kl=kl, players="sequence", player_cap=HUGE, opponents=level, opponent_cap=HUGE
    )
    stale = comb(behaviour=COMB_STALE, opponents_from=COMB_STALE)
    assert close(ascent(stale, "nash_pg", correction, 2, 1), comb_exact())
    assert close(ascent(stale, "nash_pg", correction, 4, 0), comb_exact())


@pytest.mark.parametrize("part", [{"players": "none"}, {"opponents": "none"}, {"opponent_cap": 1.0}])
def test_leaving_out_or_capping_a_weight_biases_the_gradient(part):
    full = {"players": "sequence", "player_cap": HUGE, "opponent_cap": HUGE}
    correction = CorrectionConfig(**{**full, **part})
    stale = comb(behaviour=COMB_STALE, opponents_from=COMB_STALE)
    assert not close(ascent(stale, "nash_pg", correction, 2, 1), comb_exact(), 1e-3)


def test_weights_of_tokens_are_exact_for_players_of_one_token_only():
    correction = CorrectionConfig(players="token", player_cap=HUGE, opponent_cap=HUGE)
    one_token = rps(behaviour=STALE, opponents_from=STALE)
    assert close(ascent(one_token, "nash_pg", correction, 2, 1), nash_md_pg(ONE, RPS, PI, MU, MIX))
    stale = comb(behaviour=COMB_STALE, opponents_from=COMB_STALE)
    assert not close(ascent(stale, "nash_pg", correction, 2, 1), comb_exact(), 1e-3)


@pytest.mark.parametrize("behaviour", [PI, STALE])
def test_halves_weighted_to_the_mixture_have_the_gradient_of_drawing_from_it(behaviour):
    correction = CorrectionConfig(players="sequence", player_cap=HUGE, opponent_cap=HUGE)
    halves = ascent(rps(behaviour=behaviour), "nash_pg", correction, 4, 0)
    assert close(halves, nash_md_pg(ONE, RPS, PI, MU, MIX))


def test_self_normalised_weights_approach_that_gradient_only_as_opponents_grow_in_number():
    """The alternative to what `game_loss` does; with one opponent normalising cancels the weight."""
    exact, errors = nash_md_pg(ONE, RPS, PI, MU, MIX), []
    ratio = (MIX - STALE).exp()[0]
    for opponents in (1, 2, 4, 8):
        draws = torch.tensor(list(product(range(3), repeat=opponents)))
        weights = ratio[draws] / ratio[draws].sum(-1, keepdim=True)
        preference = (weights[:, None, :] * RPS[:, draws].transpose(0, 1)).sum(-1)
        expected = (STALE.exp()[0][draws].prod(-1)[:, None] * preference).sum(0)
        advantage = expected - 0.5 - TAU * (PI - MU)[0]
        gradient = PI.exp() * (advantage - (PI.exp() * advantage).sum())
        errors.append(float((gradient - exact).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]
    uncorrected = CorrectionConfig(players="sequence", player_cap=HUGE, opponents="none")
    alone = ascent(rps(behaviour=STALE, opponents_from=STALE), "nash_pg", uncorrected, 1 + 1, 1)
    assert float((alone - exact).norm()) == pytest.approx(errors[0])


def at_fixed_point(behaviour: Tensor) -> Setting:
    """The policy mu exp(P mixture / tau), normalised, of which pi(y) factors into the tree's nodes; A is constant.

    The mixture is that of the tokens, so that it is found by iteration on the tree.
    """
    logits = COMB_MU
    for _ in range(800):
        mixture = 0.75 * logits.log_softmax(-1) + 0.25 * COMB_MU
        target = COMB.logprobs(COMB_MU).sum(-1) + COMB_P @ COMB.logprobs(mixture).sum(-1).exp() / TAU
        p = (0.9 * COMB.logprobs(logits).sum(-1) + 0.1 * target).softmax(0)
        conditional = torch.stack([p[:1], p[1:2] / p[1:].sum(), p[2:3] / p[2:].sum()])
        logits = torch.cat([conditional, 1.0 - conditional], 1).log()
    return replace(comb(behaviour, policy=logits), opponents_from=mixture, opponent=mixture)


@pytest.mark.parametrize(
    ("baseline", "kl", "players", "vanishes"),
    [
        ("leave_one_out", "sequence", "none", True),
        ("constant", "sequence", "none", False),
        ("leave_one_out", "reward_to_go", "none", False),
        ("leave_one_out", "reward_to_go", "token", True),
        ("constant", "sequence", "token", True),
        ("constant", "reward_to_go", "token", True),
        ("constant", "reward_to_go", "sequence", True),
    ],
)
def test_which_gradients_on_stale_players_vanish_at_the_fixed_point(baseline, kl, players, vanishes):
    """Unweighted, only the centred whole-sequence charge does. With the reward to go, token m keeps tau times the
    log-ratio of the tokens before it: a function of the prefix, which its own weight, but not centring, annuls."""
    correction = CorrectionConfig(baseline=baseline, kl=kl, players=players, player_cap=HUGE, opponents="none")
    largest = ascent(at_fixed_point(COMB_STALE), "nash_pg", correction, 2, 1).abs().max()
    assert largest < 1e-10 if vanishes else largest > 1e-3
    fresh = at_fixed_point(COMB_STALE)
    fresh = replace(fresh, players_from=fresh.policy)
    assert ascent(fresh, "nash_pg", correction, 2, 1).abs().max() < 1e-10


LOG_RATIO = tensor([[[math.log(3.0), math.log(0.25), 9.0], [1000.0, math.log(2.0), -1000.0]]])
MASK = tensor([[[1, 1, 0], [1, 1, 1]]])


@pytest.mark.parametrize(
    ("level", "beyond_cap", "tokens", "sequences"),
    [
        ("none", "truncate", [[1, 1, 0], [1, 1, 1]], [1, 1]),
        ("token", "truncate", [[2.5, 0.25, 0], [2.5, 2, math.exp(-20)]], [0.625, 5 * math.exp(-20)]),
        ("token", "mask", [[0, 0, 0], [0, 2, 0]], [0, 0]),
        ("sequence", "truncate", [[0.75, 0.75, 0], [2, 2, 2]], [0.75, 2]),
        ("sequence", "mask", [[0.75, 0.75, 0], [2, 2, 2]], [0.75, 2]),
    ],
)
def test_weights_are_ratios_capped_by_token_or_by_sequence_and_ignore_padding(level, beyond_cap, tokens, sequences):
    """By hand: ratios 3, 1/4, padding; e^1000, 2, e^-1000, whose product is 2. The cap is 2.5."""
    weights = importance_weights(LOG_RATIO, MASK, level, 2.5, beyond_cap)
    assert close(weights, tensor([tokens]))
    assert close(sequence_weights(weights, MASK, level), tensor([sequences]))


def test_masking_drops_completions_on_both_sides_of_the_cap():
    log_ratio = tensor([[[1.0], [-1.0], [0.5], [1000.0]]])
    mask = torch.ones_like(log_ratio)
    masked = importance_weights(log_ratio, mask, "sequence", 2.0, "mask")
    assert close(masked, tensor([[[0.0], [0.0], [math.exp(0.5)], [0.0]]]))
    truncated = importance_weights(log_ratio, mask, "sequence", 2.0, "truncate")
    assert close(truncated, tensor([[[2.0], [math.exp(-1.0)], [math.exp(0.5)], [2.0]]]))


def test_a_product_of_many_weights_does_not_overflow_float32():
    """3 to the power 300 is beyond float32; a masked token still makes the product 0."""
    mask = torch.ones(1, 2, 300)
    weights = torch.full((1, 2, 300), 3.0)
    weights[0, 1, 299] = 0.0
    assert sequence_weights(weights, mask, "token").tolist() == [[pytest.approx(math.exp(20.0)), 0.0]]


def test_without_opponents_each_half_plays_the_other_and_completions_of_a_half_are_peers():
    against, peers = roles(4, 0)
    assert against.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert peers.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    against, peers = roles(5, 0)
    assert (against.sum(-1).tolist(), peers.sum(-1).tolist()) == ([3, 3, 2, 2, 2], [1, 1, 2, 2, 2])


def test_drawn_opponents_do_not_play():
    against, peers = roles(2, 3)
    assert against.tolist() == [[0, 0, 1, 1, 1]] * 2 + [[0] * 5] * 3
    assert peers[:2].tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


def random_games(players: int, drawn: int, seed: int = 0) -> GameBatch:
    """Two games of completions of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    n = players + drawn

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, 5, (2, n, 1), generator=generator)
    mask = (torch.arange(4) < lengths).double()
    wins = uniform(2, n, n).triu(1)
    preferences = wins + (1.0 - wins.transpose(1, 2)).tril(-1) + 0.5 * torch.eye(n, dtype=torch.float64)
    policy, reference, behaviour, opponent = (-2.0 * uniform(2, n, 4) * mask for _ in range(4))
    return GameBatch(policy, reference, behaviour, opponent, mask, preferences, uniform(2, n), players)


def loss_and_gradient(batch: GameBatch, kind: str, correction: CorrectionConfig) -> tuple[Tensor, Tensor, dict]:
    policy = batch.policy.clone().requires_grad_()
    output = game_loss(replace(batch, policy=policy), loss_of(kind, correction, tau=TAU))
    return output.loss.detach(), torch.autograd.grad(output.loss.sum(), policy)[0], output.metrics


KINDS = ["nash_pg", "online_ipo", "ipo_md", "rloo"]
ALL_WEIGHTED = [
    CorrectionConfig(players=level, opponents=level, kl=kl, beyond_cap=beyond_cap)
    for level, kl, beyond_cap in [
        ("none", "sequence", "truncate"),
        ("token", "reward_to_go", "mask"),
        ("sequence", "sequence", "truncate"),
        ("token", "sequence", "truncate"),
    ]
]


@pytest.mark.parametrize(("players", "drawn"), [(4, 0), (5, 0), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_loss_nor_gradient_nor_metrics(kind, players, drawn):
    batch = random_games(players, drawn)
    padding = torch.full((2, players + drawn, 3), -7.0, dtype=torch.float64)
    longer = {
        name: torch.cat([getattr(batch, name), padding * scale], -1)
        for name, scale in (("policy", 1.0), ("reference", 2.0), ("behaviour", -3.0), ("opponent", 0.5), ("mask", 0.0))
    }
    for correction in ALL_WEIGHTED:
        loss, gradient, metrics = loss_and_gradient(batch, kind, correction)
        padded_loss, padded_gradient, padded_metrics = loss_and_gradient(replace(batch, **longer), kind, correction)
        assert close(loss, padded_loss)
        assert gradient.abs().max() > 0.0 or correction.beyond_cap == "mask"
        assert close(gradient, padded_gradient[..., :4])
        assert close(padded_gradient[..., 4:], torch.zeros_like(padding))
        assert metrics.keys() == padded_metrics.keys()
        assert all(close(metrics[name], padded_metrics[name]) for name in metrics)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64_and_stays_float32(kind):
    batch = random_games(3, 2)
    names = ("policy", "reference", "behaviour", "opponent", "mask", "preferences", "scores")
    single = replace(batch, **{name: getattr(batch, name).float() for name in names})
    for correction in ALL_WEIGHTED:
        exact, rounded = loss_and_gradient(batch, kind, correction), loss_and_gradient(single, kind, correction)
        assert {rounded[0].dtype, *(values.dtype for values in rounded[2].values())} == {torch.float32}
        assert torch.allclose(rounded[0].double(), exact[0], rtol=1e-4, atol=1e-4)
        assert torch.allclose(rounded[1].double(), exact[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_flows_through_the_policy_alone(kind):
    batch = random_games(3, 2)
    opponent = batch.opponent.clone().requires_grad_()
    policy = batch.policy.clone().requires_grad_()
    live = replace(batch, policy=policy, opponent=opponent)
    output = game_loss(live, loss_of(kind, CorrectionConfig(players="sequence")))
    by_policy, by_opponent = torch.autograd.grad(output.loss.sum(), (policy, opponent), allow_unused=True)
    assert by_opponent is None
    trained = by_policy.abs().sum((0, 2)) > 0.0
    assert trained.tolist() == ([False] * 3 + [True] * 2 if kind == "ipo_md" else [True] * 3 + [False] * 2)
    assert not any(values.requires_grad for values in output.metrics.values())


def test_rloo_with_leave_one_out_is_rloo():
    """Three completions of one token: scores 1, 0, .5 and log-ratios .1, -.2, .3 at tau .1 give A = .99, .02, .47."""
    policy = tensor([[[-1.0], [-2.0], [-3.0]]])
    reference = policy - tensor([[[0.1], [-0.2], [0.3]]])
    scores = tensor([[1.0, 0.0, 0.5]])
    half = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    batch = GameBatch(policy, reference, policy, policy, torch.ones_like(policy), half, scores, 3)
    loss, gradient, metrics = loss_and_gradient(batch, "rloo", CorrectionConfig())
    centred = tensor([0.99 - 0.245, 0.02 - 0.73, 0.47 - 0.505])
    assert close(gradient[0, :, 0], -centred / 3.0)
    assert close(loss, -(centred * policy[0, :, 0]).sum()[None] / 3.0)
    assert "player_preference" not in metrics
    assert metrics["kl_players"].tolist() == pytest.approx([0.2 / 3.0])
    assert metrics["advantage_std"].tolist() == pytest.approx([float(tensor([0.99, 0.02, 0.47]).std(correction=0))])


@pytest.mark.parametrize(
    ("level", "beyond_cap", "player", "opponent"),
    [
        ("none", "truncate", (1.0, 0.0), (1.0, 0.0)),
        # Players' tokens weigh 2, 1 and 1/4; opponents 2 * 1/4 and 2.
        ("token", "truncate", (3.25**2 / (3 * 5.0625), 1 / 3), (2.5**2 / (2 * 4.25), 2 / 3)),
        # Players' tokens weigh 0, 1 and 0; no opponent weighs anything.
        ("token", "mask", (1 / 3, 2 / 3), (0.0, 1.0)),
        # Players weigh 2 and 1/4; opponents 1 and 2.
        ("sequence", "truncate", (2.25**2 / (2 * 4.0625), 1 / 2), (9 / 10, 1 / 2)),
        # No player weighs anything; opponents 1 and 0.
        ("sequence", "mask", (0.0, 1.0), (1 / 2, 1 / 2)),
    ],
)
def test_effective_sample_sizes_and_truncated_shares_by_hand(level, beyond_cap, player, opponent):
    """Ratios of the players' tokens (4, 1) and (1/4), of the opponents' (4, 1/4) and (8); the caps are 2."""
    metrics = hand_game(CorrectionConfig(players=level, opponents=level, beyond_cap=beyond_cap))
    assert [float(metrics[f"player_{name}"][0]) for name in ("ess", "truncated")] == pytest.approx(player)
    assert [float(metrics[f"opponent_{name}"][0]) for name in ("ess", "truncated")] == pytest.approx(opponent)


def test_preference_and_kl_are_means_over_the_players():
    """Weights 1 and 2 of the opponents: v = (.3 + 2 * .1) / 2 and (-.2 + 2 * 0) / 2; log-ratios .5 and -.1."""
    metrics = hand_game(CorrectionConfig())
    assert metrics["player_preference"].tolist() == pytest.approx([0.5 + (0.25 - 0.1) / 2])
    assert metrics["kl_players"].tolist() == pytest.approx([0.2])
    assert metrics["advantage_std"].tolist() == pytest.approx([abs(0.25 - TAU * 0.5 - (-0.1 + TAU * 0.1)) / 2])


@pytest.mark.parametrize(("spread", "mean"), [(0.5, 0.97), (1.0, 0.81), (1.5, 0.61), (2.0, 0.44), (3.0, 0.19)])
def test_the_mean_of_capped_weights_is_how_much_the_preference_term_shrinks(spread: float, mean: float):
    """E[min(w, 2)] of log-ratios N(-s^2/2, s^2): at s = 2 tau acts as 2.3 tau, and nothing told it."""
    generator = torch.Generator().manual_seed(0)
    ratios = -(spread**2) / 2 + spread * torch.randn(500, 200, 1, generator=generator, dtype=torch.float64)
    zero, one = torch.zeros_like(ratios), torch.ones_like(ratios)
    batch = GameBatch(zero, zero, zero, ratios, one, zero, zero[..., 0], players=0)
    assert float(opponent_weights(batch, CorrectionConfig()).mean()) == pytest.approx(mean, abs=0.01)


def test_the_weights_mean_is_told_and_divides_the_value():
    """Weights 1 and 2 of two opponents, mean 3/2, as above; divided by it the values are 2/3 of those."""
    plain, divided = hand_game(CorrectionConfig()), hand_game(CorrectionConfig(), 1.5)
    assert plain["opponent_weight_mean"].tolist() == divided["opponent_weight_mean"].tolist() == [1.5]
    assert divided["player_preference"].tolist() == pytest.approx([0.5 + (0.25 - 0.1) / 3])


def hand_game(correction: CorrectionConfig, opponent_mean: float = 1.0) -> dict[str, Tensor]:
    """Metrics of two players and two drawn opponents; the second of each has one token."""
    ratios = tensor([[[4.0, 1.0], [0.25, 1.0], [4.0, 0.25], [8.0, 1.0]]]).log()
    mask = tensor([[[1, 1], [1, 0], [1, 1], [1, 0]]])
    policy = torch.full((1, 4, 2), -3.0, dtype=torch.float64) * mask
    reference = policy - tensor([[[0.2, 0.3], [-0.1, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    preferences = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    preferences[0, :2, 2:] = tensor([[0.8, 0.6], [0.3, 0.5]])
    batch = GameBatch(policy, reference, policy - ratios, policy, mask, preferences, torch.zeros(1, 4), 2)
    return dict(game_loss(batch, loss_of("nash_pg", correction, tau=TAU), opponent_mean).metrics)
