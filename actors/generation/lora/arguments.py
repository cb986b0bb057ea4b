"""What vLLM is told of an engine's one adapter when it is built, and with each request. Imports vLLM when asked."""

from collections.abc import Iterable
from typing import Any, get_args

from actors.adapters.config import LoraConfig

ADAPTER_ID = 1
"""vLLM's number of the policy's adapter; 0 is none."""
_NAME = "policy"
_NOWHERE = "/nonexistent/adapters come with weight syncs"
"""Where vLLM would look for files if it ever missed the adapter: it must fail then."""


def engine_arguments(lora: LoraConfig, published: Iterable[str]) -> dict[str, Any]:
    """Return the extra arguments with which vLLM's `EngineArgs` hold one adapter, for the layers of these tensors."""
    from vllm.config.lora import MaxLoRARanks

    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank),
        "lora_dtype": "auto",  # that of the engine's weights
        # Otherwise embedding and head get room for adapters that never come, and compute with it.
        "lora_target_modules": sorted({name.split(".")[-3] for name in published}),
    }


def adapter_request() -> Any:
    """Return what a request carries that is sampled or scored with the adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=_NAME, lora_int_id=ADAPTER_ID, lora_path=_NOWHERE)


def not_applied(model_dir: str, reason: str) -> str:
    """Return what is told of a model to which vLLM cannot apply adapters."""
    return (
        f"vLLM cannot apply adapters to {model_dir}: {reason.rstrip('.')}; set learner.lora.publish to merged, or name "
        "other layers in learner.lora.targets"
    )
