"""DeepSpeed's configuration as plain dictionaries. Pure; imports neither torch nor deepspeed."""

from __future__ import annotations

from typing import Any

from learner.config import TrainerConfig

BUCKET = 500_000_000
"""Gradients or weights that are communicated together, at most."""


def deepspeed_config(config: TrainerConfig, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a policy of `parameters` elements.

    The learning rate is set before every step and micro-batches are counted here, so DeepSpeed's scheduler and its
    accumulation counter stay unused. Gradients are reduced and accumulated in float32 whatever the weights are.
    """
    optimizer = config.optimizer
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": min(parameters, BUCKET),
        "allgather_bucket_size": min(parameters, BUCKET),
        # Small tensors stay whole on every rank; small is relative to the model.
        "stage3_param_persistence_threshold": min(100_000, parameters // 100),
    }
    if config.offload_optimizer and config.zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
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


def reference_config(config: TrainerConfig, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration for the frozen reference under ZeRO-3: partitioned like the policy, no optimizer."""
    policy = deepspeed_config(config, parameters)
    return {key: policy[key] for key in ("train_micro_batch_size_per_gpu", "steps_per_print", "bf16")} | {
        "zero_optimization": {key: value for key, value in policy["zero_optimization"].items() if "offload" not in key}
    }
