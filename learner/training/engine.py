"""The learner of one rank: policy, frozen reference and opponent, trained on rollouts and exported as weights.

Must not depend on the source of rollouts, policy versions or Ray. Methods marked collective must be entered by all
ranks with equal arguments.
"""

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
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.training.objectives import Players, objective_of, step_size
from learner.training.policies import Policies
from learner.training.trainer import Trainer


class TrainEngine:
    """Policy, reference, optimizer and loss of one rank. Construction is collective.

    Every rank loads both models whole into host memory once. ZeRO-3 then shards both over the ranks; under ZeRO 0-2
    each rank keeps a full copy. Raises UsageError if a model cannot be loaded or its architecture is unsupported.
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
        self.vocab_size = policy.head.weight.shape[0]
        tokenizer_source = source if spec.tokenizer_dir is None else resolve(spec.tokenizer_dir)
        self.policy = ShardedModel(
            policy, config, spec.total_updates, device, tokenizer_source, spec.failed_batches_dir, average
        )
        self.policies = Policies(self.policy, reference, average, opponent, spec.temperature)
        self._trainer = Trainer(self.policy, self.policies)

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        `measure_step` scores the players of games again after the step, for `step_size`. Raises UsageError for items
        that the loss does not consume, RunError if more than `max_skipped_updates` updates were skipped.
        """
        self._objective.check(items)
        if measure_step and self._objective.kind is Pair:
            raise UsageError(
                f"the step size is measured on games, and learner.loss.kind {self.config.loss.kind} consumes pairs; "
                "leave measure_step out"
            )
        step = self._trainer.update(items, self._objective)
        if step.applied and self.policies.average is not None:
            self.policies.average.update(self.policy.model)
        measured = self._step_size(step.details) if measure_step and step.applied else None
        return UpdateStats(step_size=measured, **step.values)

    def _step_size(self, details: list[Any]) -> float:
        """Measure the last step on the players of all ranks. Collective."""
        players = gather(Players.of(details))
        sequences = [sequence for part in players for sequence in part.sequences]
        after = self.policies.score(sequences, with_reference=False)
        return step_size(players, [sum(policy) for policy, _ in after])

    def full_state(self) -> dict[str, Tensor]:
        """Gather the policy's weights on rank 0's CPU, under the names and dtypes of `save_pretrained`. Collective.

        Tied weights appear once. Other ranks get an empty dictionary.
        """
        state = self.policy.gather_state()
        return checkpoint_names(self.policy.model, state) if self.policy.rank == 0 else state

    def average_state(self) -> dict[str, Tensor]:
        """Return the averaged weights of opponent kind `ema`, as `full_state`; empty for other kinds."""
        average = self.policies.average
        return average.state() if average is not None and self.policy.rank == 0 else {}

    def _load(self, directory: Path) -> PolicyWithLogProbs:
        return load_policy(directory, self.config.dtype, self.config.logprob_chunk, self.spec.temperature)
