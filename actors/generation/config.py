"""Settings of sampling, opponents, generators and the engine inside each. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from actors.settings import Settings


class SamplingConfig(Settings):
    """How completions are sampled. Temperature only: truncation (top-p, top-k) would bias the behaviour log-probs."""

    completions_per_prompt: int = Field(default=4, ge=2, description="completions; K in the papers")
    max_new_tokens: int = Field(default=128, ge=1, description="tokens per completion")
    temperature: float = Field(
        default=1.0, gt=0.0, description="logits are divided by it, in the engine and in the learner"
    )
    stop_token_ids: tuple[int, ...] = Field(
        default=(),
        description="token ids that end a completion besides end-of-sequence; such a completion is not `finished`",
    )


class OpponentConfig(Settings):
    """Whom the policy's completions are compared with, in losses on games (nash_pg, online_ipo, ipo_md)."""

    kind: Literal["weighted", "self", "mixture", "reference", "ema"] = Field(
        default="weighted",
        description="weighted: the mixture policy^(1-beta) reference^beta by importance weights on the policy's own "
        "completions; self: these without the mixture; sampled in the engine, which then holds two models: mixture, "
        "reference, ema (an average of past policies)",
    )
    beta: float = Field(
        default=0.125, ge=0.0, le=1.0, description="weight of the reference in the mixture; kinds weighted and mixture"
    )
    completions_per_prompt: int = Field(
        default=4,
        ge=1,
        description="opponent completions per prompt, where they are drawn apart: kinds mixture, reference and ema, "
        "and every kind with max_staleness set",
    )
    max_staleness: int | None = Field(
        default=None,
        ge=0,
        description="policy versions; opponents are drawn just before their prompt is consumed, none of their tokens "
        "older than this; at most replay.max_staleness. Unset: drawn with the policy's completions, under their bound",
    )
    ema_decay: float = Field(
        default=0.99, gt=0.0, lt=1.0, description="share of the average kept at each update; kind ema"
    )

    @property
    def sampled(self) -> bool:
        """Whether opponents are completions of their own, not the other half of the policy's."""
        return self.max_staleness is not None or self.needs_second_model

    @property
    def needs_second_model(self) -> bool:
        """Whether the engine must hold a second model beside the policy."""
        return self.engine_beta is not None

    @property
    def engine_beta(self) -> float | None:
        """Weight of the engine's second model when it samples an opponent; None where the policy alone samples it."""
        return {"mixture": self.beta, "reference": 1.0, "ema": 1.0}.get(self.kind)

    @property
    def target_beta(self) -> float:
        """Weight of the reference (kind ema: of the average) in the opponent that importance weights aim at."""
        return {"self": 0.0, "reference": 1.0, "ema": 1.0}.get(self.kind, self.beta)


class GeneratorConfig(Settings):
    """The generator actors and the vLLM engine inside each."""

    count: int = Field(default=1, ge=1, description="generator actors, each with an engine of its own")
    min_count: int | None = Field(
        default=None,
        ge=1,
        description="of them those that Ray must have room for at the start; the others join when there is room, on a "
        "node that is added, say (another host takes publication.transport object_store or nccl). Unset: all",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs per engine")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="weights and activations of the engine"
    )
    max_model_len: int = Field(default=1024, ge=2, description="tokens, prompt and completion together")
    max_running_prompts: int = Field(default=64, ge=1, description="leases that one generator holds at a time")
    kv_cache_mib: int = Field(default=128, ge=16, description="MiB of key-value cache; CPU engines only")
    gpu_memory_utilization: float = Field(
        default=0.85, gt=0.0, le=1.0, description="share of GPU memory; GPU engines only"
    )
    enforce_eager: bool = Field(default=False, description="no CUDA graphs; always so on CPU")
    cpus: float = Field(
        default=1.0, gt=0.0, description="CPU cores that each actor reserves from Ray; also its threads"
    )
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a generator that died")
    canary_tolerance: float | None = Field(
        default=None,
        gt=0.0,
        description="nats; largest difference to the learner's log-probs on the canary. Unset: 1e-3, bfloat16 1.0",
    )

    @model_validator(mode="after")
    def _some_of_all_are_required(self) -> GeneratorConfig:
        if self.required > self.count:
            raise ValueError(
                f"min_count {self.min_count} exceeds count {self.count}; lower the first or raise the second"
            )
        return self

    @property
    def log_prob_tolerance(self) -> float:
        """Nats by which engine and learner may differ on one token. bfloat16 kernels of two libraries differ by tenths
        of a nat on peaked models; wrong weights by several nats."""
        return self.canary_tolerance or {"float32": 1e-3, "bfloat16": 1.0}[self.dtype]

    @property
    def required(self) -> int:
        """Generators that must have room at the start."""
        return self.count if self.min_count is None else self.min_count


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec:
    """Everything that one generator and its engine are built from. Made by the wiring."""

    name: str = "generator"
    """For messages and metrics."""
    model_dir: str | Path
    """Hugging Face directory with safetensors weights and a tokenizer; its weights are version 0."""
    reference_dir: str | Path | None = None
    """Directory of the engine's second model, if the opponent needs one; None: `model_dir`. With opponent kind `ema` it
    is the start of the average, and every publication brings the average too."""
    tokenizer: str | None = None
    """Directory or hub name; None: the model's own."""
    generators: GeneratorConfig
    sampling: SamplingConfig
    opponent: OpponentConfig | None = None
    """None if the loss has no opponent."""
    seed: int = 0
    """Of the sampler; two engines of one run need different seeds."""
    deterministic: bool = False
    """Rollouts of a lease depend on the seed, the weights and the leases submitted with it, not on earlier ones."""
    transport: str = "shm"
    """Of the publications that the engine will be given."""
