"""The training engine of one learner rank: the policy in training (`sharded.py`), its frozen reference, the opponent.

What a loss consumes and computes is its objective's (`objectives.py`); this module must not know where data come from,
what a policy version is, or Ray. Every method that says so is collective: all ranks enter it, with the same arguments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.errors import UsageError
from actors.generation.config import OpponentConfig
from actors.hub import resolve
from actors.records import Game, Pair
from learner.backend.average import AveragePolicy
from learner.backend.collective import gather
from learner.backend.models import checkpoint_names, load_model
from learner.backend.sharded import ShardedModel, frozen, join_process_group, whole
from learner.config import LearnerConfig
from learner.records import UpdateStats
from learner.tensors.batching import TokenSequence, collate, schedule
from learner.tensors.logprobs import Mixture, PolicyWithLogProbs
from learner.training.objectives import Pass, Players, TokenLogProbs, objective_of, players_of, step_size
from learner.training.totals import Totals
from learner.world.exact import ExactPolicy, exact_policy

AVERAGE = "average.safetensors"


class TrainEngine:
    """Policy, reference and optimizer of one rank. Construction is collective.

    Every rank loads both models whole into host memory once; ZeRO-3 then partitions them over the ranks, the frozen
    reference too, while under ZeRO 0-2 each rank keeps a full copy of the weights of both.
    `total_updates` is the length of the schedule; `temperature` divides the logits of both models, as it did when
    sampling; `reference_dir` defaults to `model_dir`. Batches whose update was skipped are written to
    `failed_batches_dir`. `opponent` is read by losses on games; its kind `ema` keeps an average of the policy's weights
    on every rank. Raises UsageError when a model cannot be loaded or is no supported architecture, or when the average
    is asked for under ZeRO-3.
    """

    def __init__(
        self,
        model_dir: str | Path,
        config: LearnerConfig,
        total_updates: int,
        temperature: float = 1.0,
        reference_dir: str | Path | None = None,
        failed_batches_dir: str | Path | None = None,
        tokenizer_dir: str | Path | None = None,
        *,
        opponent: OpponentConfig = OpponentConfig(),  # noqa: B008 (frozen)
    ) -> None:
        if opponent.kind == "ema" and config.zero_stage == 3:
            raise UsageError(
                "opponent.kind ema keeps whole averaged weights on every rank, and learner.zero_stage 3 has whole "
                "weights on none; set learner.zero_stage to 2 or less, or opponent.kind to another"
            )
        self.config, self.temperature = config, temperature
        self.opponent, self._objective = opponent, objective_of(config)
        torch.manual_seed(config.seed)
        self.device = join_process_group(config)

        source = resolve(model_dir)
        reference_source = source if reference_dir is None else resolve(reference_dir)
        self._reference = frozen(self._load(reference_source), config, self.device)
        self._average: AveragePolicy | None = None
        if opponent.kind == "ema":
            self._average = AveragePolicy(self._load(reference_source).to(self.device), opponent.ema_decay)
        policy = self._load(source)
        self.model = policy.model
        self.vocab_size = policy.head.weight.shape[0]
        tokenizer_source = source if tokenizer_dir is None else resolve(tokenizer_dir)
        self._policy = ShardedModel(
            policy, self.model, config, total_updates, self.device, tokenizer_source, failed_batches_dir
        )
        self.rank, self.ranks = self._policy.rank, self._policy.ranks

    @property
    def updates(self) -> int:
        """Updates so far; skipped ones count."""
        return self._policy.updates

    # Training

    def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> UpdateStats:
        """One optimizer step on the mean loss over `items`, the whole batch on every rank. Collective.

        Items are pairs or games, as `config.loss` consumes them. When the loss or a gradient is not finite on any rank,
        no rank takes the step. `measure_step`, for games, scores the players again after the step, for `step_size`.
        Raises UsageError for items of the wrong kind, RunError once more than `max_skipped_updates` were skipped.
        """
        objective = self._objective
        objective.check(items)
        if measure_step and self.config.loss.on_pairs:
            raise UsageError(
                f"the step size is measured on games, and learner.loss.kind {self.config.loss.kind} consumes pairs; "
                "leave measure_step out"
            )
        started = time.perf_counter()
        batches = objective.micro_batches(items, self.rank, self.ranks)
        totals = Totals(self.device, objective.metrics, objective.needs_opponent)
        lr = self._policy.begin_update()
        *constant, last = objective.passes(items)
        filler = [objective.filler(items)]
        # Before any pass with gradient: ZeRO-3 fetches weights ahead along the order of modules that it recorded, and
        # never records that of a backward pass while the pass before it has none.
        with torch.no_grad():
            constants = [[self._token_logprobs(own or filler, part, totals) for part in constant] for own in batches]
        players: list[Players] = []
        for number, (members, known) in enumerate(zip(batches, constants, strict=True), start=1):
            logprobs = [*known, self._token_logprobs(members or filler, last, totals)]
            measured = objective.measure(members or filler, logprobs)
            if members:
                totals.add(measured.loss, measured.metrics, measured.behaviour_log_ratio, measured.opponent_log_ratio)
            if measure_step:
                players += players_of(members, measured)
            # DeepSpeed averages gradients over ranks; the mean wanted is over the items of all ranks.
            scale = self.ranks / len(items) if members else 0.0
            self._policy.backward(measured.total() * scale, last=number == len(batches))
        applied, grad_norm = self._policy.step()
        if applied and self._average is not None:
            self._average.update(self.model)
        reduced = totals.reduce(time.perf_counter() - started, len(items), objective.constant_loss(items))
        stats = UpdateStats(
            update=self.updates,
            grad_norm=grad_norm,
            lr=lr,
            skipped=not applied,
            skipped_updates=self._policy.skipped_updates,
            step_size=self._step_size(players) if measure_step and applied else None,
            **objective.counts(items),
            **reduced,
        )
        if not applied:
            self._policy.report_skipped(items)
        return stats

    def _token_logprobs(self, members: Sequence[Any], part: Pass, totals: Totals) -> TokenLogProbs:
        """What `part` reads, from the models that it takes; of the policy with gradient, where that is enabled."""
        batch = collate(self._objective.sequences(members, part), self.device)
        totals.add_tokens(batch)
        arguments = (batch.input_ids, batch.rows, batch.columns, batch.targets)
        beta = self.opponent.target_beta
        if part.opponent and 0.0 < beta < 1.0:
            return self._mixture_logprobs(arguments, beta)
        policy = self._policy(*arguments) if part.log_ratio else None
        with torch.no_grad():
            reference = self._reference(*arguments) if part.log_ratio else None
            if not part.opponent:
                return TokenLogProbs(policy, reference)
            if self._average is not None:
                return TokenLogProbs(policy, reference, self._average.model(*arguments))
            model, known = (self._policy, policy) if beta == 0.0 else (self._reference, reference)
            return TokenLogProbs(policy, reference, model(*arguments) if known is None else known.detach())

    def _mixture_logprobs(self, arguments: tuple[Tensor, ...], beta: float) -> TokenLogProbs:
        with torch.no_grad():
            reference, hidden = self._reference(*arguments, with_hidden=True)
        head = getattr(self._reference, "module", self._reference).head
        # The policy's own head is whole in its forward pass, where ZeRO-3 gathers it; to gather it here would meet the
        # copy that ZeRO-3 fetches ahead for the backward pass.
        with whole(list(head.parameters())):
            policy, opponent = self._policy(*arguments, mixture=Mixture(beta, hidden, head))
        return TokenLogProbs(policy, reference, opponent)

    def _step_size(self, own: list[Players]) -> float:
        """`step_size` of the step that was taken, from the players of all ranks. Collective."""
        players = [game for part in gather(own) for game in part]
        after = self.score([sequence for game in players for sequence in game.sequences], with_reference=False)
        return step_size(players, [sum(policy) for policy, _ in after])

    # Scoring

    @torch.no_grad()
    def score(
        self, sequences: Sequence[TokenSequence], temperature: float | None = None, *, with_reference: bool = True
    ) -> list[tuple[list[float], list[float]]]:
        """Log-probs (nats) of each response token under policy and reference, for each (prompt, response). Collective.

        `temperature` is the engine's own unless given. Without reference its log-probs are empty lists, and
        under ZeRO-3 its weights stay where they are. The work is shared by the ranks; all get all results.
        """
        rounds = schedule([len(p) + len(r) for p, r in sequences], 1, self.ranks, self.config.micro_batch_tokens)
        own: dict[int, tuple[list[float], list[float]]] = {}
        for shares in rounds:
            share = shares[self.rank] or shares[0][:1]
            batch = collate([sequences[index] for index in share], self.device)
            arguments = (batch.input_ids, batch.rows, batch.columns, batch.targets, temperature or self.temperature)
            lengths = [len(sequences[index][1]) for index in share]
            policy = _lists(self._policy(*arguments), lengths)
            reference = _lists(self._reference(*arguments), lengths) if with_reference else [[] for _ in share]
            if shares[self.rank]:
                own |= {i: (p, r) for i, p, r in zip(share, policy, reference, strict=True)}
        merged = {index: result for part in gather(own) for index, result in part.items()}
        return [merged[index] for index in range(len(sequences))]

    # Weights

    def full_state(self) -> dict[str, Tensor]:
        """The policy's weights on rank 0, on the CPU, under the names and dtypes of `save_pretrained`; elsewhere empty.

        Tied weights appear once. Collective: under ZeRO-3 the ranks gather a part at a time.
        """
        return (
            checkpoint_names(self.model, self._policy.gather_state()) if self.rank == 0 else self._policy.gather_state()
        )

    def average_state(self) -> dict[str, Tensor]:
        """The averaged weights of opponent kind `ema`, as `full_state`; empty with other kinds."""
        return self._average.state() if self._average is not None and self.rank == 0 else {}

    def exact_policy(self) -> ExactPolicy | None:
        """The policy of the embedded world as a table, at the engine's temperature; None but on rank 0. Collective.

        Raises UsageError when the model's vocabulary is not the world's.
        """
        state = self._policy.gather_state()
        if self.rank != 0:
            return None
        # A plain copy: ZeRO-3 partitions the weights of the policy itself.
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(self.model.config, dtype=torch.float32)
        model.load_state_dict(state, strict=False)
        return exact_policy(model.eval(), self.temperature)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the policy as a Hugging Face directory, whole or not at all. Collective. Raises RunError."""
        self._policy.save_pretrained(directory)

    # Checkpoints

    def save(self, directory: str | Path, client_state: dict[str, Any] | None = None) -> None:
        """As `ShardedModel.save`, with the averaged weights where there are any. Collective."""
        average = self._average
        beside = None if average is None else lambda engine: average.save(engine / AVERAGE)
        self._policy.save(directory, client_state, beside=beside)

    def load(self, checkpoint: str | Path) -> dict[str, Any]:
        """As `ShardedModel.load`, with the averaged weights where they are wanted. Collective."""
        average = self._average
        beside = None if average is None else lambda engine: average.load(engine / AVERAGE)
        return self._policy.load(checkpoint, beside=beside)

    def close(self) -> None:
        """Leaves the process group."""
        self._policy.close()

    def _load(self, directory: Path) -> PolicyWithLogProbs:
        policy = PolicyWithLogProbs(
            load_model(directory, self.config.dtype), self.config.logprob_chunk, self.temperature
        )
        policy.check(1e-3 if self.config.dtype == "float32" else 0.25)
        return policy


def _lists(values: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in values.split(list(lengths))]
