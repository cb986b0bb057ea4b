"""Memory and disk that a run needs, by arithmetic. Pure; must not start or measure anything.

Notation: Psi parameters of a model, N learner ranks, e bytes per weight (4 in float32, 2 in bfloat16). Memory is a
lower bound: it leaves out fragmentation and the libraries' own buffers.
"""

import math
from dataclasses import dataclass

from actors.adapters.config import ALL_LINEAR, LoraConfig
from actors.records import TRANSPORTS
from launch.doctor.model_facts import ELEMENT_BYTES, ModelFacts
from launch.settings.run import RunConfig
from learner.backend.deepspeed_config import bucket_elements
from learner.config import TrainerConfig

PROCESS_BYTES = 1 << 30
"""Rough host memory of an actor without a model: libraries and their allocators."""
CONTEXT_BYTES = 500 << 20
"""Rough GPU memory of a process before its first tensor: CUDA's context and the libraries' kernels."""
LIVE = 1_000_000_000
"""Most weights that ZeRO-3 gathers at a time: DeepSpeed's `stage3_max_live_parameters`."""
MASKED_SCORES = 1 << 18
"""Most attention scores of a part of a split sequence that gets a mask: `CALL_SCORES` of learner/tensors/layout.py."""
PUBLISHED_VERSIONS = 2
"""Publications that exist at a time: the one that generators are loading, and the next."""


def adapter_parameters(model: ModelFacts, lora: LoraConfig) -> int:
    """Count the elements of A [r, in] and B [out, r] over the adapted layers.

    Of Llama's names. A target of another name counts as a square layer, and all-linear as these seven.
    """
    h, i = model.hidden, model.intermediate or 4 * model.hidden
    queries, keys = (model.heads or h // model.head_size) * model.head_size, model.kv_heads * model.head_size
    ends = {"q_proj": h + queries, "k_proj": h + keys, "v_proj": h + keys, "o_proj": queries + h}
    ends |= {"up_proj": h + i, "down_proj": i + h} | ({"gate_proj": h + i} if model.gated else {})
    names = list(ends) if lora.targets == ALL_LINEAR else lora.targets
    return model.layers * lora.rank * sum(ends.get(name, 2 * h) for name in names)


def trained_parameters(model: ModelFacts, config: TrainerConfig) -> int:
    """Count the elements that an optimizer step changes: all weights, or those of the adapters."""
    return model.parameters if config.lora is None else adapter_parameters(model, config.lora)


def saved_parameters(model: ModelFacts, config: TrainerConfig) -> int:
    """Count the elements of a saved model."""
    alone = config.lora is not None and config.lora.save == "adapter"
    return trained_parameters(model, config) if alone else model.parameters


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass with gradient, as one rank computes it: what of it takes memory."""

    tokens: int
    repeated_keys: int = 0
    """Tokens of prompts that completions attend to, each but the first time."""
    scores: int = 0
    """Attention scores of one head that a mask covers. Ranks that split sequences each have all of it."""


def pass_of(prompt: int, completion: int, rows: int, tokens: int, split: int = 1) -> Pass:
    """Count a pass of `tokens` over prompts of `rows` completions each, prompts once, on one of `split` ranks.

    `prompt` and `completion` are lengths in tokens; the last prompt need not be whole.
    """
    item = prompt + rows * completion
    parts = [prompt**2, *[completion * (prompt + completion)] * rows]
    scores = sum(part for part in parts if split == 1 or part <= MASKED_SCORES)
    return Pass(-(-tokens // split), -(-tokens * rows * prompt // (item * split)), -(-tokens * scores // item))


def learner_memory(
    policy: ModelFacts,
    reference: ModelFacts | None,
    config: TrainerConfig,
    *,
    average: bool,
    offload_reference: bool = False,
) -> tuple[float, float]:
    """Estimate the bytes of one learner rank between two forward passes: on its device, and offloaded to the host.

    `reference`: None if the rank holds none. Offloaded it leaves its largest module's weights on the device at a time.

    Mixed-precision Adam under ZeRO: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", sections 3.1 and 5. Offload: Ren et al. 2021, "ZeRO-Offload", section 3. Unlike there, gradients
    are summed in float32 (4 Psi), and stage 0 trains in float32 without a second copy (8 Psi for the optimizer).
    DeepSpeed also keeps 2 Psi of unsummed gradients at stage 1 in bfloat16, and one bucket at stage 3. With offload
    it sums gradients on the device, except at stage 3 and, in float32, at stage 2; the host gets a copy, and at stages
    1 and 2 the new weights too (DeepSpeed 0.19.8, its module of stages 1 and 2). With adapters Psi counts these alone
    in gradients and optimizer, and the base is the reference if there is no other. Offloaded weights leave what is
    gathered at a time: `gathered_bytes`.
    """
    stage, ranks, element = config.zero_stage, config.ranks, ELEMENT_BYTES[config.dtype]
    psi = trained_parameters(policy, config)
    base = 0 if config.lora is None else policy.parameters
    weights, offloaded = element * (base + psi) / (ranks if stage == 3 else 1), 0.0
    if config.gpus_per_rank > 0 and config.offload_weights:
        weights, offloaded = 0.0, weights
    if stage == 3:
        weights += 4 * bucket_elements(config, psi)
    gradients = 4 * psi / (ranks if stage >= 2 else 1)
    if stage == 1 and config.dtype == "bfloat16":
        gradients += 2 * psi
    states = 12 * psi / ranks if stage >= 1 else 8 * psi
    frozen = element * reference.parameters / (ranks if stage == 3 else 1) if reference is not None else 0.0
    averaged = (4 + element) * policy.parameters if average else 0.0
    if config.gpus_per_rank > 0 and offload_reference and reference is not None:
        offloaded += frozen
        frozen = 0.0 if stage == 3 else float(element * reference.vocabulary * reference.hidden)
    if config.gpus_per_rank > 0 and config.offload_optimizer and stage > 0:
        moved = stage == 3 or (stage == 2 and config.dtype == "float32")
        device = weights + frozen + averaged + (0.0 if moved else gradients)
        return device, offloaded + states + (4 + (element if stage < 3 else 0)) * psi / ranks
    return weights + gradients + states + frozen + averaged, offloaded


def reference_memory(reference: ModelFacts, config: RunConfig) -> tuple[float, float]:
    """Estimate the bytes of one reference actor: its weights, and what a pass without gradient takes at its peak.

    That is one layer's activations, or float32 logits of a chunk and their exponentials.
    """
    own = config.reference
    dtype = own.dtype or config.learner.dtype
    layer = layer_activations(reference, dtype) * ELEMENT_BYTES[dtype] * own.micro_batch_tokens
    head = 8 * min(config.learner.logprob_chunk, own.micro_batch_tokens) * reference.vocabulary
    return float(ELEMENT_BYTES[dtype] * reference.parameters), float(max(layer, head))


def loading_bytes(policy: ModelFacts, reference: ModelFacts | None, config: TrainerConfig) -> float:
    """Estimate the host memory that a learner on GPUs needs while it loads, on rank 0's host.

    Rank 0 reads each model whole, one after the other; the other ranks get its weights on their GPUs. On CPU the ranks'
    own memory is more. Under ZeRO-3 no GPU holds more than one weight whole.
    """
    largest = max(policy.parameters, 0 if reference is None else reference.parameters)
    return float(ELEMENT_BYTES[config.dtype] * largest) if config.gpus_per_rank > 0 else 0.0


def activation_bytes(policy: ModelFacts, config: TrainerConfig, largest: Pass, head_dtype: str = "model") -> float:
    """Estimate the peak memory of the `largest` pass: activations and buffers.

    With checkpointing (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
    section 5) each layer keeps its input, and one layer at a time the rest. The peak is at the head, with the
    activations of all layers, or where the last layer's gradients are computed, or later, where they are reduced.
    """
    element, psi = ELEMENT_BYTES[config.dtype], trained_parameters(policy, config)
    bucket = bucket_elements(config, psi)
    layer = float(layer_activations(policy, config.dtype) * element * largest.tokens)
    layer += repeated_key_bytes(policy, config, largest)
    kept, again = layer * policy.layers, float(layer_gradients(policy) * element * largest.tokens)
    if config.gradient_checkpointing:
        kept, again = element * policy.hidden * largest.tokens * policy.layers, again + layer
    at_head = kept + head_bytes(policy, config, largest.tokens, head_dtype)
    # A bucket is full when the layers above it, whose gradients it holds, have freed their activations.
    reducing = layer * config.gradient_checkpointing + reduction_bytes(policy, config)
    at_reduction = kept * (1.0 - bucket / psi) + reducing
    peak = max(at_head, kept + again, at_reduction)
    return peak + mask_bytes(policy, config, largest) + gathered_bytes(policy, config)


def layer_activations(policy: ModelFacts, dtype: str) -> int:
    """Count the elements per token that one layer keeps for its backward pass.

    Counted in transformers' classes with fused attention: norms, attention's queries and output, and residuals 8 h,
    in bfloat16 10 h for norms in float32 (Llama, Qwen 2, Mistral); keys and values; a gated MLP four times its width
    i (gate, its activation, up, their product), another twice. Where queries and keys have norms of their own, or
    layers four norms, it is more.
    """
    base = 10 if dtype == "bfloat16" and policy.gated else 8
    width = policy.intermediate or 4 * policy.hidden
    return base * policy.hidden + 2 * policy.kv_heads * policy.head_size + (4 if policy.gated else 2) * width


def layer_gradients(policy: ModelFacts) -> int:
    """Count the elements per token by which gradients exceed what they replace, at most, in a layer's backward pass.

    In a gated MLP of width i the gradients of its product and of both factors exist at once, and the product no longer:
    2 i more. Without a gate, i.
    """
    return (2 if policy.gated else 1) * (policy.intermediate or 4 * policy.hidden)


def repeated_key_bytes(policy: ModelFacts, config: TrainerConfig, largest: Pass) -> float:
    """Estimate the keys and values of prompts that one layer keeps once more for each completion."""
    return 2 * ELEMENT_BYTES[config.dtype] * _kv_heads(policy, config) * policy.head_size * largest.repeated_keys


def mask_bytes(policy: ModelFacts, config: TrainerConfig, largest: Pass) -> float:
    """Estimate the masks of a row in which prompts are shared: all layers have the same.

    They hold what is added to each score, once for each query head that shares the keys.
    """
    shared = max(1, policy.heads // _kv_heads(policy, config))
    return ELEMENT_BYTES[config.dtype] * shared * largest.scores


def _kv_heads(policy: ModelFacts, config: TrainerConfig) -> int:
    """Count the heads of keys over all ranks that split a sequence: repeated, if there are too few to share out."""
    return math.lcm(policy.kv_heads, config.sequence_parallel)


def exchanged_bytes(policy: ModelFacts, config: TrainerConfig, largest: Pass) -> float:
    """Return what a rank sends for one layer's attention, forward or backward, if ranks split sequences.

    Jacobs et al. 2023, "DeepSpeed Ulysses", section 3.2: queries and keys and values there, outputs back; of each the
    share of all other ranks.
    """
    size, heads = config.sequence_parallel, policy.heads or policy.hidden // policy.head_size
    elements = 2 * (heads + _kv_heads(policy, config)) * policy.head_size * largest.tokens
    return ELEMENT_BYTES[config.dtype] * elements * (size - 1) / size


def head_bytes(policy: ModelFacts, config: TrainerConfig, tokens: int, head_dtype: str = "model") -> float:
    """Estimate what the log-probs of a chunk of tokens take, forward or backward, beside the layers' activations.

    Forward: float32 logits, and their exponentials. Backward: the gradient of the logits in float32 and in the weights'
    dtype; the gradient of the head's weights in float32, and a chunk's product in their own. A head in float32 has a
    copy of its weights and the product in that. On CPU torch adds a product in bfloat16 through a float32 copy of it.
    Under adapters the head is frozen, and only a float32 head has a copy of its weights.
    """
    element, chunk = ELEMENT_BYTES[config.dtype], min(config.logprob_chunk, tokens)
    in_float32 = config.dtype == "bfloat16" and head_dtype == "float32"
    if config.lora is not None:
        copied = 4 * policy.hidden if in_float32 else 0
        return policy.vocabulary * (8 * chunk + copied)
    if in_float32:
        return policy.vocabulary * max(8 * chunk, 4 * chunk + 12 * policy.hidden)
    cast, copied = (element, 0 if config.gpus_per_rank else 4) if config.dtype == "bfloat16" else (0, 0)
    backward = (4 + cast) * chunk * policy.vocabulary + (4 + element + copied) * policy.vocabulary * policy.hidden
    return max(8 * chunk * policy.vocabulary, backward)


def reduction_bytes(policy: ModelFacts, config: TrainerConfig) -> float:
    """Estimate what reducing one bucket of gradients takes: the bucket, flattened once more, and summed."""
    summed = 4 if config.dtype == "bfloat16" and config.reduce_dtype == "float32" else 0  # in float32
    each = 2 * ELEMENT_BYTES[config.dtype] + summed if config.zero_stage > 0 else 4
    return each * bucket_elements(config, trained_parameters(policy, config))


def gathered_bytes(policy: ModelFacts, config: TrainerConfig) -> float:
    """Estimate the whole weights that ZeRO-3 holds at a time, of policy and reference each; adapters have one base.

    None on a single rank that keeps all weights on its device. The largest weight is gathered whole in any case.
    """
    if config.zero_stage < 3 or (config.ranks == 1 and not config.offload_weights):
        return 0.0
    limit = config.deepspeed.get("zero_optimization", {}).get("stage3_max_live_parameters", LIVE)
    at_once = min(policy.parameters, max(limit, policy.vocabulary * policy.hidden))
    return float((1 if config.lora is not None else 2) * ELEMENT_BYTES[config.dtype] * at_once)


def kv_bytes_per_token(model: ModelFacts, dtype: str) -> int:
    """Return the bytes of one token's keys and values (Kwon et al. 2023, "PagedAttention", section 3)."""
    return 2 * model.layers * model.kv_heads * model.head_size * ELEMENT_BYTES[dtype]


def generator_memory(policy: ModelFacts, config: RunConfig) -> float:
    """Estimate the memory of one engine: on CPU with its whole KV cache, on each GPU with the longest sequence."""
    generators = config.generators
    models, shards = engine_models(config), generators.tensor_parallel_size
    weights = models * ELEMENT_BYTES[generators.dtype] * policy.parameters / shards
    if config.learner.gpus_per_rank > 0:
        return weights + longest_sequence_bytes(policy, config) / shards
    return weights + (generators.kv_cache_mib << 20)


def longest_sequence_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the KV cache bytes of one sequence of `generators.max_model_len`, over all models of the engine."""
    per_token = kv_bytes_per_token(policy, config.generators.dtype)
    return engine_models(config) * per_token * config.generators.max_model_len


def engine_models(config: RunConfig) -> int:
    """Return the number of models in one engine; each has its own KV cache.

    An engine with adapters samples a reference opponent from their base.
    """
    opponent = config.opponent
    base = config.adapter is not None and opponent is not None and opponent.kind == "reference"
    one = opponent is None or not opponent.needs_second_model or (base and config.model.reference is None)
    return 1 if one else 2


def has_average(config: RunConfig) -> bool:
    """Return whether the learner keeps an average of the policy's weights."""
    return config.opponent is not None and config.opponent.kind == "ema"


def publication_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the size of one publication: the policy, and its average if there is one."""
    published = policy.parameters if config.adapter is None else adapter_parameters(policy, config.adapter)
    return (2 if has_average(config) else 1) * ELEMENT_BYTES[config.learner.dtype] * published


def kept_on_gpu(policy: ModelFacts, config: RunConfig) -> int:
    """Return the bytes of publications on the GPU of learner rank 0.

    `nccl` keeps a version there until it is sent, or in host memory if ZeRO-3 shards the model; `ipc` every one that
    generators may still map.
    """
    kind, one = TRANSPORTS[config.publication.transport], publication_bytes(policy, config)
    if not kind.needs_gpus or (kind.broadcast and config.learner.zero_stage == 3 and config.learner.ranks > 1):
        return 0
    return (1 if kind.broadcast else PUBLISHED_VERSIONS) * one


def kept_on_host(policy: ModelFacts, config: RunConfig) -> int:
    """Return the bytes of publications in the host memory of all processes.

    Files in /dev/shm, or the copies of a broadcast at the learner and in each engine process.
    """
    kind, generators = TRANSPORTS[config.publication.transport], config.generators
    one = publication_bytes(policy, config)
    sent_from = PUBLISHED_VERSIONS * one if kind.in_files or kind.broadcast else 0
    received = generators.count * generators.tensor_parallel_size * one if kind.broadcast else 0
    return sent_from + received


def averaged_parameters(policy: ModelFacts, config: RunConfig) -> int:
    """Count the elements of the averages of past policies in a checkpoint: the opponent's, the anchor's, the last."""
    opponent = policy.parameters if has_average(config) else 0
    own = (config.anchor is not None) + (config.learner.average_last > 0.0)
    return opponent + own * trained_parameters(policy, config.learner)


def average_bytes(policy: ModelFacts, config: RunConfig) -> float:
    """Return what averages of the weights in training take on a learner rank.

    The anchor's and the last updates' in float32; the anchor's also in the weights' dtype while a pass runs.
    """
    learner, anchor = config.learner, config.anchor is not None
    each = 4 * (anchor + (learner.average_last > 0.0)) + (2 if anchor and learner.dtype == "bfloat16" else 0)
    return each * trained_parameters(policy, learner) / (learner.ranks if learner.zero_stage == 3 else 1)


def checkpoint_bytes(policy: ModelFacts, config: TrainerConfig, *, averaged: int = 0) -> int:
    """Return the size of one checkpoint: model, engine weights (not at stage 3), optimizer, `averaged_parameters`."""
    element, trained = ELEMENT_BYTES[config.dtype], trained_parameters(policy, config)
    engine = (0 if config.zero_stage == 3 else element) + (8 if config.zero_stage == 0 else 12)
    return element * saved_parameters(policy, config) + engine * trained + 4 * averaged


def disk_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the size of a whole run: the checkpoints it keeps, the one it is writing, and the models at its end."""
    one = checkpoint_bytes(policy, config.learner, averaged=averaged_parameters(policy, config))
    final = ELEMENT_BYTES[config.learner.dtype] * saved_parameters(policy, config.learner)
    return (config.checkpoints.keep + 1) * one + (2 if config.learner.average_last else 1) * final


def size(nbytes: float) -> str:
    """Format bytes in GiB, or in MiB below one GiB."""
    return f"{nbytes / (1 << 30):,.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):,.1f} MiB"
