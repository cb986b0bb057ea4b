"""Losses on pairs, the best and the worst completion of a prompt, as an objective of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from actors.records import Completion, Pair
from learner.config import LearnerConfig
from learner.losses.anchor import anchored, pulled_to
from learner.losses.config import (
    Anchor,
    BestOfNLossConfig,
    PairLossConfig,
)
from learner.losses.pairs import best_of_n_loss, has_residual, preference_loss, residual, tie_loss
from learner.tensors import batching
from learner.tensors.batching import RolloutSequence, sum_by_sequence, token_rows
from learner.training.policies import Pass, TokenLogProbs
from learner.training.rollout_objective import Losses, RolloutObjective


class PairObjective(RolloutObjective):
    """Losses on pairs. Ties skip the forward pass: their loss is constant."""

    kind = Pair

    def __init__(self, config: LearnerConfig, *, shares_prompts: bool = False, anchor: Anchor | None = None) -> None:
        metrics = ("margin", "accuracy", "kl_chosen", "kl_rejected")
        super().__init__(config, metrics, shares_prompts=shares_prompts, anchor=anchor)
        assert isinstance(config.loss, PairLossConfig | BestOfNLossConfig)
        self._loss: PairLossConfig | BestOfNLossConfig = config.loss
        self._tie_loss = tie_loss(self._stronger)
        self.measures_step = has_residual(self._loss)

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
        (chosen, rejected), (prior_chosen, prior_rejected) = policy.chunk(2), prior.chunk(2)
        if isinstance(loss, PairLossConfig):
            output = preference_loss(chosen, rejected, prior_chosen, prior_rejected, loss)
        else:
            output = best_of_n_loss(chosen, rejected, prior_chosen, prior_rejected)
        kl_chosen, kl_rejected = (policy - reference).detach().chunk(2)
        behaviour = torch.tensor(batching.behaviour_logprobs(members), device=rows.device)
        metrics = {**output.metrics, "kl_chosen": kl_chosen, "kl_rejected": kl_rejected, **pulls}
        detail = None
        if self.measures_step:
            assert isinstance(loss, PairLossConfig)
            left = residual(output.metrics["margin"], loss)
            detail = (members, policy.detach().view(2, -1).T, torch.stack([left, -left], dim=1))
        return Losses(output.loss, metrics, own.policy.detach() - behaviour, detail=detail)

    def means(self, items: Sequence[Pair], sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, Any]:
        ties = sum(pair.tie for pair in items)
        loss = sums["loss"] + ties * self._tie_loss
        return super().means(items, {**sums, "loss": loss}, maxima) | {"pairs": len(items), "ties": ties}
