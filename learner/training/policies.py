"""Forward passes of the policy in training, its frozen reference and the opponent, on tokens.

Must not depend on losses, optimizers or Ray. Methods marked collective must be entered by all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actors.adapters.peft_form import without_adapters
from actors.generation.config import OpponentConfig
from actors.records import Completion
from learner.backend.average import AveragePolicy, AverageWeights
from learner.backend.collective import gather
from learner.backend.sharded import ShardedModel, gathered
from learner.tensors.batching import (
    AnySequence,
    TokenBatch,
    collate,
    length_of,
    reference_logprobs,
    sampled_length,
    schedule,
)
from learner.tensors.logprobs import LogProbHead, Mixture
from learner.tensors.offload import present
from learner.tensors.sequence_groups import share_of
from learner.tensors.shared_prompts import collate_shared


@dataclass(frozen=True, slots=True)
class Pass:
    """Completions of each item that share a forward pass, and the log-probs that the loss needs."""

    completions: slice
    log_ratio: bool = True  # whether log pi and log mu are needed
    opponent: bool = False
    """True if log pi' of the opponent at this update is needed."""
    anchor: bool = False  # whether log u is needed, of the policy's slow average
    values: bool = False  # whether the value head's values are needed, with log pi


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probs [n] (nats) of a pass's response tokens, in the order of its sequences; None if not computed."""

    policy: Tensor | None  # with gradient in the pass that has one
    reference: Tensor | None
    opponent: Tensor | None = None
    tokens: int = 0
    padded_tokens: int = 0
    anchor: Tensor | None = None
    values: Tensor | None = None
    """Expected scores before each token, with gradient as `policy`."""


class BasePolicy:
    """The model under a policy's adapters, as a reference without a second copy. Calls are collective."""

    def __init__(self, policy: ShardedModel, head: LogProbHead) -> None:
        self._policy, self.head = policy, head

    def __call__(self, batch: TokenBatch, *arguments: Any, **keywords: Any) -> Any:
        with torch.no_grad(), without_adapters(self._policy.model):
            return self._policy(batch, *arguments, **keywords)


class SlowPolicy:
    """The policy with the slow average of its weights in their place. Calls are collective."""

    def __init__(self, policy: ShardedModel, average: AverageWeights) -> None:
        self._policy, self.average = policy, average

    def __call__(self, batch: TokenBatch) -> Tensor:
        with torch.no_grad(), self.average.in_place():
            values: Tensor = self._policy(batch)
        return values


@dataclass(slots=True)
class Policies:
    """The policies that a loss on rollouts compares: pi, mu, pi' and u."""

    policy: ShardedModel
    reference: Any
    """None: its log-probs come with the completions."""
    average: AveragePolicy | None
    """Moving average of the policy's weights, for opponent kind `ema`."""
    opponent: OpponentConfig | None
    temperature: float
    shares_prompts: bool = False
    """True if equal prompts stand once in a row. All models must support it."""
    anchor: SlowPolicy | None = None

    def logprobs(
        self, sequences: Sequence[AnySequence], part: Pass, completions: Sequence[Completion] = ()
    ) -> TokenLogProbs:
        """Compute the log-probs that `part` needs, with gradient through the policy if gradients are enabled.

        `completions`, those of `sequences`, bring the reference's log-probs if there is no reference here.
        """
        batch = self._collate(sequences)
        counts = (batch.tokens, batch.padded_tokens)
        if part.anchor:
            assert self.anchor is not None
            return TokenLogProbs(None, None, None, *counts, self.anchor(batch))
        beta = self.opponent.target_beta if self.opponent is not None else 0.0
        if part.opponent and 0.0 < beta < 1.0:
            return TokenLogProbs(*self.mixture(batch, beta), *counts)
        with torch.no_grad():
            # First, so that an offloaded reference's weights are gone before activations are kept.
            needed = part.log_ratio or (part.opponent and beta == 1.0 and self.average is None)
            reference = self._reference(batch, completions) if needed else None
        policy, values = None, None
        if part.values:
            policy, values = self.policy(batch, with_values=True)
        elif part.log_ratio:
            policy = self.policy(batch)
        with torch.no_grad():
            if not part.opponent:
                opponent = None
            elif self.average is not None:
                opponent = self.average.model(batch)
            else:
                known = policy if beta == 0.0 else reference
                opponent = self.policy(batch) if known is None else known.detach()
        return TokenLogProbs(policy, reference if part.log_ratio else None, opponent, *counts, values=values)

    def _reference(self, batch: TokenBatch, completions: Sequence[Completion]) -> Tensor:
        """Compute log mu [n], or read it off `completions` if there is no reference here."""
        if self.reference is None:
            return torch.tensor(reference_logprobs(completions), device=self.policy.device)
        values: Tensor = self.reference(batch)
        return values

    def mixture(self, batch: TokenBatch, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log pi, log mu and log pi' [n] each, with pi' = pi^(1-beta) mu^beta normalised at every token."""
        with torch.no_grad():
            reference, hidden = self.reference(batch, with_hidden=True)
        head = getattr(self.reference, "module", self.reference).head
        # Only the reference's head: ZeRO-3 gathers the policy's in its forward pass, and gathering it here would clash
        # with the copy prefetched for the backward pass.
        with gathered([] if isinstance(self.reference, BasePolicy) else list(head.parameters())), present(head):
            policy, opponent = self.policy(batch, mixture=Mixture(beta, hidden, head))
        return policy, reference, opponent

    @torch.no_grad()
    def score(
        self, sequences: Sequence[AnySequence], temperature: float | None = None, *, with_reference: bool = True
    ) -> list[tuple[list[float], list[float]]]:
        """Compute log-probs (nats) of each sequence's sampled tokens under policy and reference. Collective.

        Ranks share the work, and each gets all results. Without reference its lists are empty, and ZeRO-3 does not
        gather its weights; so too if there is none here.
        """
        with_reference = with_reference and self.reference is not None
        temperature = temperature or self.temperature
        config = self.policy.config
        rank, ranks, _ = share_of(self.policy.rank, self.policy.ranks, config.sequence_parallel)
        lengths = [length_of(sequence) for sequence in sequences]
        own: dict[int, tuple[list[float], list[float]]] = {}
        for shares in schedule(lengths, 1, ranks, config.pass_tokens):
            share = shares[rank] or shares[0][:1]
            batch = self._collate([sequences[index] for index in share])
            sizes = [sampled_length(sequences[index]) for index in share]
            policy = _lists(self.policy(batch, temperature), sizes)
            reference = _lists(self.reference(batch, temperature), sizes) if with_reference else [[] for _ in share]
            if shares[rank]:
                own |= {i: (p, r) for i, p, r in zip(share, policy, reference, strict=True)}
        merged = {index: result for part in gather(own) for index, result in part.items()}
        return [merged[index] for index in range(len(sequences))]

    def _collate(self, sequences: Sequence[AnySequence]) -> TokenBatch:
        make = collate_shared if self.shares_prompts else collate
        return make(sequences, self.policy.device)


def _lists(values: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in values.split(list(lengths))]
