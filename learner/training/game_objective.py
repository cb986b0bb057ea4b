"""Losses on games, all completions of a prompt, as an objective of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Completion, Game, Pair
from learner.config import LearnerConfig
from learner.games.stability import step_size_estimate
from learner.losses.config import (
    Anchor,
    BestOfNLossConfig,
    GameLossConfig,
    GrpoLossConfig,
    PairLossConfig,
    PpoLossConfig,
    RewardLossConfig,
)
from learner.losses.games import GameBatch, GameOutput, game_loss, opponent_weights, opponents_of
from learner.losses.grpo import grpo_loss
from learner.losses.ppo import ppo_loss
from learner.tensors import batching
from learner.tensors.batching import RolloutSequence, pad_by_sequence, token_rows
from learner.training.policies import Pass, TokenLogProbs
from learner.training.rollout_objective import Losses, RolloutObjective

LOSSES: dict[type, Callable[[GameBatch, Any, float], GameOutput]] = {
    GrpoLossConfig: grpo_loss,
    PpoLossConfig: ppo_loss,
}
"""Losses on scores, by their settings; the others are `game_loss`. Each takes the batch, its settings and an anchor's
weight (0 without an anchor)."""


class GameObjective(RolloutObjective):
    """Losses on games. If opponents are separate rollouts, players and opponents have separate passes."""

    kind = Game

    def __init__(self, config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None) -> None:
        assert not isinstance(config.loss, PairLossConfig | BestOfNLossConfig)
        self._loss: RewardLossConfig | GrpoLossConfig | PpoLossConfig | GameLossConfig = config.loss
        metrics: tuple[str, ...] = ("kl_players", "advantage_std", "player_ess", "player_truncated")
        if isinstance(self._loss, GameLossConfig):
            self.weighs_opponents = self._loss.weighs_opponents
            metrics += ("player_preference", "opponent_ess", "opponent_truncated", "opponent_weight_mean")
        if isinstance(self._loss, PpoLossConfig):
            metrics += ("value_error",)
        super().__init__(config, metrics, shares_prompts=shares_prompts, anchor=anchor)
        self._has_values = isinstance(self._loss, PpoLossConfig)
        own = self._loss
        self._renormalises = isinstance(own, GameLossConfig) and own.weighs_opponents and own.correction.renormalise
        self._opponent_mean = 1.0  # of the batch's opponent weights, by which they are divided

    def check(self, items: Sequence[Game]) -> None:
        super().check(items)
        shapes = {(len(game.players), len(game.opponents)) for game in items}
        if len(shapes) > 1:
            raise UsageError(
                f"the batch holds games of {len(shapes)} shapes (players, opponents): {sorted(shapes)}; give games "
                "with equally many players and equally many opponents"
            )

    def length(self, item: Game) -> int:
        responses = (len(each.token_ids) for part in self._parts([item]) for each in item.completions[part])
        return len(item.prompt_token_ids) + max(responses)

    def tokens(self, item: Game) -> int:
        """Count the tokens of a game's largest pass."""
        passes = [item.completions[part] for part in self._parts([item])]
        return len(item.prompt_token_ids) + max(sum(len(each.token_ids) for each in own) for own in passes)

    def rows(self, items: Sequence[Game]) -> int:
        """Count the completions of a game's largest pass: they stay together, and must fit the budget."""
        return max(len(items[0].completions[part]) for part in self._parts(items))

    def passes(self, items: Sequence[Game]) -> tuple[Pass, ...]:
        """Return the passes of players and opponents.

        With `ipo_md` the opponents have the gradient, and players are only measured. With other losses opponents have
        no gradient: only their log pi' is needed, and only if they have importance weights.
        """
        players = len(items[0].players)
        own, drawn = (slice(players), slice(players, None)) if items[0].opponents else (None, slice(None))
        weighed = Pass(drawn, log_ratio=False, opponent=True)
        if own is not None and self._loss.kind != "ipo_md":
            return (weighed, Pass(own)) if self.weighs_opponents else (Pass(own, values=self._has_values),)
        last = (
            (weighed, Pass(drawn))
            if self._renormalises
            else (Pass(drawn, opponent=self.weighs_opponents, values=self._has_values),)
        )
        return last if own is None else (Pass(own), *last)

    def settle(
        self,
        batches: Sequence[Any],
        prepared: Sequence[list[TokenLogProbs]],
        add: Callable[[Sequence[float]], list[float]],
    ) -> None:
        """Average the opponents' weights over the batch, if they are to be divided by that."""
        if not self._renormalises:
            return
        assert isinstance(self._loss, GameLossConfig)
        total, count = 0.0, 0.0
        for members, known in zip(batches, prepared, strict=True):
            if members:
                games = game_batch(members, self.all_passes(members)[:-1], known)
                weights = opponents_of(opponent_weights(games, self._loss.correction), games.players)
                total, count = total + float(weights.double().sum()), count + weights.numel()
        total, count = add([total, count])
        self._opponent_mean = total / count if total > 0.0 else 1.0

    def _parts(self, items: Sequence[Game]) -> list[slice]:
        return [part.completions for part in self.passes(items)]

    def sequences(self, members: Sequence[Game], part: Pass) -> Sequence[RolloutSequence]:
        return batching.game_sequences(members, part.completions)

    def completions(self, members: Sequence[Game], part: Pass) -> Sequence[Completion]:
        return [completion for game in members for completion in game.completions[part.completions]]

    def losses(self, members: Sequence[Game], logprobs: Sequence[TokenLogProbs]) -> Losses:
        games = game_batch(members, self.all_passes(members), logprobs)
        loss, players = self._loss, games.players
        if (of_scores := LOSSES.get(type(loss))) is not None:
            output = of_scores(games, loss, self._anchor_weight)
        else:
            assert isinstance(loss, RewardLossConfig | GameLossConfig)
            output = game_loss(games, loss, self._opponent_mean, self._anchor_weight)
        log_ratio = (games.policy.detach() - games.behaviour)[:, :players][games.mask[:, :players] > 0]
        opponent_log_ratio = None
        if self.weighs_opponents:
            first = players if members[0].opponents else 0
            opponent_log_ratio = (games.opponent - games.behaviour)[:, first:][games.mask[:, first:] > 0]
        return Losses(
            output.loss,
            output.metrics,
            log_ratio,
            opponent_log_ratio,
            detail=(members, games.policy.detach()[:, :players].sum(-1), output.advantages),
        )

    def means(self, items: Sequence[Game], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        return super().means(items, sums, maxima) | {"games": len(items)}


def game_batch(members: Sequence[Game], parts: Sequence[Pass], logprobs: Sequence[TokenLogProbs]) -> GameBatch:
    """Pad `members`, games of one shape, into a batch with the log-probs of the completions in each of `parts`.

    Recorded log-probs replace those that no pass computed, so that their ratio is 1; the loss ignores them.
    """
    completions = [completion for game in members for completion in game.completions]
    computed = (values for each in reversed(logprobs) for values in (each.policy, each.opponent, each.anchor))
    device = next(values.device for values in computed if values is not None)
    sampled = [completion.sampled(completion.logprobs) for completion in completions]
    recorded = torch.tensor([value for values in sampled for value in values], device=device)
    rows = token_rows(list(map(len, sampled)), device)
    behaviour, mask = (
        tensor.view(len(members), len(members[0].completions), -1)
        for tensor in pad_by_sequence(recorded, rows, len(completions))
    )

    def filled(values: Sequence[Tensor | None]) -> Tensor:
        result = behaviour
        for part, own in zip(parts, values, strict=True):
            if own is not None:
                where = torch.zeros_like(mask)
                where[:, part.completions] = mask[:, part.completions]
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
        anchor=filled([each.anchor for each in logprobs]) if any(part.anchor for part in parts) else None,
        values=filled([each.values for each in logprobs]) if any(part.values for part in parts) else None,
    )


@dataclass(frozen=True, slots=True)
class Players:
    """Players of some games, or both completions of some pairs, before a step."""

    sequences: list[RolloutSequence]  # prompts and responses, item by item
    logprobs: list[list[float]]  # log pi(y|x) (nats), [items][K]
    advantages: list[list[float]]  # advantages, [items][K]; of a pair its residual, and minus that

    @classmethod
    def of(cls, details: Sequence[tuple[Sequence[Game] | Sequence[Pair], Tensor, Tensor]]) -> Players:
        """Collect the players of several micro-batches, from `Losses.detail`."""
        items: list[Game | Pair] = [item for members, _, _ in details for item in members]
        return cls(
            [batching.rollout(item.prompt_token_ids, player) for item in items for player in _players(item)],
            [row for _, logprobs, _ in details for row in logprobs.tolist()],
            [row for _, _, advantages in details for row in advantages.tolist()],
        )


def _players(item: Game | Pair) -> tuple[Completion, ...]:
    return item.players if isinstance(item, Game) else item.completions


def step_size(players: Sequence[Players], logprobs_after: Sequence[float]) -> float:
    """Estimate eta of a step: the slope of the change in the players' log pi(y|x) on their advantages.

    `logprobs_after` holds the log-probs (nats) of all sequences of `players`, in order, after the step.
    """
    before = np.array([row for part in players for row in part.logprobs])
    advantages = np.array([row for part in players for row in part.advantages])
    return step_size_estimate(np.array(logprobs_after).reshape(before.shape) - before, advantages)
