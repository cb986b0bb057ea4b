"""The learner of one rank: policy, frozen reference and opponent, trained on rollouts and exported as weights.

Must not depend on the source of rollouts, policy versions or Ray. Methods marked collective must be entered by all
ranks with equal arguments.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.adapters.peft_form import adapt
from actors.errors import UsageError
from actors.generation.weights import REFERENCE_PREFIX
from actors.hub import resolve
from actors.records import Game, Pair
from learner.backend.average import ANCHOR, LAST, AveragePolicy
from learner.backend.checkpoint_layout import CheckpointLayout, Layout
from learner.backend.collective import gather
from learner.backend.loading import load_for_ranks
from learner.backend.models import settle_generation
from learner.backend.sharded import ShardedModel, frozen, join_process_group
from learner.config import LearnerSpec
from learner.records import UpdateStats
from learner.tensors.batching import TokenSequence
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.sampling import sample_answer
from learner.training.game_objective import Players, step_size
from learner.training.objectives import check_reference_logprobs, objective_of
from learner.training.policies import BasePolicy, Policies, SlowPolicy
from learner.training.trainer import Trainer


def first_averaged(total_updates: int, share: float) -> int:
    """Count the updates of a run before the last `share` of them, at least one of which is averaged."""
    return min(total_updates - 1, round(total_updates * (1.0 - share)))


class TrainEngine:
    """Policy, reference, optimizer and loss of one rank. Construction is collective.

    Rank 0 reads each model whole into host memory, one after the other. ZeRO-3 shards both over the ranks; under ZeRO
    0-2 each rank keeps a full copy. Raises UsageError if a model cannot be loaded or its architecture is unsupported.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        config, opponent = spec.config, spec.config.loss.opponent
        self.spec, self.config = spec, config
        torch.manual_seed(config.seed)
        device = join_process_group(config)

        source = resolve(spec.model_dir)
        reference_source = source if spec.reference_dir is None else resolve(spec.reference_dir)
        shares_prompts, reference = config.share_prompts, None
        # The base of the adapters is a reference without a copy of its own.
        if spec.with_reference and (config.lora is None or reference_source != source):
            mu = self._load(reference_source)
            shares_prompts &= mu.shares_prompts
            reference = frozen(mu, config, device, offload=config.offload_reference)
        average = None
        if opponent is not None and opponent.kind == "ema":
            average = AveragePolicy(frozen(self._load(reference_source), config, device), opponent.ema_decay)
        policy = self._load(source)
        shares_prompts &= policy.shares_prompts
        if config.lora is not None:
            adapt(policy.model, config.lora, spec.model_dir)
        if config.loss.kind == "ppo":
            policy.add_value_head()
        self._objective = objective_of(config, shares_prompts=shares_prompts, anchor=spec.anchor)
        self.vocab_size = policy.head.weight.shape[0]
        tokenizer_source = source if spec.tokenizer_dir is None else resolve(spec.tokenizer_dir)
        settle_generation(policy.model, source, spec.ends, spec.temperature)
        self.policy = ShardedModel(
            policy, config, spec.total_updates, device, tokenizer_source, spec.failed_batches_dir, average
        )
        if spec.with_reference and reference is None:
            reference = BasePolicy(self.policy, policy.head)
        slow = None if spec.anchor is None else SlowPolicy(self.policy, self.policy.averaged(ANCHOR))
        self.policies = Policies(self.policy, reference, average, opponent, spec.temperature, shares_prompts, slow)
        self._last = self.policy.averaged(LAST) if config.average_last else None
        self._trainer = Trainer(self.policy, self.policies)

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """Take one optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        `measure_step` scores the players of games, or both sides of pairs, again after the step, for `step_size`.
        Raises UsageError for items that the loss does not consume, or that lack reference log-probs if there is no
        reference here; RunError if more than `max_skipped_updates` updates were skipped.
        """
        self._objective.check(items)
        if self.policies.reference is None:
            check_reference_logprobs(items)
        if measure_step and not self._objective.measures_step:
            raise UsageError(
                f"learner.loss.kind {self.config.loss.kind} has no step size: its pairs have no residual that vanishes "
                "at rest; leave measure_step out"
            )
        step = self._trainer.update(items, self._objective)
        if step.applied and self.policies.average is not None:
            self.policies.average.update(self.policy.model)
        if step.applied and self.policies.anchor is not None and self.spec.anchor is not None:
            self.policies.anchor.average.move(1.0 / self.spec.anchor.horizon)
        later = self.policy.updates - first_averaged(self.spec.total_updates, self.config.average_last)
        if self._last is not None and later > 0:
            self._last.move(1.0 / later)
        measured = self._step_size(step.details) if measure_step and step.applied else None
        return UpdateStats(step_size=measured, **step.values)

    def _step_size(self, details: list[Any]) -> float:
        """Measure the last step on the players of all ranks; nan if all pairs were ties. Collective."""
        players = gather(Players.of(details))
        sequences = [sequence for part in players for sequence in part.sequences]
        if not sequences:
            return math.nan
        after = self.policies.score(sequences, with_reference=False)
        return step_size(players, [sum(policy) for policy, _ in after])

    def adopt_average(self) -> None:
        """Make the mean of the weights of the run's last updates the policy, whatever comes after. Collective."""
        if self._last is None:
            raise UsageError("learner.average_last is 0, so there is no average of the last weights; set it above 0")
        self._last.adopt()

    def own_answer(self) -> TokenSequence:
        """Let the policy answer `spec.canary_prompt` at temperature 1, without an end. Collective.

        All ranks return rank 0's answer of `spec.canary_tokens` tokens.
        """
        prompt = self.spec.canary_prompt
        answer = sample_answer(self.policy.model, prompt, self.spec.canary_tokens, self.spec.ends)
        return prompt, gather(answer)[0]

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes of what `weights` yields, in tensors on the meta device."""
        return {prefix + name: tensor for prefix, layout in self._layouts for name, tensor in layout.outline.items()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight of a publication by name, one at a time, on rank 0's device. Collective.

        The policy's are under the names and in the shapes of `save_pretrained`, tied ones once, or its adapters under
        peft's; then, for opponent kind `ema`, those of the average, prefixed with `REFERENCE_PREFIX`. Each may be the
        weight itself, not a copy, and whole only until the next is asked for. Other ranks get none, but must exhaust
        the iterator like rank 0.
        """
        for prefix, layout in self._layouts:
            parts = layout.parts()
            for part in self.policy.gather(parts) if not prefix else parts:
                if self.policy.rank == 0:
                    for name, tensor in layout.convert(part).items():
                        yield prefix + name, tensor.detach()

    @cached_property
    def _layouts(self) -> list[tuple[str, Layout]]:
        lora = self.config.lora
        layouts = [("", self.policy.layout("merged" if lora is None else lora.publish))]
        if self.policies.average is not None:
            layouts.append((REFERENCE_PREFIX, CheckpointLayout(self.policies.average.model.model)))
        return layouts

    def _load(self, directory: Path) -> PolicyWithLogProbs:
        return load_for_ranks(directory, self.config, self.spec.temperature, head_dtype=self.spec.head_dtype)
