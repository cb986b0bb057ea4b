"""Settings of sampling, opponents, and generators with their engines. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from actors.adapters.config import LoraConfig
from actors.environments.config import EnvironmentConfig
from actors.foreign.passed_on import checked_environment, checked_labels, checked_resources
from actors.generation.engine_arguments import checked_arguments
from actors.hub import resolve
from actors.settings import MOST_ACTORS, SMALLEST_SHARE, Settings

MAX_REQUESTS = 1024
"""Most requests (one completion each) that an engine runs together; further requests wait inside it."""
LONGEST_SEQUENCE = 10_000_000  # tokens
LOWEST_TEMPERATURE = 0.01
"""Lowest temperature that vLLM samples at; it replaces any lower one."""


class SamplingConfig(Settings):
    """Sampling of rollouts. Temperature only: truncation (top-p, top-k) would bias the behaviour log-probs."""

    completions_per_prompt: int = Field(
        default=4, ge=2, le=MAX_REQUESTS, description="completions per prompt; K in the papers"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="tokens per completion at most")
    temperature: float = Field(default=1.0, gt=0.0, description="divisor of the logits, in both engine and learner")
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="token ids that end a completion besides end-of-sequence; such a completion is not `finished`",
    )
    environment: EnvironmentConfig | None = Field(
        default=None,
        description="what answers the policy between its turns, a tool for example; unset: each completion is one turn",
    )

    @field_validator("temperature", mode="before")
    @classmethod
    def _the_engine_samples_at_it(cls, temperature: Any) -> Any:
        if isinstance(temperature, int | float) and temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"vLLM samples at {LOWEST_TEMPERATURE} instead of any temperature below it, and the learner would "
                f"divide by {temperature:g}; set {LOWEST_TEMPERATURE} or more"
            )
        return temperature


MEAN_SHARE = 0.2
"""Mean difference from which a long sequence is refused, as a fraction of the tolerance of one token."""


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
        le=MAX_REQUESTS,
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
        """Return whether opponents are sampled separately. If not, the halves of the policy's completions play."""
        return self.max_staleness is not None or self.needs_second_model

    @property
    def needs_second_model(self) -> bool:
        """Return whether the engine must hold a second model beside the policy."""
        return self.engine_beta is not None

    @property
    def engine_beta(self) -> float | None:
        """Weight of the engine's second model in opponents; None if the policy alone samples them."""
        return {"mixture": self.beta, "reference": 1.0, "ema": 1.0}.get(self.kind)

    @property
    def target_beta(self) -> float:
        """Weight of the reference (kind ema: of the average) in the opponent that importance weights target."""
        return {"self": 0.0, "reference": 1.0, "ema": 1.0}.get(self.kind, self.beta)


_OWN_VARIABLES = {
    "OMP_NUM_THREADS": "it follows generators.cpus; set that",
    "TORCHDYNAMO_DISABLE": "Offbeat sets it for engines on CPU; on GPUs set generators.enforce_eager",
    "VLLM_CPU_OMP_THREADS_BIND": "Offbeat sets it for engines on CPU; set generators.cpus",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "Offbeat keeps an engine in one process, so that nothing is sampled during a "
    "weight sync; leave it out",
    "VLLM_NO_USAGE_STATS": "Offbeat lets vLLM report nothing to its authors; leave it out",
    "VLLM_USE_V2_MODEL_RUNNER": "Offbeat sets it where the opponent needs a second model; leave it out",
}
"""Variables that Offbeat sets for an engine's process, with the remedy for users who set them."""


class GeneratorConfig(Settings):
    """The generator actors and the vLLM engine in each."""

    count: int = Field(default=1, ge=1, le=MOST_ACTORS, description="generator actors, one engine each")
    min_count: int | None = Field(
        default=None,
        ge=1,
        description="generators that must be scheduled before training starts; the rest join when resources appear "
        "(on another host only with publication.transport object_store, gloo or nccl). Unset: all",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=MOST_ACTORS, description="GPUs per engine; on CPU, processes")
    gpus: float = Field(
        default=1.0,
        ge=SMALLEST_SHARE,
        le=1.0,
        description="share of a GPU that each worker of an engine reserves from Ray, if learner.gpus_per_rank is above "
        "0; below 1 it may share the card with the learner, a judge or another generator",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="weights and activations of the engine"
    )
    max_model_len: int = Field(
        default=1024, ge=2, le=LONGEST_SEQUENCE, description="tokens, prompt and completion together"
    )
    max_running_prompts: int = Field(
        default=64, ge=1, le=MAX_REQUESTS, description="leases that one generator serves at a time"
    )
    kv_cache_mib: int = Field(default=128, ge=16, le=10_000_000, description="key-value cache (MiB); CPU engines only")
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="fraction of a whole card's memory to use; GPU engines only. Unset: 0.85 of `gpus`",
    )
    enforce_eager: bool = Field(default=False, description="disable CUDA graphs; always true on CPU")
    async_scheduling: bool = Field(
        default=False,
        description="prepare the next engine step while the GPU computes this one; GPU engines only. A weight sync "
        "first finishes the step in flight",
    )
    on_update: Literal["recompute", "keep"] = Field(
        default="recompute",
        description="keys and values of running requests at a weight sync. recompute: prefill their tokens again "
        "under the new weights; keep: go on with those of the old weights, which costs no prefill, but then no one "
        "version's log-probs are those of the tokens that follow",
    )
    cpus: float = Field(default=1.0, ge=SMALLEST_SHARE, description="CPU cores reserved per actor; also its threads")
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a dead generator")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the generators' processes"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources that each generator reserves from Ray: name and amount"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that each generator may run on, as Ray's label selector"
    )
    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="more of vLLM's EngineArgs by name; those that Offbeat sets or relies on are refused",
    )
    canary_tolerance: float | None = Field(
        default=None,
        gt=0.0,
        description="nats; largest expected difference between engine and learner on a token. A weight sync is refused "
        "if the mean exceeds a fifth of it (of n tokens 1 / sqrt(n) more), or one token it (bfloat16: five times it). "
        "Unset: 1e-3 for float32, 1.0 for bfloat16",
    )

    _variables = field_validator("environment", mode="before")(partial(checked_environment, owned=_OWN_VARIABLES))
    _amounts = field_validator("resources", mode="before")(checked_resources)
    _selector = field_validator("labels", mode="before")(checked_labels)
    _arguments = field_validator("engine", mode="before")(checked_arguments)

    @model_validator(mode="after")
    def _no_more_are_required_than_exist(self) -> GeneratorConfig:
        if self.required > self.count:
            raise ValueError(
                f"min_count {self.min_count} exceeds count {self.count}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _workers_of_an_engine_have_whole_gpus(self) -> GeneratorConfig:
        if self.tensor_parallel_size > 1 and self.gpus < 1.0:
            raise ValueError(
                f"tensor_parallel_size {self.tensor_parallel_size} with gpus {self.gpus:g}: the workers of one engine "
                "talk over NCCL, which needs a whole GPU for each; set gpus to 1, or tensor_parallel_size to 1"
            )
        return self

    @property
    def gpu_memory_share(self) -> float:
        """Fraction of a GPU's memory that an engine takes, on each of its GPUs."""
        return 0.85 * self.gpus if self.gpu_memory_utilization is None else self.gpu_memory_utilization

    @property
    def log_prob_tolerance(self) -> float:
        """Expected largest difference between engine and learner on one token (nats).

        bfloat16 kernels of two libraries differ by tenths of a nat on peaked models; wrong weights by several nats.
        """
        return self.canary_tolerance or {"float32": 1e-3, "bfloat16": 1.0}[self.dtype]

    def canary_limits(self, tokens: int) -> tuple[float, float]:
        """Return the mean and the largest difference (nats) on `tokens` tokens above which a publication is refused.

        In bfloat16 single unlikely tokens differ by more than a nat, so the mean decides. The mean of fewer tokens
        scatters more.
        """
        tolerance = self.log_prob_tolerance
        return MEAN_SHARE * tolerance * (1.0 + tokens**-0.5), tolerance * (5.0 if self.dtype == "bfloat16" else 1.0)

    @property
    def required(self) -> int:
        """Generators that must be scheduled before training starts."""
        return self.count if self.min_count is None else self.min_count


def adapter_problem(dtype: str, *, gpu: bool) -> str | None:
    """Say why an engine cannot apply adapters in this dtype; None if it can. `gpu`: True if it runs on GPUs."""
    if not gpu or dtype != "float32":
        return None
    return (
        "generators.dtype is float32, but vLLM multiplies with adapters on GPUs in bfloat16 alone; set it to bfloat16, "
        "or learner.lora.publish to merged"
    )


def seed_of(*keys: str | int, bits: int = 63) -> int:
    """Return the seed of the random stream that `keys` name, in [0, 2^bits).

    Pass everything that identifies the stream, the run's seed first. Do not pass sums: run seed 0 with generator 1 has
    the same sum as run seed 1 with generator 0. Needs bits <= 64.
    """
    digest = hashlib.sha256(":".join(map(str, keys)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


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
    chat_template: str | None = None  # for an environment's messages; None: the tokenizer's own
    head_dtype: str = "model"  # of the logits: float32, or model for the weights' dtype
    generators: GeneratorConfig
    sampling: SamplingConfig
    opponent: OpponentConfig | None = None  # None if the loss has no opponent
    adapter: LoraConfig | None = None
    """Adapters that publications hold for a fixed base; None if publications hold all weights."""
    seed: int = 0  # of the run
    number: int = 0  # among the generators of the run
    start: int = 0
    """Part of the engine's seed: gives each start of this generator a random stream of its own."""
    deterministic: bool = False
    """True if a lease's rollouts depend on seed, weights and the leases submitted with it, not on earlier leases."""

    def on_this_host(self) -> GeneratorSpec:
        """Replace hub names by local directories; download what is missing."""
        reference_dir = None if self.reference_dir is None else resolve(self.reference_dir)
        return replace(self, model_dir=resolve(self.model_dir), reference_dir=reference_dir)

    @property
    def engine_seed(self) -> int:
        """Seed of the engine's sampler; differs between any two engines, of one run or of two."""
        return seed_of(self.seed, "generator", self.number, "engine", self.start, bits=32)  # as many as numpy takes

    @property
    def engine_beta(self) -> float | None:
        """Weight of the engine's second model in opponents; None if the engine holds no second model."""
        return None if self.opponent is None or self.opponent_is_base else self.opponent.engine_beta

    @property
    def opponent_is_base(self) -> bool:
        """Return whether the base without its adapter samples opponents, so that one model serves both."""
        return (
            self.adapter is not None
            and self.opponent is not None
            and self.opponent.kind == "reference"
            and str(self.reference_dir or self.model_dir) == str(self.model_dir)
        )

    @property
    def publishes_average(self) -> bool:
        """Return whether a publication includes the average of past policies, under `weights.REFERENCE_PREFIX`."""
        return self.opponent is not None and self.opponent.kind == "ema"
