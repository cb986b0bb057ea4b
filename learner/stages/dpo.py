"""Offline preference learning (DPO, IPO, SLiC) on given pairs.

The reference never changes, so its log-probs are computed once, stored with the examples, and the model is freed before
the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.adapters.peft_form import adapt
from actors.hub import resolve
from learner.backend.collective import gather
from learner.backend.loading import load_for_ranks
from learner.backend.sharded import frozen
from learner.losses.config import PairLossConfig
from learner.losses.pairs import preference_loss
from learner.stages.config import DpoConfig, DpoTrainerConfig
from learner.stages.stage import Stage
from learner.tensors.batching import (
    TokenBatch,
    balance,
    collate,
    pair_sequences,
    schedule,
    sum_by_sequence,
    token_rows,
)
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, read_pairs
from learner.tensors.sequence_groups import share_of
from learner.tensors.shared_prompts import collate_shared
from learner.training.trainer import Measured, Objective

Scores = tuple[float, float]
"""Log-probs (nats) of a pair's chosen and rejected response, each summed over its tokens."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A preference with the reference's log-probs."""

    pair: TokenPair
    reference: Scores


class OfflineObjective(Objective):
    """Mean loss over a batch's pairs, with soft labels if preferences have a probability.

    Metrics: `margin`, the implicit reward beta log(pi/mu) of the more probable response minus that of the other;
    `accuracy`, the share of positive margins, counting 1/2 for a pair of probability 1/2; `chosen_log_ratio` and
    `rejected_log_ratio`, log(pi/mu) of either response in the data's order (nats).
    """

    sums = ("margin", "accuracy", "chosen_log_ratio", "rejected_log_ratio")

    def __init__(self, loss: PairLossConfig, micro_batch_tokens: int, *, shares_prompts: bool = False) -> None:
        super().__init__(micro_batch_tokens, shares_prompts=shares_prompts)
        self._loss = loss

    def length(self, item: ScoredPair) -> int:
        return _length(item.pair)

    def tokens(self, item: ScoredPair) -> int:
        return _tokens(item.pair)

    def measure(self, forward: Any, micro_batch: Sequence[ScoredPair], prepared: Any = None) -> Measured:
        pairs, device = [example.pair for example in micro_batch], forward.device
        batch, chosen, rejected = _pair_logprobs(forward, pairs, device, self._shares_prompts)
        mu_chosen, mu_rejected = torch.tensor([example.reference for example in micro_batch], device=device).unbind(1)
        p = torch.tensor([pair.probability for pair in pairs], device=device)
        output = preference_loss(chosen, rejected, mu_chosen, mu_rejected, self._loss, p)
        margin = output.metrics["margin"] * (p - 0.5).sign()
        sums = {
            "margin": margin.sum(),
            "accuracy": (0.5 * (1.0 + margin.sign())).sum(),
            "chosen_log_ratio": (chosen.detach() - mu_chosen).sum(),
            "rejected_log_ratio": (rejected.detach() - mu_rejected).sum(),
        }
        return Measured(output.loss.sum(), sums, batch.tokens, batch.padded_tokens)


def make_stage(config: DpoConfig, model_dir: str | Path, data_dir: str | Path) -> Stage:
    """Load the model of `model_dir` and the pairs of `data_dir`, scored by the reference. Collective.

    Raises UsageError if a model cannot be loaded or its architecture is unsupported.
    """
    learner = config.learner
    train, validation = (read_pairs(Path(data_dir) / name) for name in (TRAIN, VALIDATION))
    reference_dir = Path(model_dir) if config.reference is None else resolve(config.reference)
    scores = reference_scores(reference_dir, [*train, *validation], learner)
    scored = [ScoredPair(pair, score) for pair, score in zip([*train, *validation], scores, strict=True)]
    policy = load_for_ranks(Path(model_dir), learner)
    if learner.lora is not None:
        adapt(policy.model, learner.lora, config.model.path)
    return Stage(
        module=policy,
        objective=OfflineObjective(
            learner.loss,
            learner.pass_tokens,
            shares_prompts=learner.share_prompts and policy.shares_prompts,
        ),
        train=scored[: len(train)],
        validation=scored[len(train) :],
    )


@torch.no_grad()
def reference_scores(directory: Path, pairs: Sequence[TokenPair], learner: DpoTrainerConfig) -> list[Scores]:
    """Score `pairs` with the frozen model of `directory`, in order; every rank gets all scores. Collective.

    Ranks share the work. Raises UsageError as `load_for_ranks`.
    """
    cuda = learner.gpus_per_rank > 0
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    policy = load_for_ranks(directory, learner)
    shares = learner.share_prompts and policy.shares_prompts
    model = frozen(policy, learner, device)
    world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, ranks, _ = share_of(*world, learner.sequence_parallel)
    own: dict[int, Scores] = {}
    if shares:
        rounds = balance([_tokens(pair) for pair in pairs], ranks, learner.pass_tokens)
    else:
        rounds = schedule([_length(pair) for pair in pairs], 2, ranks, learner.pass_tokens)
    for parts in rounds:
        # Under ZeRO-3 a forward pass gathers weights, so a rank without a share must run one too.
        indices = parts[rank] or parts[0][-1:]
        _, chosen, rejected = _pair_logprobs(model, [pairs[index] for index in indices], device, shares)
        own |= dict(zip(indices, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))
    if hasattr(model, "destroy"):
        model.destroy()
    scores = {index: score for part in gather(own) for index, score in part.items()}
    return [scores[index] for index in range(len(pairs))]


def _pair_logprobs(
    module: Any, pairs: Sequence[TokenPair], device: torch.device, shares_prompts: bool
) -> tuple[TokenBatch, Tensor, Tensor]:
    """Compute log-probs [b] (nats) of chosen and of rejected responses in one pass."""
    sequences = pair_sequences((pair.prompt, pair.chosen, pair.rejected) for pair in pairs)
    batch = (collate_shared if shares_prompts else collate)(sequences, device)
    rows = token_rows([len(response) for _, response in sequences], device)
    chosen, rejected = sum_by_sequence(module(batch), rows, len(sequences)).chunk(2)
    return batch, chosen, rejected


def _tokens(pair: TokenPair) -> int:
    """Count the tokens of both sequences, their prompt once."""
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def _length(pair: TokenPair) -> int:
    """Count the tokens of the longer sequence."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
