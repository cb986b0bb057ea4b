"""One model and its optimizer under DeepSpeed ZeRO 0-3, on the ranks of a process group.

The only module that imports deepspeed. It must not know losses, data, references, policy versions or Ray. Methods that
say so are collective: all ranks enter them, with the same arguments.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn
from transformers import PreTrainedModel

from actors.errors import RunError, UsageError
from actors.files import replace_directory
from learner.backend.checkpoints import ENGINE, MODEL
from learner.backend.collective import agree, gather, make_directory
from learner.backend.models import checkpoint_activations, in_parts, unique_tensors, write_model
from learner.backend.schedules import learning_rate
from learner.backend.universal import load_converted, only_world_size_differs, seed_of_new_rank, weights_only
from learner.backend.zero import deepspeed_config, reference_config
from learner.config import TrainerConfig

ENGINE_TAG = "engine"
LAYOUT = "layout.json"
_SAVED_CLASSES: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
"""Classes of objects that DeepSpeed puts into an engine's state beside tensors and plain values."""
Beside = Callable[[Path], None] | None
_GATHER_NUMEL = 1 << 26
"""Elements of ZeRO-3 weights that are whole at a time while they are gathered for publication or saving."""


def join_process_group(config: TrainerConfig) -> torch.device:
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
    deepspeed.utils.logger.setLevel(logging.WARNING)
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


class _CheckpointFiles(TorchCheckpointEngine):
    """Remembers a failed write instead of raising, so that this rank reaches the barriers the others wait at; and reads
    tensors and plain values only, where DeepSpeed's own would run whatever code a file asks for."""

    def __init__(self, config_params: Any = None) -> None:
        super().__init__(config_params)
        self.error: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        with weights_only(_SAVED_CLASSES):
            return torch.load(path, map_location=map_location, weights_only=True)


class ShardedModel:
    """A model, trained. Construction is collective.

    Args:
        module: what a step optimises; its forward pass is this object's call.
        model: the Hugging Face model inside `module` that is written to disk.
        config: ranks, ZeRO, precision and optimizer.
        total_updates: length of the schedule.
        device: of this rank, from `join_process_group`.
        tokenizer_source: model directory whose tokenizer files go along with what is written.
        failed_batches_dir: where batches whose update was skipped are written; None keeps none.
    """

    def __init__(
        self,
        module: nn.Module,
        model: PreTrainedModel,
        config: TrainerConfig,
        total_updates: int,
        device: torch.device,
        tokenizer_source: Path,
        failed_batches_dir: str | Path | None = None,
    ) -> None:
        self.model, self.config, self.total_updates, self.device = model, config, total_updates, device
        self.failed_batches_dir = None if failed_batches_dir is None else Path(failed_batches_dir)
        self.updates = 0
        self.skipped_updates = 0
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._tokenizer_source = tokenizer_source
        if config.gradient_checkpointing:
            checkpoint_activations(model)
        ds_config = deepspeed_config(config, sum(parameter.numel() for parameter in module.parameters()))
        self._engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=ds_config)
        self._writer = self._engine.checkpoint_engine = _CheckpointFiles()

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*arguments, **keywords)

    # Training

    def begin_update(self) -> float:
        """Sets the learning rate of the update that begins, and returns it."""
        lr = learning_rate(self.config.optimizer, self.updates, self.total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds a micro-batch's gradients, the mean over ranks; `last` of the update? Collective."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> tuple[bool, float]:
        """Ends the update: takes the step unless a gradient is not finite on any rank. Collective.

        Returns whether the step was taken, and the gradient norm before clipping.
        """
        applied, norm = self._step()
        self.updates += 1
        self.skipped_updates += not applied
        return applied, norm

    def _step(self) -> tuple[bool, float]:
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

    def report_skipped(self, items: Sequence[Any]) -> None:
        """Saves the batch of a skipped update, dataclasses or token tuples, and raises RunError when there were too
        many."""
        where = "not saved, as no directory was given"
        if self.failed_batches_dir is not None:
            path = self.failed_batches_dir / f"skipped-update-{self.updates:06d}.jsonl"
            where = f"saved to {path}"
            if self.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                values = [item if isinstance(item, tuple) else asdict(item) for item in items]
                path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
        if self.skipped_updates > self.config.max_skipped_updates:
            raise RunError(
                f"update {self.updates} had a loss or gradient that is not finite; {self.skipped_updates} updates were "
                f"skipped so far and learner.max_skipped_updates allows {self.config.max_skipped_updates}. Its batch "
                f"was {where}. Lower learner.optimizer.lr and resume from the last checkpoint"
            )

    def zero_grad(self) -> None:
        self._engine.zero_grad()

    # Weights

    def gather_state(self) -> dict[str, Tensor]:
        """Copies of the model's weights on rank 0, on the CPU, under its own names; elsewhere empty. Collective.

        Tied weights appear once, under their first name; under ZeRO-3 the ranks gather a part at a time.
        """
        state: dict[str, Tensor] = {}
        for part in in_parts(unique_tensors(self.model), _GATHER_NUMEL):
            with gathered(list(part.values())):
                if self.rank == 0:
                    state |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in part.items()}
        return state

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the model as a Hugging Face directory, whole or not at all. Collective. Raises RunError."""
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
        state = self.gather_state()
        if self.rank == 0:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                write_model(directory, self.model, state, self._tokenizer_source)
            except (OSError, RuntimeError) as error:
                return error
        return None

    def save(self, directory: str | Path, client_state: dict[str, Any] | None = None, *, beside: Beside = None) -> None:
        """Writes engine state and a model directory below `directory`, a stage of `checkpoints.begin`. Collective.

        `beside` writes what else belongs to the engine state into the directory it is given, on rank 0.
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
                if beside is not None:
                    beside(directory / ENGINE)
                (directory / ENGINE / LAYOUT).write_text(json.dumps(self._layout()), encoding="utf-8")
            except OSError as error:
                failure = error
        agree(failure, what)

    def load(self, checkpoint: str | Path, *, beside: Beside = None) -> dict[str, Any]:
        """Takes over the state that `save` wrote below `checkpoint`; returns its `client_state`. Collective.

        `beside` reads what `save`'s wrote.

        Files that hold anything but tensors, plain values and what DeepSpeed itself puts there are not read. Another
        number of ranks may have written it: rank 0 then converts it, one file at a time, into a temporary directory
        beside it. Rank r goes on from the random state of rank r; where there was none, it is seeded by
        `seed_of_new_rank`. Raises UsageError when it was written with another ZeRO stage or dtype, or cannot be read.
        """
        directory = Path(checkpoint) / ENGINE
        try:
            written = json.loads((directory / LAYOUT).read_text(encoding="utf-8"))
            other_ranks = only_world_size_differs(written, self._layout())
            if written != self._layout() and not other_ranks:
                raise UsageError(
                    f"checkpoint {checkpoint} was written with {_describe(written)}, this run has "
                    f"{_describe(self._layout())}; resume with the settings it was written with, or start a new run "
                    f"from its model directory {Path(checkpoint) / MODEL}"
                )
            if beside is not None:
                beside(directory)
            if other_ranks and self.config.zero_stage > 0:
                path, state = load_converted(
                    Path(checkpoint),
                    convert=lambda stage: _convert(directory, stage),
                    load=lambda stage: self._load_engine(stage, universal=True),
                )
            else:
                path, state = self._load_engine(directory)
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
        if self.rank < len(own["random_states"]):
            self._set_random_state(own["random_states"][self.rank])
        else:
            torch.manual_seed(seed_of_new_rank(own["random_states"][0]["cpu"], self.rank))
        return state["client"]

    def _load_engine(self, directory: Path, *, universal: bool = False) -> tuple[str | None, dict[str, Any]]:
        settings = self._engine._config  # read once, when the engine is made, from a setting of this name
        settings.load_universal_checkpoint = universal
        with _linked(directory) as (link,), weights_only(_SAVED_CLASSES):
            loaded: tuple[str | None, dict[str, Any]] = self._engine.load_checkpoint(str(link), tag=ENGINE_TAG)
        if universal:
            # ZeRO-3 lets its groups of parameters share one count of steps, which each of them would advance, and a
            # fused optimizer wants it where the parameters are.
            for parameter, state in self._engine.optimizer.state.items():
                state["step"] = state["step"].to(parameter.device, copy=True)
        return loaded

    def destroy(self) -> None:
        """Frees the engine; the process group stays."""
        self._engine.destroy()

    def close(self) -> None:
        """Leaves the process group."""
        self.destroy()
        deepspeed.comm.destroy_process_group()

    def _layout(self) -> dict[str, Any]:
        return {"ranks": self.ranks, "zero_stage": self.config.zero_stage, "dtype": self.config.dtype}

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def frozen(module: nn.Module, config: TrainerConfig, device: torch.device) -> Any:
    """`module` for forward passes without gradient: on `device`, or under ZeRO-3 partitioned. Collective."""
    module = module.requires_grad_(False)
    if config.zero_stage < 3:
        return module.to(device)
    ds_config = reference_config(config, sum(parameter.numel() for parameter in module.parameters()))
    return deepspeed.initialize(model=module, config=ds_config)[0]


@contextmanager
def gathered(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within it those of `parameters` that ZeRO-3 has partitioned are whole on every rank. Collective."""
    partitioned = [tensor for tensor in parameters if hasattr(tensor, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield


def _convert(directory: Path, stage: Path) -> None:
    """Writes the engine state in `directory` to `stage` in DeepSpeed's universal form."""
    with _linked(directory, stage) as (source, target), open(os.devnull, "w") as silence:
        arguments = Namespace(
            input_folder=str(source / ENGINE_TAG), output_folder=str(target / ENGINE_TAG), num_extract_workers=1,
            num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
        )  # fmt: skip
        with redirect_stdout(silence), redirect_stderr(silence), weights_only(_SAVED_CLASSES):
            ds_to_universal.main(arguments)


@contextmanager
def _linked(*directories: Path) -> Iterator[list[Path]]:
    """Other names of `directories`: DeepSpeed takes paths for patterns, and no character of these means anything."""
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, str(number)) for number in range(len(directories))]
        for link, directory in zip(links, directories, strict=True):
            link.symlink_to(directory.resolve(), target_is_directory=True)
        yield links


def _free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def _describe(layout: dict[str, Any]) -> str:
    return ", ".join(f"learner.{name} {value}" for name, value in layout.items())
