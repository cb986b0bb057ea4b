"""Settings of everything that makes data: prompts, sampling, engine, generators, judges, replay.

Light by law: importing this module must not import torch, ray, vllm or transformers.
Every field states its unit and its bound; `offbeat train --help` prints them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from actors.judges.config import EnsembleJudgeConfig, GoldJudgeConfig, HttpJudgeConfig, JudgeKind
from actors.settings import Settings

WORLD = "world"
"""Names the embedded world where a path or a data set is asked for."""


def _holds_the_prompt(template: str) -> str:
    if template.count("{prompt}") != 1:
        raise ValueError("a template must hold {prompt} once")
    return template


Template = Annotated[str, AfterValidator(_holds_the_prompt)]
"""Text with one `{prompt}` in it; other braces stand for themselves."""


class PromptConfig(Settings):
    """Where prompts come from and in which order they are offered."""

    source: str = Field(
        default=WORLD,
        description="`world` (the embedded one), a .jsonl or .parquet file, a directory of them or one written by "
        "`datasets.save_to_disk`, or a hub data set, `owner/name` or `owner/name:configuration`",
    )
    split: str = Field(default="train", description="split, for data sets that have several")
    prompt_field: str = Field(
        default="prompt", description="column with the prompt: a string, or a list of chat messages"
    )
    template: Template = Field(
        default="{prompt}", description="what a string prompt is put into; chats have the tokenizer's own template"
    )
    answer_field: str | None = Field(default=None, description="column with the gold answer, for verifiers")
    max_prompt_tokens: int = Field(default=512, ge=1, description="tokens; a longer prompt is a malformed row")
    on_malformed: Literal["error", "skip"] = Field(
        default="error", description="`error` names file and line and stops; `skip` leaves the row out and counts it"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order; every epoch is shuffled anew")
    shuffle: bool = Field(default=True, description="False offers the rows in file order, epoch after epoch")


class DemonstrationConfig(Settings):
    """Demonstrations to imitate: prompt and response, or conversations of which every assistant turn is imitated."""

    source: str = Field(
        description="a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, or a "
        "hub data set, `owner/name` or `owner/name:configuration`"
    )
    split: str = Field(default="train", description="split, for data sets that have several")
    prompt_field: str = Field(default="prompt", description="column with the prompt: a string, or chat messages")
    response_field: str = Field(default="response", description="column with the response, a string")
    messages_field: str | None = Field(
        default=None, description="column with whole conversations, read instead of prompt and response"
    )
    template: Template = Field(default="{prompt}", description="what a prompt that is a string is put into")
    max_tokens: int = Field(default=1024, ge=2, description="tokens, prompt and response; a longer row is malformed")
    on_malformed: Literal["error", "skip"] = Field(
        default="error", description="`error` names file and line and stops; `skip` leaves the row out and counts it"
    )
    validation_fraction: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="share of the prompts that is held out; a prompt is on one side only, and rows added later move "
        "no other",
    )


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


class JudgingConfig(Settings):
    """How judges are run, whatever their kind."""

    judge: JudgeKind = Field(default_factory=GoldJudgeConfig, description="which judge")
    missing_eos_score: float | None = Field(
        default=-1.0,
        description="score that replaces the judge's for a completion without end-of-sequence; null keeps it",
    )
    count: int = Field(default=1, ge=1, description="judge actors, each with models or connections of its own")
    max_restarts: int = Field(default=3, ge=0, description="times Ray restarts a judge that died")
    max_batch_groups: int = Field(default=64, ge=1, description="groups judged together")
    timeout_seconds: float = Field(default=60.0, gt=0.0, description="seconds for one batch")
    retries: int = Field(default=2, ge=0, description="further attempts before the group is returned with the reason")
    retry_backoff_seconds: float = Field(
        default=0.5, ge=0.0, description="seconds before the first retry, doubled each time"
    )

    @model_validator(mode="after")
    def _a_request_ends_before_its_batch(self) -> JudgingConfig:
        for judge in self.judges:
            if isinstance(judge, HttpJudgeConfig) and judge.longest_request_seconds > self.timeout_seconds:
                raise ValueError(
                    f"timeout_seconds {self.timeout_seconds:g} is below the {judge.longest_request_seconds:g} s that "
                    f"one request of the judge {judge.kind} may take with its retries; raise the first (and "
                    "replay.lease_seconds with it), or lower the judge's request_timeout_seconds, request_retries or "
                    "longest_pause_seconds"
                )
        return self

    @property
    def judges(self) -> tuple[JudgeKind, ...]:
        """The judge, or the members of an ensemble."""
        if isinstance(self.judge, EnsembleJudgeConfig):
            return tuple(member.judge for member in self.judge.members)
        return (self.judge,)

    @property
    def gpus(self) -> float:
        """GPUs that one judge actor reserves."""
        return sum(getattr(judge, "gpus", 0.0) for judge in self.judges)

    @property
    def longest_seconds(self) -> float:
        """Seconds that one batch may take with all its retries."""
        backoff = self.retry_backoff_seconds * (2**self.retries - 1)
        return self.timeout_seconds * (self.retries + 1) + backoff


class ReplayConfig(Settings):
    """Admission and the replay buffer: how far generation may run ahead of learning."""

    prompts_per_update: int = Field(default=32, ge=1, description="prompts (groups) consumed by one optimizer step")
    updates_per_publish: int = Field(default=1, ge=1, description="optimizer steps per policy version")
    max_staleness: int = Field(
        default=1, ge=0, description="policy versions; S: no consumed token is older. 0 is synchronous and on-policy"
    )
    order: Literal["lease", "ready"] = Field(
        default="lease",
        description="`lease` consumes prompts in the order they were leased and drops nothing; "
        "`ready` takes the first ready ones and drops what is over the bound",
    )
    max_reuse: int = Field(default=1, ge=1, description="times that a group may be consumed; more than 1 needs `ready`")
    lease_seconds: float = Field(
        default=600.0, gt=0.0, description="seconds until an unanswered lease is granted again"
    )
    max_attempts: int = Field(
        default=3, ge=1, description="grants of one lease before its prompt is dropped with the reason"
    )

    @model_validator(mode="after")
    def _reuse_needs_ready_order(self) -> ReplayConfig:
        if self.max_reuse > 1 and self.order == "lease":
            raise ValueError(
                f"max_reuse {self.max_reuse} cannot be met with order 'lease', which consumes every lease once; "
                "set order to 'ready' or max_reuse to 1"
            )
        return self

    @property
    def prompts_per_version(self) -> int:
        """B: prompts consumed between two published versions."""
        return self.prompts_per_update * self.updates_per_publish
