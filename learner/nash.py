"""Losses on preference games as pure functions of token log-probs. Knows nothing of models, ranks or batching.

A game is one prompt's n = K + M completions: K players, sampled by the policy pi, and M opponents pi'; with M = 0 each
half of the players plays against the other, so that no completion is judged by what it decides itself. Log-probs are in
nats; mu is the frozen reference, P[i, j] the probability that i is preferred to j, and `b` in equations (behaviour in
code) the distribution that sampled a token. With

    v_i = mean over i's opponents j of w'_j (P[i, j] - 1/2),       w'_j = pi'(y_j) / b(y_j), capped
    A_i = v_i - tau log(pi(y_i) / mu(y_i))

the policy gradient of Nash-MD-PG (Munos et al. 2023, "Nash Learning from Human Feedback", section 7) is the mean of
w_i grad log pi(y_i) (A_i - baseline); A and all weights are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import CorrectionConfig, LossConfig
from learner.losses import LossOutput


@dataclass(frozen=True, slots=True)
class GameBatch:
    """Games of one shape, as a loss sees them. g games, n = K + M completions each, t tokens at most."""

    policy: Tensor
    """[g, n, t] log pi of each token; carries the gradient. 0 at padding, as in all of them."""
    reference: Tensor
    """[g, n, t] log mu."""
    behaviour: Tensor
    """[g, n, t] recorded log-prob under what sampled the token."""
    opponent: Tensor
    """[g, n, t] log pi' of each token, the opponent as it is now; read where weights of opponents are."""
    mask: Tensor
    """[g, n, t] 1 at tokens, 0 at padding."""
    preferences: Tensor
    """[g, n, n] P."""
    scores: Tensor
    """[g, n] judge's scores; read by `reward_pg`."""
    players: int
    """K."""


def importance_weights(log_ratio: Tensor, mask: Tensor, level: str, cap: float, beyond_cap: str) -> Tensor:
    """Weights [g, n, t] of tokens, from log_ratio [g, n, t] = log target - log behaviour (nats).

    * none: 1.
    * token: each token its own ratio, capped.
    * sequence: each token the product of the whole completion's ratios, capped.

    Truncation to `cap` from above is V-trace's (Espeholt et al. 2018, eq. 1); masking sets ratios outside [1/cap, cap]
    to 0.
    """
    if level == "none":
        return mask
    exponent = log_ratio * mask
    if level == "sequence":
        exponent = exponent.sum(-1, keepdim=True).expand_as(mask)
    # Beyond e^20 a ratio is far over any cap; unclamped it might overflow.
    ratio = exponent.clamp(-20.0, 20.0).exp()
    capped = ratio * ((ratio <= cap) & (ratio >= 1.0 / cap)) if beyond_cap == "mask" else ratio.clamp(max=cap)
    return capped * mask


def sequence_weights(token_weights: Tensor, mask: Tensor, level: str) -> Tensor:
    """Weights [g, n] of whole completions from `importance_weights`: the product over tokens of token weights."""
    if level == "token":
        return torch.where(mask > 0, token_weights, 1.0).prod(-1)
    return token_weights.amax(-1)


def roles(players: int, opponents: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Who plays against whom, and who are peers: two [n, n] tables of 0 and 1; a row without opponents plays not.

    Without opponents the first half of the players and the rest play against each other. Peers share a role; nobody is
    their own peer.
    """
    n = players + opponents
    side = torch.arange(n, device=device) >= (players if opponents else players // 2)
    against = side[:, None] != side[None, :]
    peers = ~against & ~torch.eye(n, dtype=torch.bool, device=device)
    if opponents:
        against[players:] = False
    return against.double(), peers.double()


def _mean(values: Tensor, table: Tensor) -> Tensor:
    """Row i: mean of `values` [g, n] (or of row i of [g, n, n]) over the columns that table [n, n] names; else 0."""
    rows = values if values.dim() == 3 else values[:, None, :].expand(-1, table.shape[0], -1)
    return (rows * table).sum(-1) / table.sum(-1).clamp(min=1.0)


def game_loss(batch: GameBatch, config: LossConfig, correction: CorrectionConfig) -> LossOutput:
    """Loss of each game, [g], and what is worth watching, [g] each.

    * nash_pg: sum over the players of -w_i (A_i - baseline) log pi(y_i), over K. With `reward_to_go` token m's gradient
      is charged with the log-ratios of tokens >= m only.
    * reward_pg: the same with v_i the judge's score: KL-regularised policy gradient; with `leave_one_out` it is RLOO
      (Ahmadian et al. 2024).
    * online_ipo: mean over pairs of peers (i, l) of (h_i - h_l - (v_i - v_l) / tau)^2, h = log(pi / mu), whose fixed
      point does not depend on how y_i and y_l were sampled (Zhou et al. 2025, arXiv 2503.08942, generalised IPO).
    * ipo_md: mean over pairs of opponents of P (h_i - h_l - 1 / (2 tau))^2 + (1 - P) (h_l - h_i - 1 / (2 tau))^2, both
      drawn from the mixture (Calandriello et al. 2024, "Human Alignment of Large Language Models through Online
      Preference Optimisation", section 5).

    Metrics: `preference` mean v_i + 1/2; `kl` mean log(pi / mu) of a player, nats; `advantage_std`; effective sample
    size and truncated share of both weights: `player_ess`, `player_truncated`, `opponent_ess`, `opponent_truncated`.
    """
    mask = batch.mask.to(batch.policy.dtype)
    g, n, _ = mask.shape
    drawn = n - batch.players
    against, peers = (table.to(mask) for table in roles(batch.players, drawn, mask.device))
    detached = batch.policy.detach()
    log_ratio = (detached - batch.reference) * mask
    player_log = detached - batch.behaviour
    opponent_log = batch.opponent - batch.behaviour
    w = importance_weights(player_log, mask, correction.players, correction.player_cap, correction.beyond_cap)
    w_opponent = sequence_weights(
        importance_weights(opponent_log, mask, correction.opponents, correction.opponent_cap, correction.beyond_cap),
        mask,
        correction.opponents,
    )
    if config.kind == "reward_pg":
        value = batch.scores.to(mask)
        against, peers = against * 0.0, peers.new_ones(n, n) - torch.eye(n, device=mask.device, dtype=mask.dtype)
        playing = torch.ones(n, device=mask.device, dtype=mask.dtype)
    else:
        value = _mean(w_opponent[:, None, :] * (batch.preferences.to(mask) - 0.5), against)
        playing = (against.sum(-1) > 0).to(mask)
    advantage = value - config.tau * log_ratio.sum(-1)

    if config.kind == "online_ipo":
        loss = _online_ipo(batch, value, w, peers * playing * playing[:, None], config.tau)
    elif config.kind == "ipo_md":
        loss = _ipo_md(batch, w_opponent, drawn, config.tau)
    else:
        charged = (
            advantage[:, :, None]
            if correction.kl == "sequence"
            else (value[:, :, None] - config.tau * log_ratio.flip(-1).cumsum(-1).flip(-1))
        )
        baseline = _mean(advantage, peers * playing)[:, :, None] if correction.baseline == "leave_one_out" else 0.0
        terms = w * (charged - baseline) * batch.policy * mask
        loss = -(terms.sum(-1) * playing).sum(-1) / playing.sum()

    everyone = torch.ones(n, device=mask.device, dtype=mask.dtype)
    opposing = everyone if not drawn else 1.0 - playing
    metrics = {
        "preference": (value * playing).sum(-1) / playing.sum() + (0.0 if config.kind == "reward_pg" else 0.5),
        "kl": (log_ratio.sum(-1) * playing).sum(-1) / playing.sum(),
        "advantage_std": _std(advantage, playing),
        "player_ess": _ess(_sequence_mean(w, mask), playing),
        "player_truncated": _truncated(player_log, mask, correction.players, correction.player_cap, playing),
        "opponent_ess": _ess(w_opponent, opposing),
        "opponent_truncated": _truncated(opponent_log, mask, correction.opponents, correction.opponent_cap, opposing),
    }
    return LossOutput(loss=loss, metrics={name: values.detach().expand(g) for name, values in metrics.items()})


def _online_ipo(batch: GameBatch, value: Tensor, w: Tensor, peers: Tensor, tau: float) -> Tensor:
    h = ((batch.policy - batch.reference) * batch.mask).sum(-1)
    residual = h - value / tau
    weights = _sequence_mean(w, batch.mask)
    squares = (residual[:, :, None] - residual[:, None, :]).square() * weights[:, :, None] * weights[:, None, :]
    return (squares * peers).sum((-1, -2)) / peers.sum()


def _ipo_md(batch: GameBatch, w_opponent: Tensor, drawn: int, tau: float) -> Tensor:
    first = batch.players if drawn else 0
    h = ((batch.policy - batch.reference) * batch.mask).sum(-1)[:, first:]
    p = batch.preferences[:, first:, first:].to(h)
    weights = w_opponent[:, first:]
    difference = h[:, :, None] - h[:, None, :]
    margin = 1.0 / (2.0 * tau)
    soft = p * (difference - margin).square() + (1.0 - p) * (difference + margin).square()
    others = 1.0 - torch.eye(h.shape[1], device=h.device, dtype=h.dtype)
    return (soft * others * weights[:, :, None] * weights[:, None, :]).sum((-1, -2)) / others.sum()


def _sequence_mean(w: Tensor, mask: Tensor) -> Tensor:
    return (w * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)


def _std(values: Tensor, chosen: Tensor) -> Tensor:
    mean = (values * chosen).sum(-1, keepdim=True) / chosen.sum()
    return (((values - mean).square() * chosen).sum(-1) / chosen.sum()).sqrt()


def _ess(weights: Tensor, chosen: Tensor) -> Tensor:
    """Effective sample size as a share of the samples (Kish): (sum w)^2 / (n sum w^2)."""
    total, squares = (weights * chosen).sum(-1), (weights.square() * chosen).sum(-1)
    return total.square() / (chosen.sum() * squares).clamp(min=1e-30)


def _truncated(log_ratio: Tensor, mask: Tensor, level: str, cap: float, chosen: Tensor) -> Tensor:
    """Share of weights whose ratio is over `cap`: of tokens with `token`, else of completions."""
    if level == "none":
        return torch.zeros(mask.shape[0], device=mask.device, dtype=mask.dtype)
    over = torch.log(torch.tensor(cap, dtype=mask.dtype, device=mask.device))
    if level == "token":
        return ((log_ratio > over) * mask * chosen[:, None]).sum((-1, -2)) / (mask * chosen[:, None]).sum((-1, -2))
    return (((log_ratio * mask).sum(-1) > over) * chosen).sum(-1) / chosen.sum()
