"""Supervised fine-tuning: the mean negative log-prob of response tokens. Prompt tokens have no loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.adapters.peft_form import adapt
from actors.errors import UsageError
from learner.backend.loading import load_for_ranks
from learner.backend.models import log_prob_tolerance
from learner.stages.config import SftConfig
from learner.stages.stage import Stage
from learner.tensors.batching import TokenBatch, TokenSequence, collate, collate_rows, pack, schedule
from learner.tensors.examples import TRAIN, VALIDATION, read_sequences
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.shared_prompts import collate_shared
from learner.training.trainer import Measured, Objective

Rows = list[list[TokenSequence]]  # A padded micro-batch: rows of sequences


class SupervisedObjective(Objective):
    """Mean loss over the response tokens of a batch, in nats per token.

    With `shares_prompts`, a micro-batch is a list of sequences in one row without padding, equal prompts once. With
    `packing` alone, sequences share rows as long as the batch's longest sequence. Either way attention stays within
    each sequence.
    """

    def __init__(self, micro_batch_tokens: int, *, packing: bool = True, shares_prompts: bool = False) -> None:
        super().__init__(micro_batch_tokens, shares_prompts=shares_prompts)
        self._packing = packing

    def weight(self, items: Sequence[TokenSequence]) -> float:
        """Count response tokens."""
        return float(sum(len(response) for _, response in items))

    def length(self, item: TokenSequence) -> int:
        return len(item[0]) + len(item[1])

    def tokens(self, item: TokenSequence) -> int:
        return self.length(item)

    def micro_batches(self, items: Sequence[TokenSequence], rank: int, ranks: int) -> list[Any]:
        if self._shares_prompts:
            return super().micro_batches(items, rank, ranks)
        lengths = [self.length(item) for item in items]
        rows = pack(lengths, max(lengths)) if self._packing else [[index] for index in range(len(lengths))]
        row_lengths = [sum(lengths[index] for index in row) for row in rows]
        rounds = schedule(row_lengths, 1, ranks, self._micro_batch_tokens)
        return [[[items[index] for index in rows[row]] for row in shares[rank]] for shares in rounds]

    def filler(self, items: Sequence[TokenSequence]) -> Any:
        cheapest = super().filler(items)
        return cheapest if self._shares_prompts else [cheapest]

    def collate(self, micro_batch: Any, device: torch.device | str = "cpu") -> TokenBatch:
        """Turn a micro-batch into tensors."""
        if self._shares_prompts:
            return collate_shared(micro_batch, device)
        return collate_rows(micro_batch, device, positions=self._packing)

    def measure(self, forward: Any, micro_batch: Any, prepared: Any = None) -> Measured:
        batch = self.collate(micro_batch, forward.device)
        return Measured(-forward(batch).sum(), {}, batch.tokens, batch.padded_tokens)


@torch.no_grad()
def check_packing(policy: PolicyWithLogProbs, tolerance: float) -> None:
    """Compare log-probs of two short sequences packed in one row with those of each alone.

    Raises UsageError if one differs by more than `tolerance` nats: the architecture does not separate sequences by
    position, so packed sequences would attend to each other.
    """
    vocabulary = policy.head.weight.shape[0]
    sequences = [((1, 2, 3), (4, 5)), ((6, 7), (8, 9, 10))]
    sequences = [(tuple(i % vocabulary for i in p), tuple(i % vocabulary for i in r)) for p, r in sequences]
    device = policy.head.weight.device
    packed, alone = policy(collate_rows([sequences], device, positions=True)), policy(collate(sequences, device))
    difference = float((packed - alone).abs().max())
    if not difference <= tolerance:
        raise UsageError(
            f"log-probs of {type(policy.model).__name__} change by {difference:.3g} nats (tolerance {tolerance:g}) if "
            "sequences share a row: it does not separate them by position; set learner.packing to false"
        )


def make_stage(config: SftConfig, model_dir: str | Path, data_dir: str | Path) -> Stage:
    """Load the model of `model_dir` and the examples of `data_dir`. Collective.

    Raises UsageError if the model cannot be loaded, or its architecture does not support log-probs or packing.
    """
    learner = config.learner
    tolerance = log_prob_tolerance(learner.dtype)
    # Ranks that split sequences split one row of them.
    wanted = (learner.packing and learner.share_prompts) or learner.sequence_parallel > 1

    def check(policy: PolicyWithLogProbs) -> None:
        if learner.packing and not (wanted and policy.shares_prompts):
            check_packing(policy, tolerance)

    policy = load_for_ranks(Path(model_dir), learner, check=check)
    shares_prompts = wanted and policy.shares_prompts
    if learner.lora is not None:
        adapt(policy.model, learner.lora, config.model.path)
    return Stage(
        module=policy,
        objective=SupervisedObjective(learner.pass_tokens, packing=learner.packing, shares_prompts=shares_prompts),
        train=read_sequences(Path(data_dir) / TRAIN),
        validation=read_sequences(Path(data_dir) / VALIDATION),
    )
