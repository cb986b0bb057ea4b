"""The learner of one rank: policy, frozen reference and opponent, trained on rollouts and exported as weights.

It must not depend on where rollouts come from, policy versions or Ray. Methods marked collective must be entered by all
ranks with equal arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.errors import UsageError
from actors.hub import resolve
from actors.records import Game, Pair
from learner.backend.average import AveragePolicy
from learner.backend.collective import gather
from learner.backend.models import checkpoint_names, load_policy
from learner.backend.sharded import ShardedModel, frozen, join_process_group
from learner.config import LearnerSpec
from learner.records import UpdateStats
from learner.tensors.batching import TokenSequence
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.training.objectives import Players, objective_of, step_size
from learner.training.policies import Policies
from learner.training.trainer import Trainer

AVERAGE = "average.safetensors"


class TrainEngine:
    """Policy, reference, optimizer and loss of one rank. Construction is collective.

    Every rank loads both models whole into host memory once; ZeRO-3 then shards them over the ranks, the frozen
    reference too, while under ZeRO 0-2 each rank keeps a full copy of both. Raises UsageError if a model cannot be
    loaded or has no supported architecture.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        config, opponent = spec.config, spec.config.loss.opponent
        self.spec, self.config = spec, config
        self._objective = objective_of(config)
        torch.manual_seed(config.seed)
        device = join_process_group(config)

        source = resolve(spec.model_dir)
        reference_source = source if spec.reference_dir is None else resolve(spec.reference_dir)
        reference = frozen(self._load(reference_source), config, device)
        average = None
        if opponent is not None and opponent.kind == "ema":
            average = AveragePolicy(self._load(reference_source).to(device), opponent.ema_decay)
        policy = self._load(source)
        self.model = policy.model
        self.vocab_size = policy.head.weight.shape[0]
        tokenizer_source = source if spec.tokenizer_dir is None else resolve(spec.tokenizer_dir)
        self._policy = ShardedModel(
            policy, self.model, config, spec.total_updates, device, tokenizer_source, spec.failed_batches_dir
        )
        self._policies = Policies(self._policy, reference, average, opponent, spec.temperature)
        self._trainer = Trainer(self._policy, self._policies)
        self.rank, self.ranks = self._policy.rank, self._policy.ranks

    @property
    def updates(self) -> int:
        """Updates so far; skipped ones count."""
        return self._policy.updates

    # Training

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        `measure_step`, for games, scores the players again after the step, for `step_size`. Raises UsageError for items
        that the loss does not consume, RunError once more than `max_skipped_updates` were skipped.
        """
        self._objective.check(items)
        if measure_step and self._objective.kind is Pair:
            raise UsageError(
                f"the step size is measured on games, and learner.loss.kind {self.config.loss.kind} consumes pairs; "
                "leave measure_step out"
            )
        step = self._trainer.update(items, self._objective)
        if step.applied and self._policies.average is not None:
            self._policies.average.update(self.model)
        return UpdateStats(
            update=step.update,
            grad_norm=step.grad_norm,
            lr=step.lr,
            skipped=not step.applied,
            skipped_updates=self._policy.skipped_updates,
            step_size=self._step_size(step.details) if measure_step and step.applied else None,
            **step.values,
        )

    def _step_size(self, details: list[Any]) -> float:
        """Measure the step just taken, on the players of all ranks. Collective."""
        players = gather(Players.of(details))
        after = self.score([sequence for part in players for sequence in part.sequences], with_reference=False)
        return step_size(players, [sum(policy) for policy, _ in after])

    def score(
        self, sequences: Sequence[TokenSequence], temperature: float | None = None, *, with_reference: bool = True
    ) -> list[tuple[list[float], list[float]]]:
        """As `Policies.score`. Collective."""
        return self._policies.score(sequences, temperature, with_reference=with_reference)

    # Weights

    def full_state(self) -> dict[str, Tensor]:
        """Gather the policy's weights on rank 0's CPU, under the names and dtypes of `save_pretrained`. Collective.

        Tied weights appear once. Other ranks get an empty dictionary.
        """
        state = self._policy.gather_state()
        return checkpoint_names(self.model, state) if self.rank == 0 else state

    def average_state(self) -> dict[str, Tensor]:
        """Return the averaged weights of opponent kind `ema`, as `full_state`; empty with other kinds."""
        average = self._policies.average
        return average.state() if average is not None and self.rank == 0 else {}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the policy as a Hugging Face directory, whole or not at all. Collective. Raises RunError."""
        self._policy.save_pretrained(directory)

    # Checkpoints

    def save(self, directory: str | Path, client_state: dict[str, Any] | None = None) -> None:
        """As `ShardedModel.save`, with the averaged weights if there are any. Collective."""
        average = self._policies.average
        beside = None if average is None else lambda engine: average.save(engine / AVERAGE)
        self._policy.save(directory, client_state, beside=beside)

    def load(self, checkpoint: str | Path) -> dict[str, Any]:
        """As `ShardedModel.load`, with the averaged weights if the opponent needs them. Collective."""
        average = self._policies.average
        beside = None if average is None else lambda engine: average.load(engine / AVERAGE)
        return self._policy.load(checkpoint, beside=beside)

    def close(self) -> None:
        """Leave the process group."""
        self._policy.close()

    def _load(self, directory: Path) -> PolicyWithLogProbs:
        return load_policy(directory, self.config.dtype, self.config.logprob_chunk, self.spec.temperature)
