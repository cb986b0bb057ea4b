"""Memory and disk that a run needs, by arithmetic. Pure; must not start or measure anything.

Notation: Psi parameters of a model, N learner ranks, e bytes per weight (4 in float32, 2 in bfloat16). Memory is a
lower bound: it leaves out fragmentation and the libraries' own buffers.
"""

from actors.generation.config import OpponentConfig
from launch.doctor.model_facts import ELEMENT_BYTES, ModelFacts
from launch.settings.run import RunConfig
from learner.backend.deepspeed_config import BUCKET
from learner.config import TrainerConfig

PROCESS_BYTES = 1 << 30
"""Rough host memory of an actor without a model: libraries and their allocators."""
PUBLISHED_VERSIONS = 2
"""Publications that exist at a time: the one that generators are loading, and the next."""


def learner_memory(
    policy: ModelFacts, reference: ModelFacts | None, config: TrainerConfig, *, average: bool
) -> tuple[float, float]:
    """Estimate the bytes of one learner rank between two forward passes: on its device, and offloaded to the host.

    Mixed-precision Adam under ZeRO: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", sections 3.1 and 5. Offload: Ren et al. 2021, "ZeRO-Offload", section 3. Unlike there, gradients
    are summed in float32 (4 Psi), and stage 0 trains in float32 without a second copy (8 Psi for the optimizer).
    DeepSpeed also keeps 2 Psi of unsummed gradients at stage 1 in bfloat16, and one bucket at stage 3.
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
    averaged = (4 + element) * psi if average else 0.0
    if config.gpus_per_rank > 0 and config.offload_optimizer and stage > 0:
        return weights + frozen + averaged, states + 4 * psi / ranks
    return weights + gradients + states + frozen + averaged, 0.0


def activation_bytes(policy: ModelFacts, config: TrainerConfig, tokens: int) -> float:
    """Estimate the activations that a forward pass over `tokens` tokens keeps for its backward pass.

    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1: a layer
    keeps 34 bytes per token and hidden unit in 16 bits, which is 16 elements without dropout masks and with fused
    attention. With checkpointing (section 5) each layer keeps its input, and one layer at a time keeps all 16. Logits
    and their gradient are float32, for `logprob_chunk` tokens.
    """
    per_layer = 16 * ELEMENT_BYTES[config.dtype] * policy.hidden * tokens
    kept = per_layer * policy.layers
    if config.gradient_checkpointing:
        kept = per_layer // 16 * policy.layers + per_layer
    return kept + 2 * 4 * policy.vocabulary * min(config.logprob_chunk, tokens)


def kv_bytes_per_token(model: ModelFacts, dtype: str) -> int:
    """Return the bytes of one token's keys and values (Kwon et al. 2023, "PagedAttention", section 3)."""
    return 2 * model.layers * model.kv_heads * model.head_size * ELEMENT_BYTES[dtype]


def generator_memory(policy: ModelFacts, config: RunConfig) -> float:
    """Estimate the memory of one engine: on CPU with its whole KV cache, on each GPU with the longest sequence."""
    generators = config.generators
    models, shards = engine_models(config.opponent), generators.tensor_parallel_size
    weights = models * ELEMENT_BYTES[generators.dtype] * policy.parameters / shards
    if config.learner.gpus_per_rank > 0:
        return weights + longest_sequence_bytes(policy, config) / shards
    return weights + (generators.kv_cache_mib << 20)


def longest_sequence_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the KV cache bytes of one sequence of `generators.max_model_len`, over all models of the engine."""
    per_token = kv_bytes_per_token(policy, config.generators.dtype)
    return engine_models(config.opponent) * per_token * config.generators.max_model_len


def engine_models(opponent: OpponentConfig | None) -> int:
    """Return the number of models in one engine; each has its own KV cache."""
    return 2 if opponent is not None and opponent.needs_second_model else 1


def has_average(config: RunConfig) -> bool:
    """Return whether the learner keeps an average of the policy's weights."""
    return config.opponent is not None and config.opponent.kind == "ema"


def publication_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the size of one publication: the policy, and its average if there is one."""
    return (2 if has_average(config) else 1) * ELEMENT_BYTES[config.learner.dtype] * policy.parameters


def checkpoint_bytes(policy: ModelFacts, config: TrainerConfig, *, average: bool) -> int:
    """Return the size of one checkpoint: model, engine weights (not at stage 3), optimizer, and average in float32."""
    weights = ELEMENT_BYTES[config.dtype] * (1 if config.zero_stage == 3 else 2)
    return (weights + (8 if config.zero_stage == 0 else 12) + (4 if average else 0)) * policy.parameters


def disk_bytes(policy: ModelFacts, config: RunConfig) -> int:
    """Return the size of a whole run: the checkpoints it keeps, the one it is writing, and `final/`."""
    one = checkpoint_bytes(policy, config.learner, average=has_average(config))
    return (config.checkpoints.keep + 1) * one + ELEMENT_BYTES[config.learner.dtype] * policy.parameters


def size(nbytes: float) -> str:
    """Format bytes in GiB, or in MiB below one GiB."""
    return f"{nbytes / (1 << 30):,.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):,.1f} MiB"
