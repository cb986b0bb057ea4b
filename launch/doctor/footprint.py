"""What a run takes, by arithmetic: memory of each role, shared memory, disk. Pure; starts nothing.

Notation: Psi parameters of a model, N learner ranks, e bytes of one weight (4 in float32, 2 in bfloat16). Memory is a
lower bound: what must be there, without fragmentation and the libraries' own buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.generation.config import OpponentConfig
from launch.doctor.model_facts import ELEMENT_BYTES, ModelFacts
from launch.settings.run import RunConfig
from learner.backend.deepspeed_config import BUCKET
from learner.config import TrainerConfig

PROCESS_BYTES = 1 << 30
"""Host memory of one actor before it holds a model: its libraries and their allocators. Rough."""
PUBLISHED_VERSIONS = 2
"""Publications that exist at a time: one that generators still take, and the next."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one process needs."""

    device: float
    """On its GPU, or in host memory where it runs on CPU."""
    host: float = 0.0
    """In host memory besides, where `device` is a GPU's."""


def learner_memory(policy: ModelFacts, reference: ModelFacts | None, config: TrainerConfig, *, ema: bool) -> Memory:
    """Bytes of one learner rank between two forward passes.

    The model states of mixed-precision Adam under ZeRO (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward
    Training Trillion Parameter Models", sections 3.1 and 5): 2 Psi for weights, 2 Psi for gradients and K Psi for the
    optimizer with K = 12 (float32 weights and two moments), of which stage 1 divides the optimizer, stage 2 gradients
    too and stage 3 weights too by N. Here gradients are summed in float32, so they take 4 Psi, and weights e Psi.
    Stage 0 trains in float32 without a second copy: K = 8. DeepSpeed keeps besides, at stage 1 in bfloat16, the
    gradients before they are summed, 2 Psi, and at stage 3 a bucket of gradients to reduce.

    Beside them a frozen reference, e Psi, whole on every rank up to stage 2, and with opponents of kind ema the
    average, kept in float32 and in the model's dtype. An offloaded optimizer (Ren et al. 2021, "ZeRO-Offload",
    section 3) keeps its states and the gradients that they take in host memory.
    """
    stage, ranks, element = config.zero_stage, config.ranks, ELEMENT_BYTES[config.dtype]
    psi = policy.parameters
    weights = element * psi / (ranks if stage == 3 else 1)
    if stage == 3:
        weights += 4 * min(psi, BUCKET)
    gradients = 4 * psi / (ranks if stage >= 2 else 1)
    if stage == 1 and config.dtype == "bfloat16":
        gradients += 2 * psi
    states = 12 * psi / ranks if stage >= 1 else 8 * psi
    frozen = element * reference.parameters / (ranks if stage == 3 else 1) if reference is not None else 0.0
    average = (4 + element) * psi if ema else 0.0
    on_gpu = config.gpus_per_rank > 0
    if on_gpu and config.offload_optimizer and stage > 0:
        return Memory(weights + frozen + average, host=states + 4 * psi / ranks)
    return Memory(weights + gradients + states + frozen + average)


def activation_bytes(policy: ModelFacts, config: TrainerConfig, tokens: int) -> float:
    """Bytes of the activations of one forward pass over `tokens` tokens, kept for its backward pass.

    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1: a layer keeps
    34 bytes per token and hidden unit in 16 bits, of which 2 are dropout masks, absent here, and 5 a s / h for
    attention, which fused kernels do not keep: 16 elements. With checkpointing (section 5) each layer keeps its input,
    and one layer at a time all 16. The logits are kept in float32 for `logprob_chunk` tokens, with their gradient.
    """
    per_layer = 16 * ELEMENT_BYTES[config.dtype] * policy.hidden * tokens
    kept = per_layer * policy.layers
    if config.gradient_checkpointing:
        kept = per_layer // 16 * policy.layers + per_layer
    return kept + 2 * 4 * policy.vocabulary * min(config.logprob_chunk, tokens)


def kv_bytes_per_token(model: ModelFacts, dtype: str) -> int:
    """Bytes of the keys and values of one token in all layers: 2 x layers x heads x head size x bytes.

    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention", section 3: a
    token of OPT-13B takes 2 x 5120 x 40 x 2 bytes = 800 KiB.
    """
    return 2 * model.layers * model.kv_heads * model.head_size * ELEMENT_BYTES[dtype]


def generator_memory(policy: ModelFacts, config: RunConfig) -> float:
    """Bytes that one engine needs to serve one sequence of `generators.max_model_len`, on each of its GPUs; on CPU
    with the whole `generators.kv_cache_mib`."""
    generators = config.generators
    models, shards = engine_models(config.opponent), generators.tensor_parallel_size
    weights = models * ELEMENT_BYTES[generators.dtype] * policy.parameters / shards
    if config.learner.gpus_per_rank > 0:
        return weights + longest_sequence_bytes(policy, config) / shards
    return weights + (generators.kv_cache_mib << 20)


def longest_sequence_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Bytes of the keys and values of one sequence of `generators.max_model_len`, in every model of the engine."""
    per_token = kv_bytes_per_token(policy, config.generators.dtype)
    return engine_models(config.opponent) * per_token * config.generators.max_model_len


def has_average(config: RunConfig) -> bool:
    """Whether the learner keeps an average of the policy's weights."""
    return config.opponent is not None and config.opponent.kind == "ema"


def engine_models(opponent: OpponentConfig | None) -> int:
    """Models that one engine holds, each with keys and values of its own."""
    return 2 if opponent is not None and opponent.needs_second_model else 1


def publication_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Bytes of one publication: the policy, and the average of opponents of kind ema."""
    models = 2 if has_average(config) else 1
    return models * ELEMENT_BYTES[config.learner.dtype] * policy.parameters


def checkpoint_bytes(policy: ModelFacts, config: TrainerConfig, *, ema: bool) -> int:
    """Bytes of one checkpoint: the model directory and the engine's weights, e Psi each (the latter not under ZeRO-3,
    which keeps them with the optimizer), the optimizer as in `learner_memory`, and the average in float32."""
    element = ELEMENT_BYTES[config.dtype]
    weights = element * (1 if config.zero_stage == 3 else 2)
    return (weights + (8 if config.zero_stage == 0 else 12) + (4 if ema else 0)) * policy.parameters


def disk_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Bytes of a whole run: the checkpoints kept, the one being written, and `final/`."""
    one = checkpoint_bytes(policy, config.learner, ema=has_average(config))
    model = ELEMENT_BYTES[config.learner.dtype] * policy.parameters
    return (config.checkpoints.keep + 1) * one + model


def size(nbytes: float) -> str:
    """Bytes as text: GiB from one on, else MiB."""
    return f"{nbytes / (1 << 30):,.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):,.1f} MiB"
