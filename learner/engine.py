"""The training engine of one learner rank: policy, frozen reference and optimizer under DeepSpeed ZeRO 0-3.

The only module that imports deepspeed. What a loss consumes and computes is its objective's (`objectives.py`); this
module must not know where data come from, what a policy version is, or Ray. Every method that says so is collective:
all ranks enter it, with the same arguments.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from actors.config import OpponentConfig
from actors.errors import RunError, UsageError
from actors.model_files import resolve
from actors.records import Game, Pair
from learner.average import AveragePolicy
from learner.batching import TokenSequence, collate, schedule
from learner.checkpoints import ENGINE, MODEL
from learner.collective import agree, gather, make_directory
from learner.config import LearnerConfig
from learner.exact import ExactPolicy, exact_policy
from learner.logprobs import Mixture, PolicyWithLogProbs
from learner.models import (
    checkpoint_activations,
    checkpoint_names,
    in_parts,
    load_model,
    replace_directory,
    unique_tensors,
    write_model,
)
from learner.objectives import Pass, Players, TokenLogProbs, objective_of, players_of, step_size
from learner.records import UpdateStats
from learner.schedules import learning_rate
from learner.totals import Totals
from learner.zero import deepspeed_config, reference_config

ENGINE_TAG = "engine"
LAYOUT = "layout.json"
AVERAGE = "average.safetensors"
_GATHER_NUMEL = 1 << 26
"""Elements of ZeRO-3 weights that are whole at a time while they are gathered for publication or saving."""


def join_process_group(config: LearnerConfig) -> torch.device:
    """Joins the process group that the environment describes (torch's RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
    LOCAL_RANK); without RANK this process is a group of its own. Returns the device of this rank.

    Raises RunError when GPUs are asked for and there are none, or the other way round.
    """
    on_gpu = config.gpus_per_rank > 0
    if on_gpu != (get_accelerator().device_name() == "cuda"):
        raise RunError(
            f"learner.gpus_per_rank is {config.gpus_per_rank:g} but DeepSpeed chose the device "
            f"{get_accelerator().device_name()!r}; set gpus_per_rank to match this machine, or DS_ACCELERATOR to "
            f"{'cuda' if on_gpu else 'cpu'} before the process starts"
        )
    if not dist.is_initialized():
        alone = {} if "RANK" in os.environ else {"init_method": _free_address(), "rank": 0, "world_size": 1}
        os.environ.setdefault("LOCAL_RANK", "0")
        # This operation serves inference only, and building it needs a compiler and leaves shared memory behind.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False, **alone)
    if not on_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


class _CheckpointWriter(TorchCheckpointEngine):
    """Remembers a failed write instead of raising, so that this rank reaches the barriers the others wait at."""

    def __init__(self, config_params: Any = None) -> None:
        super().__init__(config_params)
        self.error: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.error = error


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
        deepspeed.utils.logger.setLevel(logging.WARNING)
        self.config, self.total_updates, self.temperature = config, total_updates, temperature
        self.opponent, self._objective = opponent, objective_of(config)
        self.failed_batches_dir = None if failed_batches_dir is None else Path(failed_batches_dir)
        self.updates = 0
        self.skipped_updates = 0
        torch.manual_seed(config.seed)
        self.device = join_process_group(config)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

        self.source = resolve(model_dir)
        self._tokenizer_source = self.source if tokenizer_dir is None else resolve(tokenizer_dir)
        reference_source = self.source if reference_dir is None else resolve(reference_dir)
        self._reference = self._make_reference(reference_source)
        self._average: AveragePolicy | None = None
        if opponent.kind == "ema":
            self._average = AveragePolicy(self._load(reference_source).to(self.device), opponent.ema_decay)
        policy = self._load(self.source)
        self.model = policy.model
        self.vocab_size = policy.head.weight.shape[0]
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)
        ds_config = deepspeed_config(config, sum(parameter.numel() for parameter in policy.parameters()))
        self._engine, *_ = deepspeed.initialize(model=policy, model_parameters=policy.parameters(), config=ds_config)
        self._writer = self._engine.checkpoint_engine = _CheckpointWriter()

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
        lr = learning_rate(self.config.optimizer, self.updates, self.total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        *constant, last = objective.passes(items)
        filler = [objective.filler(items)]
        # Before any pass with gradient: ZeRO-3 fetches weights ahead along the order of modules that it recorded, and
        # never records that of a backward pass while the pass before it has none.
        with torch.no_grad():
            constants = [[self._token_logprobs(own or filler, part, totals) for part in constant] for own in batches]
        players: list[Players] = []
        for number, (members, known) in enumerate(zip(batches, constants, strict=True), start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(batches))
            logprobs = [*known, self._token_logprobs(members or filler, last, totals)]
            measured = objective.measure(members or filler, logprobs)
            if members:
                totals.add(measured.loss, measured.metrics, measured.behaviour_log_ratio, measured.opponent_log_ratio)
            if measure_step:
                players += players_of(members, measured)
            # DeepSpeed averages gradients over ranks; the mean wanted is over the items of all ranks.
            scale = self.ranks / len(items) if members else 0.0
            self._engine.backward(measured.total() * scale, scale_wrt_gas=False)
        applied, grad_norm = self._step()
        if applied and self._average is not None:
            self._average.update(self.model)
        self.updates += 1
        self.skipped_updates += not applied
        reduced = totals.reduce(time.perf_counter() - started, len(items), objective.constant_loss(items))
        stats = UpdateStats(
            update=self.updates,
            grad_norm=grad_norm,
            lr=lr,
            skipped=not applied,
            skipped_updates=self.skipped_updates,
            step_size=self._step_size(players) if measure_step and applied else None,
            **objective.counts(items),
            **reduced,
        )
        if not applied:
            self._report_skipped(items)
        return stats

    def _token_logprobs(self, members: Sequence[Any], part: Pass, totals: Totals) -> TokenLogProbs:
        """What `part` reads, from the models that it takes; of the policy with gradient, where that is enabled."""
        batch = collate(self._objective.sequences(members, part), self.device)
        totals.add_tokens(batch)
        arguments = (batch.input_ids, batch.rows, batch.columns, batch.targets)
        beta = self.opponent.target_beta
        if part.opponent and 0.0 < beta < 1.0:
            return self._mixture_logprobs(arguments, beta)
        policy = self._engine(*arguments) if part.log_ratio else None
        with torch.no_grad():
            reference = self._reference(*arguments) if part.log_ratio else None
            if not part.opponent:
                return TokenLogProbs(policy, reference)
            if self._average is not None:
                return TokenLogProbs(policy, reference, self._average.model(*arguments))
            model, known = (self._engine, policy) if beta == 0.0 else (self._reference, reference)
            return TokenLogProbs(policy, reference, model(*arguments) if known is None else known.detach())

    def _mixture_logprobs(self, arguments: tuple[Tensor, ...], beta: float) -> TokenLogProbs:
        with torch.no_grad():
            reference, hidden = self._reference(*arguments, with_hidden=True)
        head = getattr(self._reference, "module", self._reference).head
        partitioned = [weight for weight in head.parameters() if hasattr(weight, "ds_id")]
        # The policy's own head is whole in its forward pass, where ZeRO-3 gathers it; to gather it here would meet the
        # copy that ZeRO-3 fetches ahead for the backward pass.
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            policy, opponent = self._engine(*arguments, mixture=Mixture(beta, hidden, head))
        return TokenLogProbs(policy, reference, opponent)

    def _step_size(self, own: list[Players]) -> float:
        """`step_size` of the step that was taken, from the players of all ranks. Collective."""
        players = [game for part in gather(own) for game in part]
        after = self.score([sequence for game in players for sequence in game.sequences], with_reference=False)
        return step_size(players, [sum(policy) for policy, _ in after])

    def _step(self) -> tuple[bool, float]:
        """Takes the step unless gradients are not finite; returns whether it did, and the gradient norm."""
        if self.config.zero_stage == 0:
            # Without ZeRO nothing checks the gradients; they are already reduced, so every rank decides alike.
            gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return False, math.inf
            self._engine.step()
            return True, norm
        self._engine.step()
        applied = self._engine.was_step_applied()
        if not applied and self.config.zero_stage < 3:
            # With an offloaded optimizer DeepSpeed keeps the gradients of the step it skipped, and the next backward
            # pass would add to them.
            kept = getattr(self._engine.optimizer, "averaged_gradients", {})
            kept.update(dict.fromkeys(kept))
        return applied, float(self._engine.get_global_grad_norm())

    def _report_skipped(self, items: Sequence[Any]) -> None:
        """Saves the batch of a skipped update and raises RunError when there were too many."""
        where = "not saved, as no directory was given"
        if self.failed_batches_dir is not None:
            path = self.failed_batches_dir / f"skipped-update-{self.updates:06d}.jsonl"
            where = f"saved to {path}"
            if self.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")
        if self.skipped_updates > self.config.max_skipped_updates:
            raise RunError(
                f"update {self.updates} had a loss or gradient that is not finite; {self.skipped_updates} updates were "
                f"skipped so far and learner.max_skipped_updates allows {self.config.max_skipped_updates}. Its batch "
                f"was {where}. Lower learner.optimizer.lr and resume from the last checkpoint"
            )

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
            policy = _lists(self._engine(*arguments), lengths)
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
        return checkpoint_names(self.model, self._gather()) if self.rank == 0 else self._gather()

    def average_state(self) -> dict[str, Tensor]:
        """The averaged weights of opponent kind `ema`, as `full_state`; empty with other kinds."""
        return self._average.state() if self._average is not None and self.rank == 0 else {}

    def exact_policy(self) -> ExactPolicy | None:
        """The policy of the embedded world as a table, at the engine's temperature; None but on rank 0. Collective.

        Raises UsageError when the model's vocabulary is not the world's.
        """
        state = self._gather()
        if self.rank != 0:
            return None
        # A plain copy: ZeRO-3 partitions the weights of the policy itself.
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(self.model.config, dtype=torch.float32)
        model.load_state_dict(state, strict=False)
        return exact_policy(model.eval(), self.temperature)

    def _gather(self) -> dict[str, Tensor]:
        """Copies of the policy's weights on rank 0 under the model's own names; elsewhere empty. Collective."""
        state: dict[str, Tensor] = {}
        for part in in_parts(unique_tensors(self.model), _GATHER_NUMEL):
            partitioned = [tensor for tensor in part.values() if hasattr(tensor, "ds_id")]
            with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
                if self.rank == 0:
                    state |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in part.items()}
        return state

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the policy as a Hugging Face directory, whole or not at all. Collective. Raises RunError."""
        final = Path(directory)
        stage = final.with_name(f".tmp-{final.name}")
        error = self._write_model(stage)
        if self.rank == 0 and error is None:
            try:
                replace_directory(stage, final)
            except OSError as failure:
                error = failure
        agree(error, f"the model could not be written to {final}")

    def _write_model(self, directory: Path) -> Exception | None:
        state = self._gather()
        if self.rank == 0:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                write_model(directory, self.model, state, self._tokenizer_source)
            except (OSError, RuntimeError) as error:
                return error
        return None

    # Checkpoints

    def save(self, directory: str | Path, client_state: dict[str, Any] | None = None) -> None:
        """Writes engine state and a model directory below `directory`, a stage of `checkpoints.begin`. Collective.

        Raises RunError on every rank when any rank could not write; nothing then waits for anything.
        """
        directory = Path(directory)
        what = f"the checkpoint could not be written to {directory}"
        make_directory(directory / ENGINE / ENGINE_TAG, what)
        random_states = gather(self._random_state())
        own = {"updates": self.updates, "skipped_updates": self.skipped_updates, "random_states": random_states}
        self._writer.error = None
        try:
            self._engine.save_checkpoint(
                str(directory / ENGINE),
                tag=ENGINE_TAG,
                client_state={"learner": own, "client": client_state or {}},
                save_latest=False,
            )
        except OSError as error:
            # Only the script that DeepSpeed adds on rank 0 fails this way, just before the last barrier.
            self._writer.error = error
            dist.barrier()
        failure = self._write_model(directory / MODEL) or self._writer.error
        if self.rank == 0 and failure is None:
            try:
                if self._average is not None:
                    self._average.save(directory / ENGINE / AVERAGE)
                (directory / ENGINE / LAYOUT).write_text(json.dumps(self._layout()), encoding="utf-8")
            except OSError as error:
                failure = error
        agree(failure, what)

    def load(self, checkpoint: str | Path) -> dict[str, Any]:
        """Takes over the state that `save` wrote below `checkpoint`; returns its `client_state`. Collective.

        Only load checkpoints you trust: the engine state is a pickle. Raises UsageError when it was written by another
        number of ranks, ZeRO stage or dtype, or cannot be read.
        """
        directory = Path(checkpoint) / ENGINE
        try:
            written = json.loads((directory / LAYOUT).read_text(encoding="utf-8"))
            if written != self._layout():
                raise UsageError(
                    f"checkpoint {checkpoint} was written with {_describe(written)}, this run has "
                    f"{_describe(self._layout())}; resume with the settings it was written with, or start a new run "
                    f"from its model directory {Path(checkpoint) / MODEL}"
                )
            if self._average is not None:
                self._average.load(directory / AVERAGE)
            path, state = self._engine.load_checkpoint(str(directory), tag=ENGINE_TAG)
        except UsageError:
            raise
        except Exception as error:  # a torn file fails in as many ways as it can be torn
            raise UsageError(
                f"checkpoint {checkpoint} cannot be read: {error}; resume from an older one, or start a new run from "
                f"its model directory {Path(checkpoint) / MODEL}"
            ) from error
        if path is None:
            raise UsageError(f"checkpoint {checkpoint} holds no engine state; resume from an older one")
        own = state["learner"]
        self.updates, self.skipped_updates = own["updates"], own["skipped_updates"]
        self._set_random_state(own["random_states"][self.rank])
        return state["client"]

    def close(self) -> None:
        """Leaves the process group."""
        self._engine.destroy()
        deepspeed.comm.destroy_process_group()

    def _load(self, directory: Path) -> PolicyWithLogProbs:
        policy = PolicyWithLogProbs(
            load_model(directory, self.config.dtype), self.config.logprob_chunk, self.temperature
        )
        policy.check(1e-3 if self.config.dtype == "float32" else 0.25)
        return policy

    def _make_reference(self, directory: Path) -> nn.Module:
        reference = self._load(directory).requires_grad_(False)
        if self.config.zero_stage < 3:
            return reference.to(self.device)
        ds_config = reference_config(self.config, sum(parameter.numel() for parameter in reference.parameters()))
        return deepspeed.initialize(model=reference, config=ds_config)[0]

    def _layout(self) -> dict[str, Any]:
        return {"ranks": self.ranks, "zero_stage": self.config.zero_stage, "dtype": self.config.dtype}

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def _lists(values: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in values.split(list(lengths))]


def _describe(layout: dict[str, Any]) -> str:
    return ", ".join(f"learner.{name} {value}" for name, value in layout.items())
