"""Settings of sampling, opponents, and generators with their engines. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from actors.hub import resolve
from actors.settings import Settings


class SamplingConfig(Settings):
    """How rollouts are sampled. Temperature only: truncation (top-p, top-k) would bias the behaviour log-probs."""

    completions_per_prompt: int = Field(default=4, ge=2, description="completions per prompt; K in the papers")
    max_new_tokens: int = Field(default=128, ge=1, description="tokens per completion at most")
    temperature: float = Field(default=1.0, gt=0.0, description="divisor of the logits, in both engine and learner")
    stop_token_ids: tuple[int, ...] = Field(
        default=(),
        description="token ids that end a completion besides end-of-sequence; such a completion is not `finished`",
    )


class OpponentConfig(Settings):
    """The opponent that the policy plays against, in losses on games (nash_pg, online_ipo, ipo_md)."""

    kind: Literal["weighted", "self", "mixture", "reference", "ema"] = Field(
        default="weighted",
        description="weighted: the mixture policy^(1-beta) reference^beta, by importance weights on the policy's own "
        "completions; self: the policy itself, on the same completions; mixture, reference, ema (an average of past "
        "policies): sampled by the engine, which then holds two models",
    )
    beta: float = Field(
        default=0.125, ge=0.0, le=1.0, description="weight of the reference in the mixture; kinds weighted and mixture"
    )
    completions_per_prompt: int = Field(
        default=4,
        ge=1,
        description="opponent completions per prompt, if opponents are sampled separately: kinds mixture, reference "
        "and ema, and every kind with max_staleness set",
    )
    max_staleness: int | None = Field(
        default=None,
        ge=0,
        description="policy versions; staleness bound of the opponents, at most replay.max_staleness: they are drawn "
        "just before their prompt is consumed. Unset: drawn with the policy's completions, under their bound",
    )
    ema_decay: float = Field(
        default=0.99, gt=0.0, lt=1.0, description="fraction of the average kept at each update; kind ema"
    )

    @property
    def sampled(self) -> bool:
        """Whether opponents are sampled separately; otherwise each half of the policy's completions plays the other."""
        return self.max_staleness is not None or self.needs_second_model

    @property
    def needs_second_model(self) -> bool:
        """Whether the engine must hold a second model beside the policy."""
        return self.engine_beta is not None

    @property
    def engine_beta(self) -> float | None:
        """Weight of the engine's second model in opponents; None if the policy alone samples them."""
        return {"mixture": self.beta, "reference": 1.0, "ema": 1.0}.get(self.kind)

    @property
    def target_beta(self) -> float:
        """Weight of the reference (kind ema: of the average) in the opponent that importance weights target."""
        return {"self": 0.0, "reference": 1.0, "ema": 1.0}.get(self.kind, self.beta)


class GeneratorConfig(Settings):
    """The generator actors and the vLLM engine in each."""

    count: int = Field(default=1, ge=1, description="generator actors, one engine each")
    min_count: int | None = Field(
        default=None,
        ge=1,
        description="generators that must be scheduled before training starts; the rest join when resources appear "
        "(on another host only with publication.transport object_store or nccl). Unset: all",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs per engine")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="weights and activations of the engine"
    )
    max_model_len: int = Field(default=1024, ge=2, description="tokens, prompt and completion together")
    max_running_prompts: int = Field(default=64, ge=1, description="leases that one generator serves at a time")
    kv_cache_mib: int = Field(default=128, ge=16, description="key-value cache (MiB); CPU engines only")
    gpu_memory_utilization: float = Field(
        default=0.85, gt=0.0, le=1.0, description="fraction of GPU memory to use; GPU engines only"
    )
    enforce_eager: bool = Field(default=False, description="disable CUDA graphs; always true on CPU")
    cpus: float = Field(default=1.0, gt=0.0, description="CPU cores reserved per actor; also its threads")
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a dead generator")
    canary_tolerance: float | None = Field(
        default=None,
        gt=0.0,
        description="nats; largest accepted difference between engine and learner on a canary token. Unset: 1e-3 for "
        "float32, 1.0 for bfloat16",
    )

    @model_validator(mode="after")
    def _no_more_are_required_than_exist(self) -> GeneratorConfig:
        if self.required > self.count:
            raise ValueError(
                f"min_count {self.min_count} exceeds count {self.count}; lower the first or raise the second"
            )
        return self

    @property
    def log_prob_tolerance(self) -> float:
        """Accepted difference between engine and learner on one token (nats).

        bfloat16 kernels of two libraries differ by tenths of a nat on peaked models; wrong weights by several nats.
        """
        return self.canary_tolerance or {"float32": 1e-3, "bfloat16": 1.0}[self.dtype]

    @property
    def required(self) -> int:
        """Generators that must be scheduled before training starts."""
        return self.count if self.min_count is None else self.min_count


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSpec:
    """All inputs of one generator and its engine. Made by `launch/cluster/wiring.py`."""

    name: str = "generator"  # for messages and metrics
    model_dir: str | Path
    """Hugging Face directory with safetensors weights and a tokenizer; its weights are version 0."""
    reference_dir: str | Path | None = None
    """Directory of the engine's second model, if the opponent needs one; None: `model_dir`. Opponent kind `ema` starts
    its average from it."""
    tokenizer: str | None = None  # directory or hub name; None: the model's own
    generators: GeneratorConfig
    sampling: SamplingConfig
    opponent: OpponentConfig | None = None  # None if the loss has no opponent
    seed: int = 0
    """Of the engine's sampler; must differ between the engines of one run."""
    deterministic: bool = False
    """A lease's rollouts depend on seed, weights and the leases submitted with it, but not on earlier leases."""
    transport: str = "shm"  # how publications reach the engine; see `Manifest.transport`

    def on_this_host(self) -> GeneratorSpec:
        """Replace hub names by local directories; download what is missing."""
        reference_dir = None if self.reference_dir is None else resolve(self.reference_dir)
        return replace(self, model_dir=resolve(self.model_dir), reference_dir=reference_dir)

    @property
    def publishes_average(self) -> bool:
        """Whether a publication includes the average of past policies, under `weights.REFERENCE_PREFIX`."""
        return self.opponent is not None and self.opponent.kind == "ema"
