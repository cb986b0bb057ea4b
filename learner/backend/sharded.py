"""One model and its optimizer under DeepSpeed ZeRO 0-3, on the ranks of a process group.

Must not depend on losses, data, references, policy versions or Ray. Methods marked collective must be entered by all
ranks with equal arguments.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.errors import RunError, UsageError, writing
from actors.files import replace_directory, write_json_lines
from learner.backend.average import AveragePolicy, AverageWeights, load_average
from learner.backend.checkpoint_layout import Form, Layout, layout_of
from learner.backend.checkpoints import ENGINE, LAYOUT, MODEL
from learner.backend.collective import MEETING, agree, error_of, gather
from learner.backend.deepspeed_config import deepspeed_config, learning_rate, naming_the_section, reference_config
from learner.backend.engine_state import ENGINE_TAG, SAVED_CLASSES, CheckpointFiles, convert
from learner.backend.models import checkpoint_activations, rehearse, writer_of
from learner.backend.universal import (
    described,
    linked,
    load_converted,
    only_world_size_differs,
    seed_of_new_rank,
    weights_only,
)
from learner.config import TrainerConfig
from learner.tensors.offload import keep_on_host


def join_process_group(config: TrainerConfig) -> torch.device:
    """Join the process group given by torch's environment variables, and return this rank's device.

    Without RANK this process forms a group alone. Raises RunError if `gpus_per_rank` and DeepSpeed's device disagree.
    """
    on_gpu = config.gpus_per_rank > 0
    if on_gpu != (get_accelerator().device_name() == "cuda"):
        raise RunError(
            f"learner.gpus_per_rank is {config.gpus_per_rank:g} but DeepSpeed chose the device "
            f"{get_accelerator().device_name()!r}; set gpus_per_rank to match this machine, or DS_ACCELERATOR to "
            f"{'cuda' if on_gpu else 'cpu'} before the process starts"
        )
    deepspeed.utils.logger.setLevel(logging.WARNING)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it, even if somebody else made the group
    if not dist.is_initialized():
        alone = {} if "RANK" in os.environ else {"rank": 0, "world_size": 1}
        # Used for inference only; building it needs a compiler and leaves shared memory behind.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if on_gpu else "gloo"
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, init_method=MEETING, **alone)
    if not on_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


class ShardedModel:
    """A model in training. Construction is collective.

    Args:
        module: what a step optimises, and what a call of this object runs; its `model` is written to disk.
        config: ranks, ZeRO, precision and optimizer.
        total_updates: length of the learning-rate schedule.
        device: this rank's, from `join_process_group`.
        tokenizer_source: model directory whose tokenizer files are copied beside written weights.
        failed_batches_dir: receives the batches of skipped updates; None keeps none.
        average: moving average of the weights, saved and loaded with the engine state.
    """

    def __init__(
        self,
        module: Any,
        config: TrainerConfig,
        total_updates: int,
        device: torch.device,
        tokenizer_source: Path,
        failed_batches_dir: str | Path | None = None,
        average: AveragePolicy | None = None,
    ) -> None:
        self.model, self.config, self.total_updates, self.device = module.model, config, total_updates, device
        self.failed_batches_dir = None if failed_batches_dir is None else Path(failed_batches_dir)
        self.updates, self.skipped_updates = 0, 0
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._tokenizer_source, self._average = tokenizer_source, average
        self._averages: dict[str, AverageWeights] = {}
        self._form: Form = "merged" if config.lora is None else config.lora.save
        self._layouts: dict[Form, Layout] = {}
        if self.rank == 0:
            rehearse(self.model, tokenizer_source, writer_of(self.model, self._form))
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        ds_config = deepspeed_config(config, sum(map(torch.Tensor.numel, trained)))
        with naming_the_section(config):
            _distribute(module, config, ds_config, device)
            self._engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, config=ds_config)
        self._writer = self._engine.checkpoint_engine = CheckpointFiles(module if config.lora else None)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the module's forward pass."""
        return self._engine(*arguments, **keywords)

    # Training

    def averaged(self, name: str) -> AverageWeights:
        """Return an average of the weights, saved and loaded with the engine state as `name`. Starts as the weights."""
        self._averages[name] = AverageWeights(self.model, self.device)
        return self._averages[name]

    def begin_update(self) -> float:
        """Set and return the learning rate of the next update."""
        lr = learning_rate(self.config.optimizer, self.updates, self.total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch, averaged over ranks. `last`: it ends the update. Collective."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> tuple[bool, float]:
        """Take the step unless a gradient is not finite on any rank. Collective.

        Returns whether the step was taken, and the gradient norm before clipping.
        """
        applied, norm = self._step()
        self.updates += 1
        self.skipped_updates += not applied
        return applied, norm

    def _step(self) -> tuple[bool, float]:
        if self.config.zero_stage == 0:
            # Without ZeRO, DeepSpeed does not check gradients. They are already reduced, so all ranks decide alike.
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
            # With an offloaded optimizer DeepSpeed keeps the gradients of a skipped step, and the next backward pass
            # would add to them.
            kept = getattr(self._engine.optimizer, "averaged_gradients", {})
            kept.update(dict.fromkeys(kept))
        return applied, float(self._engine.get_global_grad_norm())

    def report_skipped(self, items: Sequence[Any]) -> None:
        """Save the batch of a skipped update, dataclasses or token tuples.

        Raises RunError if more than `max_skipped_updates` were skipped.
        """
        where = "not saved, because no directory was given"
        if self.failed_batches_dir is not None:
            path = self.failed_batches_dir / f"skipped-update-{self.updates:06d}.jsonl"
            where = f"saved to {path}"
            if self.rank == 0:
                with writing(path, "then use --resume"):
                    write_json_lines(path, (item if isinstance(item, tuple) else asdict(item) for item in items))
        if self.skipped_updates > self.config.max_skipped_updates:
            raise RunError(
                f"update {self.updates} was skipped for a non-finite loss or gradient; {self.skipped_updates} updates "
                f"were skipped so far and learner.max_skipped_updates allows {self.config.max_skipped_updates}. Its "
                f"batch was {where}. Lower learner.optimizer.lr and resume from the last checkpoint"
            )

    # Weights

    def layout(self, form: Form) -> Layout:
        """Return the layout of the model in one of its forms, made once."""
        if form not in self._layouts:
            self._layouts[form] = layout_of(self.model, form)
        return self._layouts[form]

    def gather(self, parts: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Yield `parts` of the model's tensors, each whole while it is at work; on rank 0 only. Collective.

        They are the weights in training, on rank 0's device, not a copy. Every rank must exhaust the iterator, whatever
        fails: under ZeRO-3 all ranks take part in each.
        """
        for part in parts:
            with gathered(list(part.values())):
                if self.rank == 0:
                    yield {name: tensor.detach() for name, tensor in part.items()}

    def gather_state(self) -> dict[str, Tensor]:
        """Copy what is saved to rank 0's CPU, under the model's own names; empty on other ranks. Collective.

        Tied weights appear once, under their first name. Adapters alone are under peft's.
        """
        saved = self.layout(self._form)
        parts = map(saved.held, self.gather(saved.parts()))
        return {name: tensor.to("cpu", copy=True) for part in parts for name, tensor in part.items()}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model as a Hugging Face directory, whole or not at all. Collective. Raises RunError."""
        final = Path(directory)
        stage = final.with_name(f".tmp-{final.name}")
        state = self.gather_state()

        def write() -> None:
            self._write_model(stage, state)
            replace_directory(stage, final)

        agree(error_of(write) if self.rank == 0 else None, f"the model could not be written to {final}")

    def _write_model(self, directory: Path, state: dict[str, Tensor]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        writer_of(self.model, self._form)(directory, self.model, state, self._tokenizer_source)

    def save(self, directory: str | Path, client_state: dict[str, Any] | None = None) -> None:
        """Write engine state and a model directory below `directory`, a stage of `checkpoints.begin`. Collective.

        Raises RunError on every rank if any rank cannot write.
        """
        directory = Path(directory)
        engine, what = directory / ENGINE, f"the checkpoint could not be written to {directory}"
        agree(error_of(lambda: (engine / ENGINE_TAG).mkdir(parents=True, exist_ok=True)), what)
        random_states = gather(self._random_state())
        own = {"updates": self.updates, "skipped_updates": self.skipped_updates, "random_states": random_states}
        self._writer.error = None
        try:
            self._engine.save_checkpoint(
                str(engine),
                tag=ENGINE_TAG,
                client_state={"learner": own, "client": client_state or {}},
                save_latest=False,
                exclude_frozen_parameters=self.config.lora is not None,
            )
        except OSError as error:
            # Only the script that DeepSpeed adds on rank 0 raises here, just before the last barrier.
            self._writer.error = error
            dist.barrier()
        state = self.gather_state()
        averages = {name: average.whole() for name, average in self._averages.items()}

        def write() -> None:
            self._write_model(directory / MODEL, state)
            if self._average is not None:
                self._average.save(engine)
            for name, tensors in averages.items():
                save_file(tensors, engine / f"{name}.safetensors")
            (engine / LAYOUT).write_text(json.dumps(self._layout()), encoding="utf-8")

        agree((error_of(write) if self.rank == 0 else None) or self._writer.error, what)

    def load(self, checkpoint: str | Path) -> dict[str, Any]:
        """Restore the state that `save` wrote below `checkpoint`, and return its `client_state`. Collective.

        If a different number of ranks wrote it, rank 0 converts it, one file at a time, in a temporary directory beside
        it. Rank r restores the random state of rank r; if there was no such rank, `seed_of_new_rank` seeds it. Raises
        UsageError if ZeRO stage or dtype differ, or a file is unreadable or holds anything but DeepSpeed's state.
        """
        directory = Path(checkpoint) / ENGINE
        try:
            written = json.loads((directory / LAYOUT).read_text(encoding="utf-8"))
            other_ranks = only_world_size_differs(written, self._layout())
            if written != self._layout() and not other_ranks:
                raise UsageError(
                    f"checkpoint {checkpoint} was written with {described(written)}, this run has "
                    f"{described(self._layout())}; resume with the settings it was written with, or start a new run "
                    f"from its model directory {Path(checkpoint) / MODEL}"
                )
            if self._average is not None:
                self._average.load(directory)
            for name, average in self._averages.items():
                average.take(load_average(directory, name))
            if other_ranks and self.config.zero_stage > 0:
                path, state = load_converted(
                    Path(checkpoint),
                    convert=lambda stage: convert(directory, stage),
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
        settings = self._engine._config  # DeepSpeed reads its setting of this name at construction only
        settings.load_universal_checkpoint = universal
        with linked(directory) as (link,), weights_only(SAVED_CLASSES):
            strict = self.config.lora is None  # frozen weights are not saved
            loaded = self._engine.load_checkpoint(str(link), tag=ENGINE_TAG, load_module_strict=strict)
        if universal:
            # Under ZeRO-3 all parameter groups get one shared step counter, which each of them would advance, and a
            # fused optimizer needs it on the parameters' device.
            for parameter, state in self._engine.optimizer.state.items():
                state["step"] = state["step"].to(parameter.device, copy=True)
        return loaded

    def destroy(self) -> None:
        """Free the engine but keep the process group."""
        self._engine.destroy()

    def close(self) -> None:
        """Leave the process group."""
        self.destroy()
        deepspeed.comm.destroy_process_group()

    def _layout(self) -> dict[str, Any]:
        names: Any = {"zero_stage": True, "dtype": True, "lora": {"rank", "targets"}}
        return {"ranks": self.ranks, **self.config.model_dump(include=names, exclude_none=True)}

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def frozen(module: nn.Module, config: TrainerConfig, device: torch.device, *, offload: bool = False) -> Any:
    """Prepare `module` for passes without gradient; with `offload` its weights stay in host memory. Collective."""
    module = module.requires_grad_(False)
    ds_config = reference_config(config, sum(parameter.numel() for parameter in module.parameters()), offload=offload)
    with naming_the_section(config):
        _distribute(module, config, ds_config, device)
        if config.zero_stage == 3:
            return deepspeed.initialize(model=module, config=ds_config)[0]
    return keep_on_host(module, device) if offload else module


def _distribute(module: nn.Module, config: TrainerConfig, ds_config: dict[str, Any], device: torch.device) -> None:
    """Bring `module` to this rank's device with the values that rank 0 has. Collective.

    Under ZeRO-3 one weight at a time, of which each rank keeps its part: the model is never whole on a device.
    """
    if config.zero_stage == 3:
        deepspeed.zero.Init(module=module, config_dict_or_path=ds_config)
    else:
        module.to(device)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)
    shared = [*(module.parameters() if config.zero_stage < 3 else ()), *module.buffers()]
    for tensor in shared if dist.get_world_size() > 1 else ():
        values = tensor.detach().contiguous()
        dist.broadcast(values.view(-1).view(torch.uint8), 0)
        if values.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(values)


@contextmanager
def gathered(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gather `parameters` that ZeRO-3 has sharded on every rank, within the context. Collective."""
    partitioned = [tensor for tensor in parameters if hasattr(tensor, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        yield
