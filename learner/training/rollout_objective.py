"""Base of losses on rollouts as objectives of the trainer. Must not depend on ranks' communication or optimizers.

An objective picks the completions that go through each model and the log-probs that the loss needs; the maths is in
`learner/losses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.errors import UsageError
from actors.records import Completion, Pair
from learner.config import LearnerConfig
from learner.losses.config import (
    Anchor,
)
from learner.tensors.batching import RolloutSequence
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
    """Input of `Players.of`: the items, and log pi and advantage of each player [b, K], detached; a pair's K is 2."""


class RolloutObjective(Objective):
    """Base of losses on pairs and on games. `UpdateStats` defines the reported values."""

    metrics: tuple[str, ...]  # names of the values averaged over items
    kind: type  # type of the items
    weighs_opponents: bool = False  # whether any pass computes the opponent's log-probs
    measures_step: bool = True  # whether `Losses.detail` has what a step is measured on

    def __init__(
        self, config: LearnerConfig, metrics: tuple[str, ...], *, shares_prompts: bool, anchor: Anchor | None
    ) -> None:
        super().__init__(config.pass_tokens, shares_prompts=shares_prompts)
        self._anchor_weight = 0.0 if anchor is None else anchor.weight
        self._config, self.metrics = config.loss, (*metrics, *(("kl_anchor",) if anchor is not None else ()))
        self.sums = (*self.metrics, "items", "log_ratio", "k3", "responses")
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
        passes = self.all_passes(micro_batch)
        logprobs = [*prepared, self._logprobs(forward, micro_batch, passes[-1])]
        seen = [part.completions for part in passes]
        once = [each for place, each in enumerate(logprobs) if seen[place] not in seen[:place]]
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
            tokens=sum(each.tokens for each in once),
            padded_tokens=sum(each.padded_tokens for each in once),
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
