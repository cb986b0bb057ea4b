"""What differs between losses on pairs and on games: micro-batches, sequences, the loss and what is measured.

Pure functions of items and token log-probs; knows nothing of models, ranks' communication or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Game, Pair
from learner import batching
from learner.batching import TokenBatch, TokenSequence, pad_by_sequence, sum_by_sequence
from learner.config import CorrectionConfig, LearnerConfig, LossConfig
from learner.losses import preference_loss, tie_loss
from learner.nash import GameBatch, game_loss, importance_weights, roles, sequence_weights
from learner.stability import step_size_estimate


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probs [n] (nats) of a micro-batch's response tokens, in the order of its sequences."""

    policy: Tensor
    """Carries the gradient."""
    reference: Tensor
    opponent: Tensor | None = None
    """Under the opponent as it is at this update; where the objective needs it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A micro-batch of b items, measured."""

    loss: Tensor
    """[b]; carries the gradient."""
    metrics: Mapping[str, Tensor]
    """[b] each, detached."""
    behaviour_log_ratio: Tensor
    """[tokens] log pi - log b."""
    opponent_log_ratio: Tensor | None = None
    """[tokens] log pi' - log b of the opponents' tokens, where pi' was computed."""
    player_logprobs: Tensor | None = None
    """Games: [b, K] log pi of each player, detached."""
    advantages: Tensor | None = None
    """Games: [b, K] A of each player, detached."""


class Objective(Protocol):
    """How a loss consumes the items of a batch."""

    metrics: tuple[str, ...]
    """Names of the values averaged over items."""
    needs_opponent: bool
    """Whether `measure` reads the opponent's log-probs."""

    def check(self, items: Sequence[Any]) -> None:
        """Raises UsageError unless `items` are at least one, all of the kind and shape that the loss consumes."""

    def micro_batches(self, items: Sequence[Any], rank: int, ranks: int) -> list[list[Any]]:
        """This rank's micro-batches: as many on every rank, at least one, some possibly empty."""

    def filler(self, items: Sequence[Any]) -> Any:
        """The cheapest item, for a rank that has none."""

    def sequences(self, members: Sequence[Any]) -> Sequence[TokenSequence]:
        """What goes through the models for `members`."""

    def measure(self, members: Sequence[Any], batch: TokenBatch, logprobs: TokenLogProbs) -> Measured:
        """Losses and metrics of `members`, whose collated `sequences` are `batch`."""

    def counts(self, items: Sequence[Any]) -> dict[str, int]:
        """Numbers of items as `UpdateStats` names them."""

    def constant_loss(self, items: Sequence[Any]) -> float:
        """Summed loss of the items that no micro-batch holds."""


def objective_of(config: LearnerConfig) -> Objective:
    """The objective that `config.loss` asks for."""
    return PairObjective(config) if config.loss.on_pairs else GameObjective(config)


class PairObjective:
    """Losses on pairs. Ties are not computed: their loss is constant."""

    metrics: tuple[str, ...] = ("margin", "accuracy", "kl_chosen", "kl_rejected")
    needs_opponent: bool = False

    def __init__(self, config: LearnerConfig) -> None:
        self._loss, self._tokens = config.loss, config.micro_batch_tokens

    def check(self, items: Sequence[Pair]) -> None:
        _check_kind(items, Pair, self._loss)

    def micro_batches(self, items: Sequence[Pair], rank: int, ranks: int) -> list[list[Pair]]:
        return batching.micro_batches(items, rank, ranks, self._tokens)

    def filler(self, items: Sequence[Pair]) -> Pair:
        return batching.filler(items)

    def sequences(self, members: Sequence[Pair]) -> Sequence[TokenSequence]:
        return batching.sequences_of(members)

    def measure(self, members: Sequence[Pair], batch: TokenBatch, logprobs: TokenLogProbs) -> Measured:
        count = 2 * len(members)
        policy = sum_by_sequence(logprobs.policy, batch.rows, count)
        reference = sum_by_sequence(logprobs.reference, batch.rows, count)
        (chosen, rejected), (reference_chosen, reference_rejected) = policy.chunk(2), reference.chunk(2)
        output = preference_loss(chosen, rejected, reference_chosen, reference_rejected, self._loss)
        kl_chosen, kl_rejected = (policy - reference).detach().chunk(2)
        behaviour = torch.tensor(batching.behaviour_logprobs(members), device=batch.rows.device)
        metrics = {**output.metrics, "kl_chosen": kl_chosen, "kl_rejected": kl_rejected}
        return Measured(output.loss, metrics, logprobs.policy.detach() - behaviour)

    def counts(self, items: Sequence[Pair]) -> dict[str, int]:
        return {"pairs": len(items), "ties": sum(pair.tie for pair in items)}

    def constant_loss(self, items: Sequence[Pair]) -> float:
        return sum(pair.tie for pair in items) * tie_loss(self._loss)


class GameObjective:
    """Losses on games. All completions of a game go through the models together, opponents too.

    Opponents drawn apart carry gradient through the forward pass although only `ipo_md` uses it: one pass over all is
    simpler and costs their share of the backward pass.
    """

    def __init__(self, config: LearnerConfig) -> None:
        self._loss, self._correction, self._tokens = config.loss, config.correction, config.micro_batch_tokens
        self.needs_opponent = self._loss.has_opponent and self._correction.opponents != "none"
        self.metrics: tuple[str, ...] = ("preference", "kl_players", "advantage_std", "player_ess", "player_truncated")
        if self._loss.has_opponent:
            self.metrics += ("opponent_ess", "opponent_truncated")

    def check(self, items: Sequence[Game]) -> None:
        _check_kind(items, Game, self._loss)
        shapes = {(len(game.players), len(game.opponents)) for game in items}
        if len(shapes) > 1:
            raise UsageError(
                f"a batch holds games of {len(shapes)} shapes (players, opponents): {sorted(shapes)}; all games of a "
                "batch must have as many of both"
            )

    def micro_batches(self, items: Sequence[Game], rank: int, ranks: int) -> list[list[Game]]:
        return batching.game_micro_batches(items, rank, ranks, self._tokens)

    def filler(self, items: Sequence[Game]) -> Game:
        return min(items, key=batching.game_length)

    def sequences(self, members: Sequence[Game]) -> Sequence[TokenSequence]:
        return batching.game_sequences(members)

    def measure(self, members: Sequence[Game], batch: TokenBatch, logprobs: TokenLogProbs) -> Measured:
        games = game_batch(members, batch, logprobs)
        output = game_loss(games, self._loss, self._correction)
        players = games.players
        log_ratio = (games.policy.detach() - games.behaviour)[:, :players][games.mask[:, :players] > 0]
        opponent_log_ratio = None
        if self.needs_opponent:
            first = players if members[0].opponents else 0
            opponent_log_ratio = (games.opponent - games.behaviour)[:, first:][games.mask[:, first:] > 0]
        return Measured(
            output.loss,
            {**output.metrics, "kl_players": output.metrics["kl"]},  # `kl` is that of evaluations
            log_ratio,
            opponent_log_ratio,
            games.policy.detach()[:, :players].sum(-1),
            advantages(games, self._loss, self._correction),
        )

    def counts(self, items: Sequence[Game]) -> dict[str, int]:
        return {"games": len(items)}

    def constant_loss(self, items: Sequence[Game]) -> float:
        return 0.0


def game_batch(members: Sequence[Game], batch: TokenBatch, logprobs: TokenLogProbs) -> GameBatch:
    """The padded tensors of `members`, games of one shape, from the log-probs of their tokens.

    Where the opponent's were not computed the policy's stand in; the loss does not read them then.
    """
    g, n = len(members), len(members[0].completions)
    device = batch.rows.device
    recorded = [value for game in members for completion in game.completions for value in completion.logprobs]

    def padded(values: Tensor) -> Tensor:
        return pad_by_sequence(values, batch.rows, g * n)[0].view(g, n, -1)

    policy = padded(logprobs.policy)
    mask = pad_by_sequence(logprobs.policy.detach(), batch.rows, g * n)[1]
    return GameBatch(
        policy=policy,
        reference=padded(logprobs.reference),
        behaviour=padded(torch.tensor(recorded, device=device)),
        opponent=policy.detach() if logprobs.opponent is None else padded(logprobs.opponent),
        mask=mask.view(g, n, -1).to(policy.dtype),
        preferences=torch.tensor([game.preferences for game in members], device=device),
        scores=torch.tensor([game.scores for game in members], device=device),
        players=len(members[0].players),
    )


def advantages(games: GameBatch, config: LossConfig, correction: CorrectionConfig) -> Tensor:
    """A [g, K] of the players, detached: v_i - tau log(pi(y_i) / mu(y_i)), as `nash` defines it."""
    mask = games.mask.to(games.policy.dtype)
    if config.has_opponent:
        against, _ = roles(games.players, games.mask.shape[1] - games.players, mask.device)
        settings = (correction.opponents, correction.opponent_cap, correction.beyond_cap)
        tokens = importance_weights(games.opponent - games.behaviour, mask, *settings)
        weights = sequence_weights(tokens, mask, correction.opponents)
        gains = weights[:, None, :] * (games.preferences - 0.5) * against.to(mask)
        value = gains.sum(-1) / against.to(mask).sum(-1).clamp(min=1.0)
    else:
        value = games.scores
    log_ratio = ((games.policy.detach() - games.reference) * mask).sum(-1)
    return (value - config.tau * log_ratio)[:, : games.players]


@dataclass(frozen=True, slots=True)
class Players:
    """One game's players as they were before a step."""

    sequences: list[TokenSequence]
    logprobs: list[float]
    """[K] log pi(y|x), nats."""
    advantages: list[float]
    """[K]"""


def players_of(games: Sequence[Game], measured: Measured) -> list[Players]:
    """The players of `games`, of which `measured` was made; none for no games."""
    if not games:
        return []
    assert measured.player_logprobs is not None
    assert measured.advantages is not None
    rows = zip(games, measured.player_logprobs.tolist(), measured.advantages.tolist(), strict=True)
    return [
        Players([(game.prompt_token_ids, player.token_ids) for player in game.players], logprobs, advantages)
        for game, logprobs, advantages in rows
    ]


def step_size(players: Sequence[Players], logprobs_after: Sequence[float]) -> float:
    """eta of a step: slope of the players' change of log pi(y|x) on their advantages (`stability`).

    `logprobs_after` holds the log-probs (nats) of all sequences of `players`, in order, after the step.
    """
    change = np.array(logprobs_after).reshape(len(players), -1) - np.array([game.logprobs for game in players])
    return step_size_estimate(change, np.array([game.advantages for game in players]))


def _check_kind(items: Sequence[Any], kind: type, loss: LossConfig) -> None:
    name = kind.__name__.lower()
    if not items:
        raise UsageError(f"an update needs at least one {name}; it was given none")
    for item in items:
        if not isinstance(item, kind):
            raise UsageError(
                f"learner.loss.kind {loss.kind} consumes {name}s, and the batch holds a {type(item).__name__}; give "
                f"{name}s, or set learner.loss.kind to a loss on {'games' if kind is Pair else 'pairs'}"
            )
