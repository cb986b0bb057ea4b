"""Build the vLLM engine that a generator's settings describe. Imports vLLM on call.

Must not know requests, versions or publications.
"""

import os
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.imports import gc_paused
from actors.generation.config import MAX_REQUESTS, GeneratorConfig, GeneratorSpec, adapter_problem
from actors.generation.lora.arguments import engine_arguments, not_applied
from actors.hub import require_safetensors

MAX_BATCHED_TOKENS = 8192
"""Least `max_num_batched_tokens` of an engine step, to prefill a running batch in few steps after a weight sync."""


def build(spec: GeneratorSpec, **more: Any) -> Any:
    """Return the engine of `spec`, ready to step. `more`: arguments of vLLM beyond those of `spec`.

    Raises UsageError if its directories or settings do not fit an engine.
    """
    for directory in (spec.model_dir, _reference_dir(spec)):
        if not (Path(directory) / "config.json").is_file():
            raise UsageError(f"{directory} is not a Hugging Face model directory: it has no config.json")
        require_safetensors(directory)
    with gc_paused():
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

    config, cpu = spec.generators, current_platform.is_cpu()
    options = _options(spec, cpu=cpu) | more
    try:
        arguments = EngineArgs(
            model=str(spec.model_dir),
            tokenizer=spec.tokenizer,
            trust_remote_code=False,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            tensor_parallel_size=config.tensor_parallel_size,
            seed=spec.engine_seed,
            logprobs_mode="processed_logprobs",  # of the sampling distribution, temperature included
            scheduling_policy="priority",
            async_scheduling=config.async_scheduling,
            worker_extension_cls="actors.generation.weight_receiver.WeightReceiver",
            disable_log_stats=True,
            # Cached prefixes change the shapes of computations, and with them the rounding.
            enable_prefix_caching=not spec.deterministic,
            **options,
        )
        engine = LLMEngine.from_engine_args(arguments)
    except Exception as error:  # AssertionError: others on the GPU gave memory back meanwhile
        if not (config.engine or isinstance(error, ValueError | AssertionError)):
            raise
        if spec.adapter is not None and "LoRA" in str(error):
            raise UsageError(not_applied(str(spec.model_dir), str(error))) from error
        raise UsageError(refusal(str(spec.model_dir), config, error, cpu=cpu)) from error
    if config.async_scheduling != engine.vllm_config.scheduler_config.async_scheduling:
        raise UsageError("generators.async_scheduling is true, and vLLM has it for engines on GPUs only; leave it out")
    return engine


def _options(spec: GeneratorSpec, *, cpu: bool) -> dict[str, Any]:
    """Return the arguments that depend on platform, opponent and model files, then those of `generators.engine`."""
    config, opponent = spec.generators, spec.opponent
    drawn = spec.sampling.completions_per_prompt
    drawn += opponent.completions_per_prompt if opponent is not None and opponent.sampled else 0
    requests = min(MAX_REQUESTS, config.max_running_prompts * drawn + 1)
    fewest = max(MAX_BATCHED_TOKENS, config.max_model_len, requests)
    options: dict[str, Any] = {"max_num_seqs": requests, "max_num_batched_tokens": fewest}
    if cpu:
        options |= {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mib << 20}
    else:
        options |= {"enforce_eager": config.enforce_eager, "gpu_memory_utilization": config.gpu_memory_share}
    options |= _mixture_options(spec) | _adapter_options(spec, gpu=not cpu) | _load_options(spec)
    if spec.head_dtype != "model":
        options["hf_overrides"] = options.get("hf_overrides", {}) | {"head_dtype": spec.head_dtype}
    if config.tensor_parallel_size > 1:
        options["distributed_executor_backend"] = "mp"
    return options | config.engine


def _load_options(spec: GeneratorSpec) -> dict[str, Any]:
    """Return the arguments that make the engine load exactly the tensors that the learner loads."""
    from actors.generation.startup.known_tensors import LOAD_FORMAT, UNUSED
    from actors.generation.weights import REFERENCE_PREFIX, outline_once

    unused = outline_once(str(spec.model_dir)).unused
    if spec.engine_beta is not None:
        unused = [*unused, *(REFERENCE_PREFIX + name for name in outline_once(_reference_dir(spec)).unused)]
    if not unused:
        return {"load_format": "safetensors"}
    return {"load_format": LOAD_FORMAT, "model_loader_extra_config": {UNUSED: unused}}


def _mixture_options(spec: GeneratorSpec) -> dict[str, Any]:
    if spec.engine_beta is None:
        return {}
    from actors.generation import mixture

    # The mixture's logits processor supports only vLLM's first model runner, the only one on CPU.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    mixture.register()
    return mixture.engine_arguments(
        str(spec.model_dir), _reference_dir(spec), skip_reference=True, published_reference=spec.publishes_average
    )


def _adapter_options(spec: GeneratorSpec, *, gpu: bool) -> dict[str, Any]:
    if spec.adapter is None:
        return {}
    if problem := adapter_problem(spec.generators.dtype, gpu=gpu):
        raise UsageError(problem)
    return engine_arguments(spec.adapter, expected_adapter(spec))


def expected_adapter(spec: GeneratorSpec) -> dict[str, Any]:
    """Return shape and dtype of each tensor in publications of an adapter, by peft's name."""
    from actors.generation.weights import expected_tensors

    return expected_tensors(spec.model_dir, adapter=spec.adapter)


def _reference_dir(spec: GeneratorSpec) -> str:
    return str(spec.reference_dir or spec.model_dir)


def refusal(model_dir: str, config: GeneratorConfig, error: Exception, *, cpu: bool) -> str:
    """Say why vLLM did not start, with the setting that decides its memory on this platform."""
    memory = f"kv_cache_mib {config.kv_cache_mib}" if cpu else f"gpu_memory_utilization {config.gpu_memory_share:g}"
    passed = f", generators.engine {', '.join(config.engine)}" if config.engine else ""
    shared = "" if cpu else "; if other processes hold the GPU's memory (`nvidia-smi`), end them or lower the last"
    return (
        f"vLLM refuses {model_dir} with generators.max_model_len {config.max_model_len}, dtype {config.dtype}, "
        f"{memory}{passed}: {error}; change the setting that it names{shared}"
    )
