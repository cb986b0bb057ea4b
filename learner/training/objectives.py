"""Losses on rollouts as objectives of the trainer: pairs (best and worst of a prompt) and games (all completions).

An objective picks the completions that go through each model and the log-probs that the loss needs; the maths is in
`learner/losses`. Must not depend on ranks' communication or optimizers.
"""

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
from learner.losses.anchor import anchored, pulled_to
from learner.losses.config import (
    Anchor,
    BestOfNLossConfig,
    GameLossConfig,
    GrpoLossConfig,
    PairLossConfig,
    RewardLossConfig,
)
from learner.losses.games import GameBatch, game_loss, opponent_weights, opponents_of
from learner.losses.grpo import grpo_loss
from learner.losses.pairs import best_of_n_loss, preference_loss, tie_loss
from learner.tensors import batching
from learner.tensors.batching import RolloutSequence, pad_by_sequence, sum_by_sequence, token_rows
from learner.training.policies import Pass, Policies, TokenLogProbs
from learner.training.trainer import Measured, Objective


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses and metrics of a micro-batch of b items."""

    loss: Tensor  # losses [b], with gradient
    metrics: Mapping[str, Tensor]  # values [b] each, detached
    behaviour_log_ratio: Tensor  # log pi - log b [tokens]
    opponent_log_ratio: Tensor | None = None
    """log pi' - log b [tokens] of the opponents, if pi' was computed."""
    detail: Any = None
    """Games: for `Players.of`, the items, and log pi and A of each player [b, K], detached."""


class RolloutObjective(Objective):
    """Base of losses on pairs and on games. `UpdateStats` defines the reported values."""

    metrics: tuple[str, ...]  # names of the values averaged over items
    kind: type  # type of the items
    weighs_opponents: bool = False  # whether any pass computes the opponent's log-probs

    def __init__(
        self, config: LearnerConfig, metrics: tuple[str, ...], *, shares_prompts: bool, anchor: Anchor | None
    ) -> None:
        super().__init__(config.pass_tokens, shares_prompts=shares_prompts)
        self._anchor_weight = 0.0 if anchor is None else anchor.weight
        self._config, self.metrics = config.loss, (*metrics, *(("kl_anchor",) if anchor is not None else ()))
        self.sums = (*metrics, "items", "log_ratio", "k3", "responses")
        self.maxima = ("log_ratio_max", *(("opponent_log_ratio_max",) if self.weighs_opponents else ()))

    def check(self, items: Sequence[Any]) -> None:
        """Raise UsageError if `items` is empty or holds an item of the wrong kind or shape for the loss."""
        name = self.kind.__name__.lower()
        if not items:
            raise UsageError(f"the batch is empty; an update needs at least one {name}")
        for item in items:
            if not isinstance(item, self.kind):
                raise UsageError(
                    f"learner.loss.kind {self._config.kind} consumes {name}s, and the batch holds a "
                    f"{type(item).__name__}; give {name}s, or set learner.loss.kind to a loss on "
                    f"{'games' if self.kind is Pair else 'pairs'}"
                )

    def passes(self, items: Sequence[Any]) -> tuple[Pass, ...]:
        """Return the forward passes of a micro-batch, but those of the anchor. Only the last has a gradient."""
        return (Pass(slice(None)),)

    def all_passes(self, items: Sequence[Any]) -> tuple[Pass, ...]:
        """Return `passes`, and before them the anchor's: of all completions that the loss pulls somewhere."""
        own = self.passes(items)
        pulled = [part.completions for part in own if part.log_ratio] if self._anchor_weight else []
        return (*(Pass(each, log_ratio=False, anchor=True) for each in pulled), *own)

    def sequences(self, members: Sequence[Any], part: Pass) -> Sequence[RolloutSequence]:
        """Return the sequences of `members` in one of the `passes`."""
        raise NotImplementedError

    def completions(self, members: Sequence[Any], part: Pass) -> Sequence[Completion]:
        """Return the completions of `sequences`, in their order."""
        raise NotImplementedError

    def losses(self, members: Sequence[Any], logprobs: Sequence[TokenLogProbs]) -> Losses:
        """Compute losses and metrics of `members` from the log-probs of `all_passes`."""
        raise NotImplementedError

    def prepare(self, forward: Policies, micro_batch: Sequence[Any]) -> list[TokenLogProbs]:
        *constant, _ = self.all_passes(micro_batch)
        return [self._logprobs(forward, micro_batch, part) for part in constant]

    def _logprobs(self, forward: Policies, members: Sequence[Any], part: Pass) -> TokenLogProbs:
        return forward.logprobs(self.sequences(members, part), part, self.completions(members, part))

    def measure(self, forward: Policies, micro_batch: Sequence[Any], prepared: list[TokenLogProbs]) -> Measured:
        last = self.all_passes(micro_batch)[-1]
        logprobs = [*prepared, self._logprobs(forward, micro_batch, last)]
        losses = self.losses(micro_batch, logprobs)
        d = losses.behaviour_log_ratio.detach().double()
        sums = {name: losses.metrics[name] for name in self.metrics} | {
            "loss": losses.loss.detach(),
            "items": torch.ones_like(losses.loss.detach()),
            "log_ratio": d.abs(),
            "k3": d.exp() - 1.0 - d,
            "responses": torch.ones_like(d),
        }
        maxima = {"log_ratio_max": d.abs().max()}
        if losses.opponent_log_ratio is not None:
            maxima["opponent_log_ratio_max"] = losses.opponent_log_ratio.detach().double().abs().max()
        return Measured(
            losses.loss.sum(),
            {name: values.double().sum() for name, values in sums.items()},
            tokens=sum(each.tokens for each in logprobs),
            padded_tokens=sum(each.padded_tokens for each in logprobs),
            maxima=maxima,
            detail=losses.detail,
        )

    def means(self, items: Sequence[Any], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        added, responses = max(1.0, sums["items"]), max(1.0, sums["responses"])
        return {
            "loss": sums["loss"] / len(items),
            **{name: sums[name] / added for name in self.metrics},
            "log_ratio_max": maxima["log_ratio_max"],
            "opponent_log_ratio_max": maxima.get("opponent_log_ratio_max"),
            "log_ratio_mean": sums["log_ratio"] / responses,
            "behaviour_kl": sums["k3"] / responses,
        }


def objective_of(
    config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None
) -> RolloutObjective:
    """Return the objective of `config.loss`, pulled to `anchor` if there is one."""
    chosen = PairObjective if config.loss.on_pairs else GameObjective
    return chosen(config, shares_prompts=shares_prompts, anchor=anchor)


def check_reference_logprobs(items: Sequence[Pair] | Sequence[Game]) -> None:
    """Raise UsageError if a completion lacks the reference log-probs of its tokens, for a learner without reference."""
    for item in items:
        for each in item.completions:
            if len(each.reference_logprobs) != len(each.token_ids):
                raise UsageError(
                    f"a completion of lease {item.lease_index} has {len(each.reference_logprobs)} reference log-probs "
                    f"for {len(each.token_ids)} tokens, and with reference.count above 0 the learner holds no "
                    "reference; set reference.count to 0"
                )


class PairObjective(RolloutObjective):
    """Losses on pairs. Ties skip the forward pass: their loss is constant."""

    kind = Pair

    def __init__(self, config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None) -> None:
        metrics = ("margin", "accuracy", "kl_chosen", "kl_rejected")
        super().__init__(config, metrics, shares_prompts=shares_prompts, anchor=anchor)
        assert isinstance(config.loss, PairLossConfig | BestOfNLossConfig)
        self._loss: PairLossConfig | BestOfNLossConfig = config.loss
        self._tie_loss = tie_loss(self._stronger)

    @property
    def _stronger(self) -> PairLossConfig | BestOfNLossConfig:
        """The loss with the anchor's weight in its pull."""
        return anchored(self._loss, self._anchor_weight) if isinstance(self._loss, PairLossConfig) else self._loss

    def active(self, items: Sequence[Pair]) -> list[Pair]:
        """Leave out ties: their gradient is zero. They still count in the batch's mean."""
        return [pair for pair in items if not pair.tie]

    def length(self, item: Pair) -> int:
        return len(item.prompt_token_ids) + max(len(item.chosen.token_ids), len(item.rejected.token_ids))

    def tokens(self, item: Pair) -> int:
        return len(item.prompt_token_ids) + len(item.chosen.token_ids) + len(item.rejected.token_ids)

    def sequences(self, members: Sequence[Pair], part: Pass) -> Sequence[RolloutSequence]:
        return batching.sequences_of(members)

    def completions(self, members: Sequence[Pair], part: Pass) -> Sequence[Completion]:
        return batching.pair_completions(members)

    def losses(self, members: Sequence[Pair], logprobs: Sequence[TokenLogProbs]) -> Losses:
        *anchors, own = logprobs
        assert own.policy is not None
        assert own.reference is not None
        lengths = [batching.sampled_length(sequence) for sequence in batching.sequences_of(members)]
        rows = token_rows(lengths, own.policy.device)
        policy = sum_by_sequence(own.policy, rows, len(lengths))
        reference = sum_by_sequence(own.reference, rows, len(lengths))
        loss, prior, pulls = self._stronger, reference, {}
        for each in anchors:
            assert each.anchor is not None
            assert isinstance(self._loss, PairLossConfig)
            slow = sum_by_sequence(each.anchor, rows, len(lengths))
            prior = pulled_to(reference, slow, self._loss.beta, self._anchor_weight)
            pulls["kl_anchor"] = (policy - slow).detach().view(2, -1).mean(0)
        four = (*policy.chunk(2), *prior.chunk(2))
        output = preference_loss(*four, loss) if isinstance(loss, PairLossConfig) else best_of_n_loss(*four)
        kl_chosen, kl_rejected = (policy - reference).detach().chunk(2)
        behaviour = torch.tensor(batching.behaviour_logprobs(members), device=rows.device)
        metrics = {**output.metrics, "kl_chosen": kl_chosen, "kl_rejected": kl_rejected, **pulls}
        return Losses(output.loss, metrics, own.policy.detach() - behaviour)

    def means(self, items: Sequence[Pair], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        ties = sum(pair.tie for pair in items)
        loss = sums["loss"] + ties * self._tie_loss
        return super().means(items, {**sums, "loss": loss}, maxima) | {"pairs": len(items), "ties": ties}


class GameObjective(RolloutObjective):
    """Losses on games. If opponents are separate rollouts, players and opponents have separate passes."""

    kind = Game

    def __init__(self, config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None) -> None:
        assert not isinstance(config.loss, PairLossConfig | BestOfNLossConfig)
        self._loss: RewardLossConfig | GrpoLossConfig | GameLossConfig = config.loss
        metrics: tuple[str, ...] = ("kl_players", "advantage_std", "player_ess", "player_truncated")
        if isinstance(self._loss, GameLossConfig):
            self.weighs_opponents = self._loss.weighs_opponents
            metrics += ("player_preference", "opponent_ess", "opponent_truncated", "opponent_weight_mean")
        super().__init__(config, metrics, shares_prompts=shares_prompts, anchor=anchor)
        self._renormalises = self.weighs_opponents and self._loss.correction.renormalise
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
            return (weighed, Pass(own)) if self.weighs_opponents else (Pass(own),)
        last = (weighed, Pass(drawn)) if self._renormalises else (Pass(drawn, opponent=self.weighs_opponents),)
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
        if isinstance(loss, GrpoLossConfig):
            output = grpo_loss(games, loss, self._anchor_weight)
        else:
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
    )


@dataclass(frozen=True, slots=True)
class Players:
    """Players of some games before a step."""

    sequences: list[RolloutSequence]  # prompts and responses, game by game
    logprobs: list[list[float]]  # log pi(y|x) (nats), [games][K]
    advantages: list[list[float]]  # advantages, [games][K]

    @classmethod
    def of(cls, details: Sequence[tuple[Sequence[Game], Tensor, Tensor]]) -> Players:
        """Collect the players of several micro-batches, from `Losses.detail`."""
        games = [game for members, _, _ in details for game in members]
        return cls(
            [batching.rollout(game.prompt_token_ids, player) for game in games for player in game.players],
            [row for _, logprobs, _ in details for row in logprobs.tolist()],
            [row for _, _, advantages in details for row in advantages.tolist()],
        )


def step_size(players: Sequence[Players], logprobs_after: Sequence[float]) -> float:
    """Estimate eta of a step: the slope of the change in the players' log pi(y|x) on their advantages.

    `logprobs_after` holds the log-probs (nats) of all sequences of `players`, in order, after the step.
    """
    before = np.array([row for part in players for row in part.logprobs])
    advantages = np.array([row for part in players for row in part.advantages])
    return step_size_estimate(np.array(logprobs_after).reshape(before.shape) - before, advantages)
