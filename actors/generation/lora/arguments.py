"""Arguments for the one LoRA adapter of an engine: at its start, and with each request. Imports vLLM on call."""

from collections.abc import Iterable
from typing import Any, get_args

from actors.adapters.config import LoraConfig

ADAPTER_ID = 1
"""vLLM's number of the policy's adapter; 0 means no adapter."""
_NAME = "policy"
_NOWHERE = "/nonexistent/adapters come with weight syncs"
"""Path at which vLLM would look for files if it ever missed the adapter: it must fail then."""


def engine_arguments(lora: LoraConfig, published: Iterable[str]) -> dict[str, Any]:
    """Return the extra arguments of vLLM's `EngineArgs` for one adapter, on the layers of the `published` tensors."""
    from vllm.config.lora import MaxLoRARanks

    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank),
        "lora_dtype": "auto",  # that of the engine's weights
        # Without this, embedding and head get room for adapters that never come, and compute with it.
        "lora_target_modules": sorted({name.split(".")[-3] for name in published}),
    }


def adapter_request() -> Any:
    """Return the `LoRARequest` for requests that are sampled or scored with the adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=_NAME, lora_int_id=ADAPTER_ID, lora_path=_NOWHERE)


def not_applied(model_dir: str, reason: str) -> str:
    """Return an error text: vLLM cannot apply adapters to this model."""
    return (
        f"vLLM cannot apply adapters to {model_dir}: {reason.rstrip('.')}; set learner.lora.publish to merged, or name "
        "other layers in learner.lora.targets"
    )
