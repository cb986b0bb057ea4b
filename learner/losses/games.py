"""Losses on preference games as pure functions of token log-probs. Must not depend on models, ranks or batching.

A game is a matrix game between the n = K + M completions of one prompt: K players, sampled from the policy pi, and M
opponents, sampled for pi'. If M = 0, each half of the players plays against the other half, so no completion is judged
against itself. Log-probs are in nats. mu is the frozen reference, P[i, j] the probability that i is preferred to j, and
b (`behaviour` in code) the distribution that a token was sampled from. With

    v_i = mean over i's opponents j of w'_j (P[i, j] - 1/2),       w'_j = pi'(y_j) / b(y_j), capped
    A_i = v_i - tau log(pi(y_i) / mu(y_i))

the policy gradient of Nash-MD-PG (Munos et al. 2023, "Nash Learning from Human Feedback", section 7) is the mean of
w_i grad log pi(y_i) (A_i - baseline). The advantages A and all importance weights are constants.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learner.losses.anchor import anchored, pulled_to
from learner.losses.config import CorrectionConfig, GameLossConfig, Level, RewardLossConfig
from learner.losses.pairs import LossOutput

LARGEST = 20.0
"""Limit of a log-ratio (nats). e^20 exceeds any sensible cap, and products of larger ratios might overflow."""


@dataclass(frozen=True, slots=True)
class GameBatch:
    """Input of a loss: g games of n = K + M completions with at most t tokens.

    With M > 0, `ipo_md` takes its gradient from the opponents only, and the other losses from the players only.
    """

    policy: Tensor
    """[g, n, t] log pi of each token; carries the gradient. 0 at padding, as are all log-probs."""
    reference: Tensor  # [g, n, t] log mu
    behaviour: Tensor
    """[g, n, t] log b, recorded when the token was sampled."""
    opponent: Tensor
    """[g, n, t] log pi' of each token, with the current opponent; used only for the opponents' importance weights."""
    mask: Tensor
    """[g, n, t] 1 at tokens, 0 at padding."""
    preferences: Tensor  # [g, n, n] P
    scores: Tensor
    """[g, n] the judge's scores; used only by `rloo`."""
    players: int  # K
    anchor: Tensor | None = None
    """[g, n, t] log u of each token, the policy's slow average, if the loss pulls to it (`anchor.py`)."""
    values: Tensor | None = None
    """[g, n, t] the score expected before each token; carries the gradient. Used only by `ppo`."""


@dataclass(frozen=True, slots=True)
class GameOutput(LossOutput):
    """One loss per game [g], and its metrics, [g] each."""

    advantages: Tensor  # [g, K] A of each player, detached


def importance_weights(log_ratio: Tensor, mask: Tensor, level: str, cap: float, beyond_cap: str) -> Tensor:
    """Return importance weights [g, n, t] of tokens from log_ratio [g, n, t] = log target - log behaviour (nats).

    A token's weight depends on `level`:

    * none: 1.
    * token: its own ratio, capped.
    * sequence: the product of the ratios of its whole completion, capped.

    Truncation at `cap` follows V-trace (Espeholt et al. 2018, eq. 1). If `beyond_cap` is mask, ratios outside
    [1/cap, cap] become 0 instead.
    """
    exponent = _exponent(log_ratio, mask, level)
    ratio = exponent.clamp(-LARGEST, LARGEST).exp().clamp(max=cap)
    return ratio * mask * ~_beyond(exponent, cap, beyond_cap) if beyond_cap == "mask" else ratio * mask


def sequence_weights(token_weights: Tensor, mask: Tensor, level: str) -> Tensor:
    """Return weights [g, n] of whole completions from `importance_weights`; at level token the product over tokens."""
    if level == "token":
        return torch.where(mask > 0, token_weights, 1.0).log().sum(-1).clamp(max=LARGEST).exp()
    return token_weights.amax(-1)


def _exponent(log_ratio: Tensor, mask: Tensor, level: str) -> Tensor:
    """Return the log of the uncapped token weights [g, n, t]."""
    if level == "none":
        return torch.zeros_like(mask)
    exponent = log_ratio * mask
    return exponent if level == "token" else exponent.sum(-1, keepdim=True).expand_as(mask)


def _beyond(exponent: Tensor, cap: float, beyond_cap: str) -> Tensor:
    return (exponent.abs() if beyond_cap == "mask" else exponent) > math.log(cap)


def roles(players: int, opponents: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return who plays against whom, and who are peers: two [n, n] tables of 0 and 1.

    A row without opponents is inactive. If `opponents` is 0, the first half of the players plays against the second.
    Peers share a role; a completion is not its own peer.
    """
    n = players + opponents
    side = torch.arange(n, device=device) >= (players if opponents else players // 2)
    against = side[:, None] != side[None, :]
    peers = ~against & ~torch.eye(n, dtype=torch.bool, device=device)
    if opponents:
        against[players:] = False
    return against.double(), peers.double()


def _mean(values: Tensor, table: Tensor) -> Tensor:
    """Average `values` [g, n] (or row i of [g, n, n]) over the columns set in row i of `table` [n, n]; 0 if none is."""
    rows = values if values.dim() == 3 else values[:, None, :].expand(-1, table.shape[0], -1)
    return (rows * table).sum(-1) / table.sum(-1).clamp(min=1.0)


def game_loss(
    batch: GameBatch,
    config: RewardLossConfig | GameLossConfig,
    opponent_mean: float = 1.0,
    anchor_weight: float = 0.0,
) -> GameOutput:
    """Compute the loss and metrics of each game, [g] each. Opponents' weights are divided by `opponent_mean`.

    With `anchor_weight` mu below is the geometric mean of reference and anchor, and tau has that much more.

    * nash_pg: mean over players of -w_i (A_i - baseline) log pi(y_i). With `kl: reward_to_go` the KL penalty in
      token m's advantage covers only the log-ratios of tokens >= m.
    * rloo: the same with the judge's score as v_i: KL-regularised policy gradient, with a `leave_one_out` baseline
      RLOO (Ahmadian et al. 2024).
    * online_ipo: mean over pairs of peers (i, l) of w_i w_l (h_i - h_l - (v_i - v_l) / tau)^2, h = log(pi / mu). Its
      fixed point does not depend on how y_i and y_l were sampled (Zhou et al. 2025, arXiv 2503.08942, generalised IPO).
    * ipo_md: mean over pairs of opponents, sampled from the mixture or weighted by w'_i w'_j, of
      P (h_i - h_j - 1 / (2 tau))^2 + (1 - P) (h_j - h_i - 1 / (2 tau))^2 (Calandriello et al. 2024, "Human Alignment of
      Large Language Models through Online Preference Optimisation", section 5). With M > 0 players are not used.

    Metrics: `player_preference`, mean v_i + 1/2 (not for rloo); `kl_players`, mean log(pi / mu) (nats);
    `advantage_std`; and those of `_weight_metrics`. The first two average over the sampled players without importance
    weights, so they estimate the policy's values only for on-policy players.

    Every completion needs comparisons: K >= 2 with opponents, K >= 4 without, and M >= 2 for ipo_md.
    """
    correction, mask = config.correction, batch.mask.to(batch.policy.dtype)
    moved = distances(batch)
    if batch.anchor is not None:
        prior = pulled_to(batch.reference, batch.anchor, config.tau, anchor_weight)
        batch, config = replace(batch, reference=prior), anchored(config, anchor_weight)
    playing = (torch.arange(mask.shape[1], device=mask.device) < batch.players).to(mask)
    peers = _peers(batch, isinstance(config, RewardLossConfig)) * playing * playing[:, None]

    policy = batch.policy.detach()
    log_ratio = (policy - batch.reference) * mask
    level, cap, beyond = correction.players, correction.player_cap, correction.beyond_cap
    w = importance_weights(policy - batch.behaviour, mask, level, cap, beyond)
    capped = opponent_weights(batch, config.correction) if isinstance(config, GameLossConfig) else None
    w_opponent = None if capped is None else capped / opponent_mean
    value, advantage = advantages(batch, w_opponent, config)

    if w_opponent is None or config.kind == "nash_pg":
        gain = value - (_mean(advantage, peers) if correction.baseline == "leave_one_out" else 0.0)
        loss = _policy_gradient(batch, gain, w, log_ratio, config)
    elif config.kind == "online_ipo":
        loss = _online_ipo(batch, value, sequence_weights(w, mask, level), peers, config.tau)
    else:
        loss = _ipo_md(batch, w_opponent, config.tau)

    spread = advantage[:, : batch.players].std(-1, correction=0)
    metrics = {**moved, "advantage_std": spread, **_weight_metrics(batch, mask, w, capped, config)}
    if w_opponent is not None:
        metrics["player_preference"] = (value * playing).sum(-1) / batch.players + 0.5
    return GameOutput(loss=loss, metrics=metrics, advantages=advantage[:, : batch.players])


def _peers(batch: GameBatch, all_alike: bool) -> Tensor:
    """Return who are peers by their roles, [n, n]; with `all_alike` every other completion is one."""
    n, like = batch.mask.shape[1], batch.policy
    if all_alike:
        return 1.0 - torch.eye(n, device=like.device, dtype=like.dtype)
    return roles(batch.players, n - batch.players, like.device)[1].to(like.dtype)


def distances(batch: GameBatch) -> dict[str, Tensor]:
    """Return the players' mean log-ratio of the policy to reference and anchor, [g] each (nats per completion)."""
    others = {"kl_players": batch.reference, "kl_anchor": batch.anchor}
    own = (batch.policy.detach(), batch.mask)
    return {
        name: ((own[0] - other) * own[1])[:, : batch.players].sum((-1, -2)) / batch.players
        for name, other in others.items()
        if other is not None
    }


def opponents_of(values: Tensor, players: int) -> Tensor:
    """Return the columns [g, M] of `values` [g, n] that are opponents: all if M = 0, since both halves are."""
    return values[:, players if players < values.shape[1] else 0 :]


def opponent_weights(batch: GameBatch, correction: CorrectionConfig) -> Tensor:
    """Return the importance weights w' [g, n] as opponents, detached."""
    mask = batch.mask.to(batch.policy.dtype)
    log_ratio = (batch.opponent - batch.behaviour).detach()
    level, cap = correction.opponents, correction.opponent_cap
    return sequence_weights(importance_weights(log_ratio, mask, level, cap, correction.beyond_cap), mask, level)


def advantages(
    batch: GameBatch, w_opponent: Tensor | None, config: RewardLossConfig | GameLossConfig
) -> tuple[Tensor, Tensor]:
    """Compute v and A [g, n] of every completion, detached, from w' [g, n]; without w' (rloo) v is the score.

    Undefined for non-players.
    """
    mask = batch.mask.to(batch.policy.dtype)
    if w_opponent is None:
        value = batch.scores.to(mask)
    else:
        against = roles(batch.players, mask.shape[1] - batch.players, mask.device)[0].to(mask)
        value = _mean(w_opponent[:, None, :] * (batch.preferences.to(mask) - 0.5), against)
    return value, value - config.tau * ((batch.policy.detach() - batch.reference) * mask).sum(-1)


def _policy_gradient(
    batch: GameBatch, gain: Tensor, w: Tensor, log_ratio: Tensor, config: RewardLossConfig | GameLossConfig
) -> Tensor:
    """Return the mean over players of -w_i (gain_i - KL) log pi(y_i), [g], from `gain` [g, n] = v - baseline."""
    to_go = config.correction.kl == "reward_to_go"
    charged = log_ratio.flip(-1).cumsum(-1).flip(-1) if to_go else log_ratio.sum(-1, True)
    terms = w * (gain[:, :, None] - config.tau * charged) * batch.policy * batch.mask
    return -terms[:, : batch.players].sum((-1, -2)) / batch.players


def _online_ipo(batch: GameBatch, value: Tensor, weights: Tensor, peers: Tensor, tau: float) -> Tensor:
    residual = ((batch.policy - batch.reference) * batch.mask).sum(-1) - value / tau
    squares = (residual[:, :, None] - residual[:, None, :]).square() * weights[:, :, None] * weights[:, None, :]
    return (squares * peers).sum((-1, -2)) / peers.sum()


def _ipo_md(batch: GameBatch, w_opponent: Tensor, tau: float) -> Tensor:
    first = batch.players if batch.players < w_opponent.shape[1] else 0
    h = ((batch.policy - batch.reference) * batch.mask).sum(-1)[:, first:]
    p = batch.preferences[:, first:, first:].to(h)
    weights = w_opponent[:, first:]
    difference = h[:, :, None] - h[:, None, :]
    margin = 1.0 / (2.0 * tau)
    soft = p * (difference - margin).square() + (1.0 - p) * (difference + margin).square()
    others = 1.0 - torch.eye(h.shape[1], device=h.device, dtype=h.dtype)
    return (soft * others * weights[:, :, None] * weights[:, None, :]).sum((-1, -2)) / others.sum()


def _weight_metrics(
    batch: GameBatch, mask: Tensor, w: Tensor, w_opponent: Tensor | None, config: RewardLossConfig | GameLossConfig
) -> dict[str, Tensor]:
    """Compute effective sample sizes (Kish: (sum w)^2 / (n sum w^2), a share) and shares beyond the cap, [g] each.

    `player_ess`, `player_truncated` and `opponent_truncated` are shares of tokens at level token, else of completions;
    `opponent_ess` is always of completions, as is `opponent_weight_mean`, before any division by the batch's mean. If
    M = 0, every completion counts as an opponent.
    """
    n, players, correction = mask.shape[1], batch.players, config.correction
    sides: list[tuple[str, slice, Level, float, Tensor]] = [
        ("player", slice(0, players), correction.players, correction.player_cap, batch.policy.detach())
    ]
    if isinstance(config, GameLossConfig):
        level, cap = config.correction.opponents, config.correction.opponent_cap
        sides.append(("opponent", slice(players if players < n else 0, n), level, cap, batch.opponent.detach()))
    metrics = {}
    for role, chosen, level, cap, target in sides:
        exponent = _exponent(target - batch.behaviour, mask, level)[:, chosen]
        # At other levels a completion counts once, split evenly over its tokens.
        share = 1.0 if level == "token" else mask[:, chosen].sum(-1, keepdim=True).clamp(min=1.0)
        counts = mask[:, chosen] / share
        beyond = _beyond(exponent, cap, correction.beyond_cap)
        metrics[f"{role}_truncated"] = (beyond * counts).sum((-1, -2)) / counts.sum((-1, -2))
        if role == "player" or w_opponent is None:
            metrics["player_ess"] = effective_share(w[:, chosen].flatten(1), counts.flatten(1))
        else:
            metrics["opponent_ess"] = effective_share(w_opponent[:, chosen], torch.ones_like(w_opponent[:, chosen]))
            metrics["opponent_weight_mean"] = w_opponent[:, chosen].mean(-1)
    return metrics


def effective_share(weights: Tensor, counts: Tensor) -> Tensor:
    """Return the effective sample size of weights [g, n] as a share (Kish), [g]; `counts` [g, n]: how often each."""
    total, squares = (weights * counts).sum(-1), (weights.square() * counts).sum(-1)
    return total.square() / (counts.sum(-1) * squares).clamp(min=1e-30)
