"""Supervised fine-tuning: the mean negative log-prob of response tokens. Prompts are read and never learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.errors import UsageError
from learner.backend.models import load_model
from learner.stages.config import SftConfig
from learner.tensors.batching import TokenBatch, TokenSequence, collate, schedule
from learner.tensors.examples import TRAIN, VALIDATION, read_sequences
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.packing import collate_packed, pack
from learner.training.trainer import Measured, Stage

Rows = list[list[TokenSequence]]
"""A micro-batch: rows of sequences."""


class SupervisedObjective:
    """Completion-only loss, the mean over the response tokens of a batch, in nats per token.

    With `packing` several sequences share a row, as long as the batch's longest one; none sees another. A micro-batch
    holds at most `micro_batch_tokens` padded tokens unless one row alone exceeds them.
    """

    metrics: tuple[str, ...] = ()

    def __init__(self, micro_batch_tokens: int, *, packing: bool = True) -> None:
        self._tokens, self._packing = micro_batch_tokens, packing

    def weight(self, examples: Sequence[TokenSequence]) -> float:
        """Response tokens."""
        return float(sum(len(response) for _, response in examples))

    def micro_batches(self, examples: Sequence[TokenSequence], rank: int, ranks: int) -> list[Rows]:
        """This rank's rows; on every rank as many micro-batches, in the last round some may be empty."""
        lengths = [len(prompt) + len(response) for prompt, response in examples]
        rows = pack(lengths, max(lengths)) if self._packing else [[index] for index in range(len(lengths))]
        rounds = schedule([sum(lengths[index] for index in row) for row in rows], 1, ranks, self._tokens)
        return [[[examples[index] for index in rows[row]] for row in shares[rank]] for shares in rounds]

    def filler(self, examples: Sequence[TokenSequence]) -> Rows:
        """The shortest example."""
        return [[min(examples, key=lambda example: len(example[0]) + len(example[1]))]]

    def collate(self, rows: Rows, device: torch.device | str = "cpu") -> TokenBatch:
        return collate_packed(rows, device) if self._packing else collate([row[0] for row in rows], device)

    def measure(self, module: Any, micro_batch: Rows, device: torch.device) -> Measured:
        batch = self.collate(micro_batch, device)
        logprobs = module(batch.input_ids, batch.rows, batch.columns, batch.targets, position_ids=batch.position_ids)
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
    policy = PolicyWithLogProbs(load_model(Path(model_dir), learner.dtype), learner.logprob_chunk)
    tolerance = 1e-3 if learner.dtype == "float32" else 0.25
    policy.check(tolerance)
    if learner.packing:
        check_packing(policy, tolerance)
    return Stage(
        module=policy,
        model=policy.model,
        objective=SupervisedObjective(learner.micro_batch_tokens, packing=learner.packing),
        train=read_sequences(Path(data_dir) / TRAIN),
        validation=read_sequences(Path(data_dir) / VALIDATION),
    )
