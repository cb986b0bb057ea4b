"""DeepSpeed's configuration, and the learning rate that the trainer sets itself. Must not import torch or deepspeed."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from actors.errors import UsageError
from actors.foreign.text import many
from learner.config import OptimizerConfig, TrainerConfig

BUCKET = 500_000_000
"""Most elements of gradients or weights in one collective call."""


def deepspeed_config(config: TrainerConfig, parameters: int) -> dict[str, Any]:
    """Build DeepSpeed's configuration for a policy of `parameters` elements.

    DeepSpeed's scheduler and accumulation counter stay unused: `ShardedModel` sets the learning rate before each step
    and counts micro-batches. Gradients accumulate in float32 for every dtype of the weights. The section
    `learner.deepspeed` comes last.
    """
    optimizer, even = config.optimizer, parameters + parameters % 2  # DeepSpeed refuses odd sizes
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": min(even, BUCKET),
        "allgather_bucket_size": min(even, BUCKET),
        # Tensors below this size are not sharded; what counts as small depends on the model.
        "stage3_param_persistence_threshold": min(100_000, parameters // 100),
    }
    if config.offload_optimizer and config.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload_weights:
        zero["offload_param"] = _in_host_memory(config)
    own = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": {"float32": "fp32", "bfloat16": "bf16"}[config.reduce_dtype],
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "optimizer": {
            "type": "AdamW",
            "params": {
                # torch's fused kernel is as fast as DeepSpeed's own and needs no compiler.
                "torch_adam": True,
                "fused": True,
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
            },
        },
    }
    return _merged(own, config.deepspeed)


def bucket_elements(config: TrainerConfig, parameters: int) -> int:
    """Return the most elements of gradients that are reduced together."""
    return int(deepspeed_config(config, parameters)["zero_optimization"]["reduce_bucket_size"])


@contextmanager
def naming_the_section(config: TrainerConfig) -> Iterator[None]:
    """Raise UsageError that names `learner.deepspeed`, if that is set, when DeepSpeed refuses its configuration."""
    try:
        yield
    except Exception as error:  # DeepSpeed has no class of errors for what it refuses
        if not config.deepspeed:
            raise
        said = " ".join(str(error).split()).partition(" For further information")[0]  # pydantic's own pages
        raise UsageError(
            f"DeepSpeed does not start with learner.deepspeed ({', '.join(_leaves(config.deepspeed))}): {said}; "
            "correct the key that it names, or leave the section out"
        ) from error


def reference_config(config: TrainerConfig, parameters: int, *, offload: bool = False) -> dict[str, Any]:
    """Build the configuration of the frozen reference under ZeRO-3: sharded like the policy, no optimizer.

    With `offload` its parts are in host memory, page-locked on GPUs, until they are gathered.
    """
    policy = deepspeed_config(config, parameters)
    zero = {key: value for key, value in policy["zero_optimization"].items() if "offload" not in key}
    if offload:
        zero["offload_param"] = _in_host_memory(config)
    return {key: policy[key] for key in ("train_micro_batch_size_per_gpu", "steps_per_print", "bf16")} | {
        "zero_optimization": zero
    }


def _in_host_memory(config: TrainerConfig) -> dict[str, Any]:
    return {"device": "cpu", "pin_memory": config.gpus_per_rank > 0}


def learning_rate(config: OptimizerConfig, update: int, total_updates: int) -> float:
    """Return the learning rate of update `update`, counted from 0, of a run of `total_updates`.

    Warm-up rises linearly from above 0 and reaches the peak at update `warmup_updates`. Linear and cosine schedules
    then fall to 0 at update `schedule_updates`, or `total_updates` if that is unset, and stay there.
    """
    if update < config.warmup_updates:
        return config.lr * (update + 1) / (config.warmup_updates + 1)
    if config.schedule == "constant":
        return config.lr
    end = total_updates if config.schedule_updates is None else config.schedule_updates
    progress = min(1.0, (update - config.warmup_updates) / max(1, end - config.warmup_updates))
    if config.schedule == "linear":
        return config.lr * (1.0 - progress)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def schedule_notes(
    config: OptimizerConfig, total_updates: int, last: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Return what a user should know of the learning rates of a run of `total_updates`.

    `last` holds the recorded `lr` of the last update before a resume, and its number `update`, or `step`, from 1.
    """
    notes = []
    if total_updates <= config.warmup_updates:
        largest = learning_rate(config, total_updates - 1, total_updates)
        notes.append(
            f"warning: the warm-up of {many(config.warmup_updates, 'update')} is not over after all {total_updates}: "
            f"the learning rate ends at {largest:.3g} and never reaches {config.lr:g}; lower "
            "learner.optimizer.warmup_updates"
        )
    done, lr = int(last.get("update") or last.get("step") or 0), last.get("lr")
    if done >= total_updates:
        return notes  # no update is left that could learn with another rate
    if done and lr is not None and not math.isclose(lr, learning_rate(config, done - 1, total_updates), rel_tol=1e-6):
        following = learning_rate(config, done, total_updates)
        notes.append(
            f"warning: this resume changes the learning rates: update {done} had {lr:.3g}, and the next has "
            f"{following:.3g}, without a warm-up; to go on with the old schedule set "
            "learner.optimizer.schedule_updates to the number of updates that it was made for"
        )
    elif done and learning_rate(config, done, total_updates) == 0.0:
        notes.append(
            "warning: the learning rate is 0 from the next update on: the schedule is over; raise "
            "learner.optimizer.schedule_updates, or leave it unset"
        )
    return notes


def _merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `own` with the values of `given` added or in place of its own, section by section."""
    result = dict(own)
    for key, value in given.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _leaves(given: Mapping[str, Any]) -> list[str]:
    """List the values of `given`, as `dotted.key=value`."""
    found: list[str] = []
    for key, value in given.items():
        found += [f"{key}.{leaf}" for leaf in _leaves(value)] if isinstance(value, Mapping) else [f"{key}={value!r}"]
    return found
