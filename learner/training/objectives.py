"""What differs between losses on pairs and on games: micro-batches, passes, the loss and what is measured.

Pure functions of items and token log-probs; knows nothing of models, ranks' communication or optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Game, Pair
from learner.config import LearnerConfig, LossConfig
from learner.games.stability import step_size_estimate
from learner.losses.games import GameBatch, game_loss
from learner.losses.pairs import preference_loss, tie_loss
from learner.tensors import batching
from learner.tensors.batching import TokenSequence, pad_by_sequence, sum_by_sequence, token_rows


@dataclass(frozen=True, slots=True)
class Pass:
    """Completions of each item that go through the models together, and what is read of their tokens."""

    completions: slice
    log_ratio: bool = True
    """log pi and log mu."""
    opponent: bool = False
    """log pi', the opponent as it is at this update."""


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probs [n] (nats) of a pass's response tokens, in the order of its sequences; None where not computed."""

    policy: Tensor | None
    """Carries the gradient in the pass that has it."""
    reference: Tensor | None
    opponent: Tensor | None = None


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

    def total(self) -> Tensor:
        """Sum of the losses. One that is not finite makes every gradient so.

        The check of the gradient norm, which all ranks share, is then the only one needed.
        """
        total = self.loss.sum()
        return total * torch.where(total.detach().isfinite(), 1.0, math.nan)


class Objective(Protocol):
    """How a loss consumes the items of a batch."""

    metrics: tuple[str, ...]
    """Names of the values averaged over items."""
    needs_opponent: bool
    """Whether a pass reads the opponent's log-probs."""

    def check(self, items: Sequence[Any]) -> None:
        """Raises UsageError unless `items` are at least one, all of the kind and shape that the loss consumes."""

    def micro_batches(self, items: Sequence[Any], rank: int, ranks: int) -> list[list[Any]]:
        """This rank's micro-batches: as many on every rank, at least one, some possibly empty."""

    def filler(self, items: Sequence[Any]) -> Any:
        """The cheapest item, for a rank that has none."""

    def passes(self, items: Sequence[Any]) -> tuple[Pass, ...]:
        """The passes of every micro-batch of `items`: the last has the gradient, those before it have none."""

    def sequences(self, members: Sequence[Any], part: Pass) -> Sequence[TokenSequence]:
        """What goes through the models for `members` in one of the `passes`."""

    def measure(self, members: Sequence[Any], logprobs: Sequence[TokenLogProbs]) -> Measured:
        """Losses and metrics of `members`, from the log-probs of each of their `passes`."""

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

    def passes(self, items: Sequence[Pair]) -> tuple[Pass, ...]:
        return (Pass(slice(None)),)

    def sequences(self, members: Sequence[Pair], part: Pass) -> Sequence[TokenSequence]:
        return batching.sequences_of(members)

    def measure(self, members: Sequence[Pair], logprobs: Sequence[TokenLogProbs]) -> Measured:
        (own,) = logprobs
        assert own.policy is not None
        assert own.reference is not None
        lengths = [len(response) for _, response in batching.sequences_of(members)]
        rows = token_rows(lengths, own.policy.device)
        policy = sum_by_sequence(own.policy, rows, len(lengths))
        reference = sum_by_sequence(own.reference, rows, len(lengths))
        (chosen, rejected), (reference_chosen, reference_rejected) = policy.chunk(2), reference.chunk(2)
        output = preference_loss(chosen, rejected, reference_chosen, reference_rejected, self._loss)
        kl_chosen, kl_rejected = (policy - reference).detach().chunk(2)
        behaviour = torch.tensor(batching.behaviour_logprobs(members), device=rows.device)
        metrics = {**output.metrics, "kl_chosen": kl_chosen, "kl_rejected": kl_rejected}
        return Measured(output.loss, metrics, own.policy.detach() - behaviour)

    def counts(self, items: Sequence[Pair]) -> dict[str, int]:
        return {"pairs": len(items), "ties": sum(pair.tie for pair in items)}

    def constant_loss(self, items: Sequence[Pair]) -> float:
        return sum(pair.tie for pair in items) * tie_loss(self._loss)


class GameObjective:
    """Losses on games. Where opponents are drawn apart, players and opponents have passes of their own."""

    def __init__(self, config: LearnerConfig) -> None:
        self._loss, self._correction, self._tokens = config.loss, config.correction, config.micro_batch_tokens
        self.needs_opponent = self._loss.has_opponent and self._correction.opponents != "none"
        self.metrics: tuple[str, ...] = ("kl_players", "advantage_std", "player_ess", "player_truncated")
        if self._loss.has_opponent:
            self.metrics += ("player_preference", "opponent_ess", "opponent_truncated")

    def check(self, items: Sequence[Game]) -> None:
        _check_kind(items, Game, self._loss)
        shapes = {(len(game.players), len(game.opponents)) for game in items}
        if len(shapes) > 1:
            raise UsageError(
                f"a batch holds games of {len(shapes)} shapes (players, opponents): {sorted(shapes)}; all games of a "
                "batch must have as many of both"
            )

    def micro_batches(self, items: Sequence[Game], rank: int, ranks: int) -> list[list[Game]]:
        return batching.game_micro_batches(items, self._parts(items), rank, ranks, self._tokens)

    def filler(self, items: Sequence[Game]) -> Game:
        parts = self._parts(items)
        return min(items, key=lambda game: batching.game_length(game, parts))

    def passes(self, items: Sequence[Game]) -> tuple[Pass, ...]:
        """Opponents drawn apart have the gradient with `ipo_md`, whose players are only measured.

        With other losses they have none: their log pi' is read where they are weighted, and nothing of them where not.
        """
        players, weighted = len(items[0].players), self.needs_opponent
        if not items[0].opponents:
            return (Pass(slice(None), opponent=weighted),)
        own, drawn = slice(players), slice(players, None)
        if self._loss.kind == "ipo_md":
            return (Pass(own), Pass(drawn, opponent=weighted))
        return (Pass(drawn, log_ratio=False, opponent=True), Pass(own)) if weighted else (Pass(own),)

    def _parts(self, items: Sequence[Game]) -> list[slice]:
        return [part.completions for part in self.passes(items)]

    def sequences(self, members: Sequence[Game], part: Pass) -> Sequence[TokenSequence]:
        return batching.game_sequences(members, part.completions)

    def measure(self, members: Sequence[Game], logprobs: Sequence[TokenLogProbs]) -> Measured:
        games = game_batch(members, self._parts(members), logprobs)
        output = game_loss(games, self._loss, self._correction)
        players = games.players
        log_ratio = (games.policy.detach() - games.behaviour)[:, :players][games.mask[:, :players] > 0]
        opponent_log_ratio = None
        if self.needs_opponent:
            first = players if members[0].opponents else 0
            opponent_log_ratio = (games.opponent - games.behaviour)[:, first:][games.mask[:, first:] > 0]
        return Measured(
            output.loss,
            output.metrics,
            log_ratio,
            opponent_log_ratio,
            games.policy.detach()[:, :players].sum(-1),
            output.advantages,
        )

    def counts(self, items: Sequence[Game]) -> dict[str, int]:
        return {"games": len(items)}

    def constant_loss(self, items: Sequence[Game]) -> float:
        return 0.0


def game_batch(members: Sequence[Game], parts: Sequence[slice], logprobs: Sequence[TokenLogProbs]) -> GameBatch:
    """The padded tensors of `members`, games of one shape, from the log-probs of the completions in each of `parts`.

    Where a log-prob was not computed the recorded one stands in, so that its ratio is 1; the loss does not read it.
    """
    completions = [completion for game in members for completion in game.completions]
    assert logprobs[-1].policy is not None
    device = logprobs[-1].policy.device
    recorded = torch.tensor([value for completion in completions for value in completion.logprobs], device=device)
    rows = token_rows([len(completion.token_ids) for completion in completions], device)
    behaviour, mask = (
        tensor.view(len(members), len(members[0].completions), -1)
        for tensor in pad_by_sequence(recorded, rows, len(completions))
    )

    def filled(values: Sequence[Tensor | None]) -> Tensor:
        result = behaviour
        for part, own in zip(parts, values, strict=True):
            if own is not None:
                where = torch.zeros_like(mask)
                where[:, part] = mask[:, part]
                result = result.masked_scatter(where, own)
        return result

    return GameBatch(
        policy=filled([each.policy for each in logprobs]),
        reference=filled([each.reference for each in logprobs]),
        behaviour=behaviour,
        opponent=filled([each.opponent for each in logprobs]),
        mask=mask.to(behaviour.dtype),
        preferences=torch.tensor([game.preferences for game in members], device=device),
        scores=torch.tensor([game.scores for game in members], device=device),
        players=len(members[0].players),
    )


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
