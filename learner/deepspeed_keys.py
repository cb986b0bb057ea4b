"""Keys of DeepSpeed's configuration that `learner.deepspeed` may set, and the reasons against the others.

Listed here, because DeepSpeed takes seconds to import, and ignores a key that it does not know; a test compares the
list with DeepSpeed's own. Must not import torch or deepspeed.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from actors.foreign.passed_on import check_name, refuse_secrets

ZERO, OFFLOAD = "zero_optimization", "zero_optimization.offload_optimizer"
_DTYPE = "it follows learner.dtype; set that"
_BATCH = "it follows learner.micro_batch_tokens and the size of a batch; set those"
_FLOAT32 = "gradients accumulate in float32 for every learner.dtype; leave it out"
_REDUCTION = "it follows learner.reduce_dtype; set that"
_OPTIMIZER = "it follows learner.optimizer; set that"
_CHECKPOINTS = "Offbeat writes and reads checkpoints itself; set checkpoints or learner.zero_stage instead"
_TRAINING = "it changes what a step trains on, or how; leave it out"
_PARALLEL = "ranks hold whole models or ZeRO's parts of one; set learner.zero_stage, or leave it out"
_OFFLOADING = "learner.offload_optimizer keeps the optimizer's state in host memory, with torch's AdamW; set that alone"

_KEYS = """
aio comms_logger csv_monitor disable_python_gc dump_state flops_profiler gradient_predivide_factor
log_level memory_breakdown prescale_gradients steps_per_print tensorboard timers wall_clock_breakdown
zero_optimization
"""
_ZERO_KEYS = """
allgather_bucket_size allgather_partitions contiguous_gradients enable_sanity_checks ignore_unused_parameters
log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param overlap_comm parameter_alignment
reduce_bucket_size reduce_scatter round_robin_gradients stage3_allgather_sequential stage3_max_live_parameters
stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold
stage3_param_persistence_threshold stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
use_multi_rank_bucket_allreduce zero_hpz_partition_size
"""
ALLOWED = frozenset(_KEYS.split())
"""Keys at the top that a run may set."""
ALLOWED_BELOW: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        ZERO: frozenset(_ZERO_KEYS.split()),
        OFFLOAD: frozenset({"pin_memory"}),
    }
)
"""Keys of sections that DeepSpeed checks only when it starts."""
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "train_batch_size": _BATCH,
        "train_micro_batch_size_per_gpu": _BATCH,
        "gradient_accumulation_steps": _BATCH,
        "managed_gradient_accumulation": _BATCH,
        "dataloader_drop_last": _BATCH,
        "gradient_clipping": "it follows learner.optimizer.max_grad_norm; set that",
        "bf16": _DTYPE,
        "bfloat16": _DTYPE,
        "fp16": _DTYPE,
        "amp": _DTYPE,
        "torch_autocast": _DTYPE,
        "data_types": _FLOAT32,
        "communication_data_type": _REDUCTION,
        "seq_parallel_communication_data_type": _PARALLEL,
        "disable_allgather": "DeepSpeed reads it nowhere; leave it out",
        "gradient_allreduce_op": "gradients are averaged over ranks; leave it out",
        "sparse_gradients": _TRAINING,
        "optimizer": _OPTIMIZER,
        "scheduler": "it follows learner.optimizer.schedule; set that",
        "zero_allow_untested_optimizer": _OPTIMIZER,
        "zero_force_ds_cpu_optimizer": _OPTIMIZER,
        "activation_checkpointing": "it follows learner.gradient_checkpointing; set that",
        "checkpoint": _CHECKPOINTS,
        "datastates_ckpt": _CHECKPOINTS,
        "nebula": _CHECKPOINTS,
        "pipeline": _PARALLEL,
        "tensor_parallel": _PARALLEL,
        "expert_parallel": _PARALLEL,
        "sequence_parallel_size": "the learner splits sequences itself; set learner.sequence_parallel",
        "use_data_before_expert_parallelism": _PARALLEL,
        "elasticity": "a resumed run takes another learner.ranks; set that",
        "autotuning": _TRAINING,
        "compile": _TRAINING,
        "compression_training": _TRAINING,
        "curriculum_learning": _TRAINING,
        "data_efficiency": _TRAINING,
        "eigenvalue": _TRAINING,
        "hybrid_engine": _TRAINING,
        "progressive_layer_drop": _TRAINING,
        "quantize_training": _TRAINING,
        "weight_quantization": _TRAINING,
        "wandb": "Offbeat sends figures nowhere else; leave it out",
        "comet": "Offbeat sends figures nowhere else; leave it out",
        "vocabulary_size": "it is the model's own; leave it out",
    }
    | {
        f"{ZERO}.{name}": reason
        for name, reason in {
            "stage": "it follows learner.zero_stage; set that",
            "cpu_offload": _OFFLOADING,
            "cpu_offload_param": "write offload_param",
            "cpu_offload_use_pin_memory": "write offload_optimizer.pin_memory",
            "compute_grad_norm": "a step needs the norm of its gradients; leave it out",
            "elastic_checkpoint": _CHECKPOINTS,
            "gather_16bit_weights_on_model_save": _CHECKPOINTS,
            "stage3_gather_16bit_weights_on_model_save": _CHECKPOINTS,
            "stage3_gather_fp16_weights_on_model_save": _CHECKPOINTS,
            "load_from_fp32_weights": _CHECKPOINTS,
            "pipeline_loading_checkpoint": _CHECKPOINTS,
            "leaf_module": _TRAINING,
            "legacy_stage1": _TRAINING,
            "override_module_apply": _TRAINING,
            "save_muon_momentum_buffer_in_memory": _OPTIMIZER,
            "zenflow": _TRAINING,
            "zero_quantized_gradients": _REDUCTION,
            "zero_quantized_nontrainable_weights": _DTYPE,
            "zero_quantized_weights": _DTYPE,
        }.items()
    }
    | {
        f"{OFFLOAD}.{name}": _OFFLOADING
        for name in (
            "device",
            "buffer_count",
            "cpuadam_cores_perc",
            "fast_init",
            "nvme_path",
            "pipeline_read",
            "pipeline_write",
            "ratio",
            "super_offload",
        )
    }
)
"""Dotted keys that a run may not set, and why."""


def checked_deepspeed(given: Any) -> Any:
    """Return what is merged into DeepSpeed's configuration. Raises ValueError that names the first key which is refused
    or unknown."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    for above, section in (("", given), *_sections(given)):
        own = {key.removeprefix(above): reason for key, reason in REFUSED.items() if key.startswith(above)}
        allowed = ALLOWED_BELOW[above.removesuffix(".")] if above else ALLOWED
        for name in section:
            try:
                check_name(name, allowed, own, f"DeepSpeed's keys{f' of {above[:-1]}' if above else ''}")
            except ValueError as error:
                raise ValueError(f"{above}{error}") from None
    refuse_secrets(given, "leave it out")
    return dict(given)


def _sections(given: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections whose keys are listed, each with its name and a dot. Raises ValueError for another value."""
    for path in ALLOWED_BELOW:
        section: Any = given
        for part in path.split("."):
            section = section.get(part, {}) if isinstance(section, Mapping) else {}
        if isinstance(section, Mapping):
            yield f"{path}.", section
        else:
            raise ValueError(
                f"{path} is {section!r}; allowed is a section of `key: value` lines; write its keys below it"
            )
