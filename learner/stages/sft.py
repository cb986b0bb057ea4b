"""Supervised fine-tuning: the mean negative log-prob of response tokens. Prompts are read and never learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.errors import UsageError
from learner.backend.models import load_policy, log_prob_tolerance
from learner.stages.config import SftConfig
from learner.stages.stage import Stage
from learner.tensors.batching import TokenBatch, TokenSequence, collate, schedule
from learner.tensors.examples import TRAIN, VALIDATION, read_sequences
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.packing import collate_packed, pack
from learner.training.trainer import Measured, Objective

Rows = list[list[TokenSequence]]
"""A micro-batch: rows of sequences."""


class SupervisedObjective(Objective):
    """Completion-only loss: the mean over the response tokens of a batch, in nats per token.

    With `packing` several sequences share a row, as long as the batch's longest one; none attends to another.
    """

    def __init__(self, micro_batch_tokens: int, *, packing: bool = True) -> None:
        super().__init__(micro_batch_tokens)
        self._packing = packing

    def weight(self, items: Sequence[TokenSequence]) -> float:
        """Count response tokens."""
        return float(sum(len(response) for _, response in items))

    def length(self, item: TokenSequence) -> int:
        return len(item[0]) + len(item[1])

    def micro_batches(self, items: Sequence[TokenSequence], rank: int, ranks: int) -> list[Rows]:
        lengths = [self.length(item) for item in items]
        rows = pack(lengths, max(lengths)) if self._packing else [[index] for index in range(len(lengths))]
        row_lengths = [sum(lengths[index] for index in row) for row in rows]
        rounds = schedule(row_lengths, 1, ranks, self._micro_batch_tokens)
        return [[[items[index] for index in rows[row]] for row in shares[rank]] for shares in rounds]

    def filler(self, items: Sequence[TokenSequence]) -> Rows:
        return [super().filler(items)]

    def collate(self, rows: Rows, device: torch.device | str = "cpu") -> TokenBatch:
        """Turn rows of sequences into tensors."""
        return collate_packed(rows, device) if self._packing else collate([row[0] for row in rows], device)

    def measure(self, forward: Any, micro_batch: Rows, prepared: Any = None) -> Measured:
        batch = self.collate(micro_batch, forward.device)
        logprobs = forward(batch.input_ids, batch.rows, batch.columns, batch.targets, position_ids=batch.position_ids)
        return Measured(-logprobs.sum(), {}, batch.tokens, batch.input_ids.numel())


@torch.no_grad()
def check_packing(policy: PolicyWithLogProbs, tolerance: float) -> None:
    """Compares log-probs of two short sequences in one row with those of each alone.

    Raises UsageError when one differs by more than `tolerance` nats: the architecture does not tell sequences apart by
    their positions, and packed training would let them see each other.
    """
    vocabulary = policy.head.weight.shape[0]
    sequences = [((1, 2, 3), (4, 5)), ((6, 7), (8, 9, 10))]
    sequences = [(tuple(i % vocabulary for i in p), tuple(i % vocabulary for i in r)) for p, r in sequences]
    device = policy.head.weight.device
    packed, alone = collate_packed([sequences], device), collate(sequences, device)
    ours = policy(packed.input_ids, packed.rows, packed.columns, packed.targets, position_ids=packed.position_ids)
    theirs = policy(alone.input_ids, alone.rows, alone.columns, alone.targets)
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance:
        raise UsageError(
            f"{type(policy.model).__name__} gives sequences that share a row other log-probs than alone, by "
            f"{difference:.3g} nats: it does not keep them apart by their positions; set learner.packing to false"
        )


def make_stage(config: SftConfig, model_dir: str | Path, data_dir: str | Path) -> Stage:
    """The model of `model_dir` and the examples `train.parquet` and `validation.parquet` of `data_dir`.

    Raises UsageError when the model cannot be loaded, is no supported architecture, or cannot be packed for.
    """
    learner = config.learner
    policy = load_policy(Path(model_dir), learner.dtype, learner.logprob_chunk)
    if learner.packing:
        check_packing(policy, log_prob_tolerance(learner.dtype))
    return Stage(
        module=policy,
        model=policy.model,
        objective=SupervisedObjective(learner.micro_batch_tokens, packing=learner.packing),
        train=read_sequences(Path(data_dir) / TRAIN),
        validation=read_sequences(Path(data_dir) / VALIDATION),
    )
