"""List the `EngineArgs` of vLLM that the section `generators.engine` may set, and the reasons to refuse the others.

vLLM's own list takes ten seconds to import; a test compares the two. Must not import vLLM.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from actors.foreign.passed_on import check_name, refuse_secrets

_BOOLEANS = """
disable_cascade_attn disable_custom_all_reduce disable_hybrid_kv_cache_manager enable_chunked_prefill
enable_flashinfer_autotune enable_layerwise_nvtx_tracing fail_on_environ_validation jit_monitor_verbose
long_prefill_token_threshold_adaptive numa_bind scheduler_reserve_full_isl use_fp64_gumbel use_tqdm_on_load
"""
_INTEGERS = """
optimization_level
block_size cpu_distributed_timeout_seconds distributed_timeout_seconds long_prefill_token_threshold
max_cudagraph_capture_size max_num_active_seqs max_num_batched_tokens max_num_scheduled_tokens num_gpu_blocks_override
prefix_cache_retention_interval prefix_match_unit safetensors_prefetch_block_size safetensors_prefetch_num_threads
"""
_NUMBERS = "watermark"
_TEXTS = """
attention_backend gdn_prefill_backend jit_monitor_mode kda_decode_backend kda_prefill_backend linear_backend
mamba_backend mamba_ssu_algorithm moe_backend performance_mode prefix_caching_hash_algo safetensors_load_strategy
sparse_indexer_topk_backend
"""
_LISTS = "cudagraph_capture_sizes numa_bind_cpus numa_bind_nodes"
_MAPPINGS = "attention_config compilation_config ir_op_priority kernel_config"
_WORDS: dict[str, tuple[tuple[type, ...], str]] = {
    "boolean": ((bool,), "true | false"),
    "integer": ((int,), "an integer"),
    "number": ((int, float), "a number"),
    "text": ((str,), "text"),
    "list": ((list, tuple), "a list"),
    "mapping": ((dict,), "a section of `key: value` lines"),
}
"""Types and description of the values of each kind of argument."""
ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        name: kind
        for kind, names in (
            ("boolean", _BOOLEANS),
            ("integer", _INTEGERS),
            ("number", _NUMBERS),
            ("text", _TEXTS),
            ("list", _LISTS),
            ("mapping", _MAPPINGS),
        )
        for name in names.split()
    }
)
"""Arguments that a run may set, and the kind of their values."""

_SETTINGS = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "dtype": "generators.dtype",
    "seed": "seed",
    "max_model_len": "generators.max_model_len",
    "max_num_seqs": "generators.max_running_prompts and sampling.completions_per_prompt",
    "tensor_parallel_size": "generators.tensor_parallel_size",
    "gpu_memory_utilization": "generators.gpu_memory_utilization",
    "kv_cache_memory_bytes": "generators.gpu_memory_utilization, or on CPU generators.kv_cache_mib",
    "enforce_eager": "generators.enforce_eager",
    "async_scheduling": "generators.async_scheduling",
    "log_level": "VLLM_LOGGING_LEVEL in generators.environment",
    "logging_config": "VLLM_LOGGING_CONFIG_PATH in generators.environment",
    "log_config_file": "VLLM_LOGGING_CONFIG_PATH in generators.environment",
    "weight_transfer_config": "publication.transport",
    "enable_prefix_caching": "deterministic, which turns it off",
}
"""Arguments that Offbeat sets, and the setting that decides each."""

_REASONS = {
    "the engine starts from the files of model.path as the learner does, with vLLM's own model and loader": """
        allow_deprecated_quantization code_revision config_format convert diffusion_config download_dir engram_config
        hf_config_path hf_overrides hf_token ignore_patterns load_format max_parallel_loading_workers
        model_class_overrides model_impl model_loader_extra_config model_weights pt_load_map_location revision runner
        skip_tokenizer_init tokenizer_mode tokenizer_revision trust_remote_code disable_sliding_window
    """,
    "it rounds differently from the learner, whose log-probs it must match; set generators.dtype": """
        enable_mamba_cache_stochastic_rounding kv_cache_dtype kv_cache_dtype_skip_layers mamba_cache_dtype
        mamba_cache_philox_rounds mamba_config mamba_ssm_cache_dtype replayssm_buffer_len use_replayssm
    """,
    "every layer must compute with the published weights to the bit, which a quantised one cannot; set "
    "generators.dtype": """
        quantization quantization_config
    """,
    "behaviour log-probs are of the sampling distribution itself; set sampling.temperature or the opponent instead": """
        enable_batch_sharded_sampling generation_config logits_processors logprobs_mode max_logprobs
        override_generation_config reasoning_config reasoning_parser reasoning_parser_plugin structured_outputs_config
        watermark_config
    """,
    "a draft's weights would stay behind at a weight sync; leave speculative decoding out": """
        per_request_spec_decode_metrics spec_method spec_model spec_tokens speculative_config
    """,
    "a weight sync happens between two steps of one scheduler, which Offbeat sets up; leave it out": """
        max_num_queued_reqs max_num_queued_tokens prefill_schedule_interval scheduler_cls
        scheduling_policy stream_interval worker_cls worker_extension_cls
    """,
    "a weight sync must reach every weight where the engine keeps it; leave it out": """
        cpu_offload_gb cpu_offload_params enable_cumem_allocator enable_nccl_comm_suspend enable_sleep_mode
        offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step
        sleep_mode_offload_cudagraph sleep_preserve_parameter_names
    """,
    "keys and values of old weights must end with a weight sync, and outside the engine's own cache they would not; "
    "leave it out": """
        ec_manager_config ec_transfer_config enable_mamba_shared_prefix_checkpoint kv_events_config
        kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill kv_transfer_config mamba_block_size
        mamba_cache_mode swa_bounded_replay
    """,
    "each generator is an engine of its own; set generators.count": """
        _api_process_count _api_process_rank data_parallel_address data_parallel_backend data_parallel_external_lb
        data_parallel_hybrid_lb data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port
        data_parallel_size data_parallel_size_local data_parallel_start_rank disable_nccl_for_dp_synchronization
        dp_sync_interval elastic_ep_max_dp_size enable_elastic_ep
    """,
    "workers of an engine share its tensors on one node; set generators.tensor_parallel_size to the GPUs of a node at "
    "most, and generators.count for more": """
        all2all_backend cp_kv_cache_interleave_size dbo_decode_token_threshold dbo_prefill_token_threshold
        dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size device_ids
        distributed_executor_backend enable_dbo enable_ep_weight_filter enable_eplb enable_expert_parallel
        enable_fault_tolerance enable_hc_sp enable_shm_tensor_arena eplb_config expert_placement_strategy
        fault_tolerance_config master_addr master_port nnodes node_rank pipeline_parallel_size
        prefill_context_parallel_size ray_workers_use_nsight ubatch_size
    """,
    "an engine applies the learner's adapter and no other: Offbeat sets it by learner.lora; leave it out": """
        default_mm_loras enable_lora enable_mixed_moe_lora_format enable_moe_shared_loras enable_tower_connector_lora
        fully_sharded_loras lora_dtype lora_target_modules max_cpu_loras max_lora_cls_labels max_lora_rank max_loras
        specialize_active_lora
    """,
    "prompts are texts alone; leave it out": """
        allowed_local_media_path allowed_media_domains disable_chunked_mm_input enable_mm_embeds
        enable_mm_processor_stats enable_prompt_embeds interleave_mm_strings language_model_only limit_mm_per_prompt
        media_io_kwargs
        mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
        mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode
        mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type mm_processor_device
        mm_processor_kwargs mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling video_pruning_method
        video_pruning_rate
    """,
    "Offbeat drives the engine itself and reads tokens alone, so that it has no effect; leave it out": """
        additional_config aggregate_engine_logging aux_output_config collect_detailed_traces cudagraph_metrics
        custom_histogram_buckets disable_log_stats enable_logging_iteration_details
        enable_mfu_metrics enable_return_routed_experts enable_trace_replay io_processor_plugin kv_cache_metrics
        kv_cache_metrics_sample otlp_traces_endpoint pooler_config profiler_config renderer_num_workers
        return_sampling_mask served_model_name show_hidden_metrics_for_version shutdown_timeout tokens_only
    """,
}
"""Reasons to refuse arguments that no setting replaces."""
REFUSED: Mapping[str, str] = MappingProxyType(
    {name: f"Offbeat sets it; set {setting}" for name, setting in _SETTINGS.items()}
    | {name: reason for reason, names in _REASONS.items() for name in names.split()}
)
"""Arguments that a run may not set, with the reasons."""


def checked_arguments(given: Any) -> Any:
    """Return arguments of the engine. Raises ValueError for the first that is refused, unknown or of the wrong kind."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    for name, value in given.items():
        check_name(name, ALLOWED, REFUSED, "vLLM's engine arguments")
        types, described = _WORDS[ALLOWED[name]]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{name} is {value!r}; allowed is {described}; correct it, or leave it out")
    refuse_secrets(given, "leave it out")
    return dict(given)
