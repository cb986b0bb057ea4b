"""Settings of the learner: loss, optimizer, DeepSpeed, publication, checkpoints. Must not import anything heavy."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from actors.adapters.config import LoraConfig, PublishedLoraConfig
from actors.foreign.passed_on import checked_environment, checked_labels, checked_resources
from actors.settings import MOST_ACTORS, SMALLEST_SHARE, GpuShare, Settings
from learner.deepspeed_keys import checked_deepspeed
from learner.losses.config import Anchor, AnchorConfig, LossConfig, PairLossConfig

LORA = "train low-rank adapters and keep the weights as they are; unset: train all weights"


class OptimizerConfig(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0.0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW's moment decay rates, each in [0, 1)")
    eps: float = Field(default=1e-8, gt=0.0, description="AdamW's epsilon")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW's decoupled weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="learning rate after warm-up; linear and cosine fall to 0"
    )
    warmup_updates: int = Field(default=0, ge=0, description="optimizer steps of linear warm-up")
    schedule_updates: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps until the schedule ends at 0, warm-up included; unset: all of the run's",
    )
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="largest gradient norm; larger ones are clipped")

    @model_validator(mode="after")
    def _schedule_outlasts_the_warm_up(self) -> Self:
        if self.schedule_updates is not None and self.schedule_updates <= self.warmup_updates:
            raise ValueError(
                f"schedule_updates {self.schedule_updates} with warmup_updates {self.warmup_updates} ends before the "
                "peak learning rate; raise schedule_updates, or lower warmup_updates"
            )
        return self

    @model_validator(mode="after")
    def _betas_in_range(self) -> Self:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must each be at least 0 and below 1")
        return self


_OWN_VARIABLES = {
    "DS_ACCELERATOR": "it follows learner.gpus_per_rank; set that",
    "LOCAL_RANK": "Offbeat sets it for each rank; leave it out",
    "MASTER_ADDR": "the ranks meet on rank 0's host, wherever Ray places it; leave it out",
    "MASTER_PORT": "it follows learner.port; set that",
    "OMP_NUM_THREADS": "it follows learner.cpus_per_rank; set that",
    "RANK": "Offbeat sets it for each rank; leave it out",
    "WORLD_SIZE": "it follows learner.ranks; set that",
}
"""Variables that Offbeat sets for a rank's process, and what to do instead."""


class TrainerConfig(Settings):
    """Ranks that train one model: resources, precision, batching and optimizer."""

    ranks: int = Field(
        default=1,
        ge=1,
        le=MOST_ACTORS,
        description="learner processes, data-parallel unless sequence_parallel says so",
    )
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="consecutive ranks that split each sequence between them, for long ones; divides ranks",
    )
    gpus_per_rank: GpuShare = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of a GPU per rank, reserved from Ray; 0: train on CPU, below 1: generators and judges may "
        "share its card",
    )
    cpus_per_rank: float = Field(
        default=1.0, ge=SMALLEST_SHARE, description="CPU cores per rank, reserved from Ray; its threads"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage; bfloat16 needs at least 1")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="weights and activations; optimizer state is float32"
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype in which ranks add up gradients; bfloat16 sends half the bytes. They accumulate in float32",
    )
    lora: LoraConfig | None = Field(default=None, description=LORA)
    offload_weights: bool = Field(
        default=False,
        description="weights in host memory, gathered on the GPU layer by layer (ZeRO 3 on GPUs); for a frozen base "
        "under adapters",
    )
    offload_optimizer: bool = Field(default=False, description="optimizer state in host memory (ZeRO 1-3 on GPUs)")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in the backward pass")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="padded tokens per forward pass on one rank; larger batches are accumulated"
    )
    logprob_chunk: int = Field(default=512, ge=1, description="tokens per chunk of logits, which bounds their memory")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    max_skipped_updates: int = Field(
        default=5, ge=0, description="updates skipped for a non-finite loss or gradient before the run stops"
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="port on rank 0's host; unset: a free one")
    seed: int = Field(default=0, ge=0, description="seed of the learner's random state")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables of the ranks' processes"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources that each rank reserves from Ray: name and amount"
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that each rank may run on, as Ray's label selector"
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="more of DeepSpeed's configuration, merged into Offbeat's; what other settings decide is refused",
    )

    _variables = field_validator("environment", mode="before")(partial(checked_environment, owned=_OWN_VARIABLES))
    _amounts = field_validator("resources", mode="before")(checked_resources)
    _selector = field_validator("labels", mode="before")(checked_labels)

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _keys_are_free(cls, given: Any) -> Any:
        return checked_deepspeed(given)

    @model_validator(mode="after")
    def _every_rank_has_a_card(self) -> Self:
        share = self.gpus_per_rank
        if self.ranks > 1 and 0.0 < share <= 0.5:
            raise ValueError(
                f"gpus_per_rank {share:g} with ranks {self.ranks}: two ranks could get the same GPU, which NCCL "
                "refuses; set gpus_per_rank to 1, or above 0.5 if other roles share the cards, or ranks to 1"
            )
        return self

    @model_validator(mode="after")
    def _only_gathered_weights_can_be_elsewhere(self) -> Self:
        if self.offload_weights and self.zero_stage != 3:
            raise ValueError(
                f"offload_weights with zero_stage {self.zero_stage}: only stage 3 gathers weights when they are "
                "needed; set zero_stage to 3, or offload_weights to false"
            )
        return self

    @model_validator(mode="after")
    def _ranks_form_groups(self) -> Self:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} does not divide ranks {self.ranks}; set ranks to a "
                f"multiple of {self.sequence_parallel}, or lower sequence_parallel"
            )
        return self

    @property
    def pass_tokens(self) -> int:
        """Padded tokens of a forward pass, on all ranks that share it."""
        return self.micro_batch_tokens * self.sequence_parallel

    @model_validator(mode="after")
    def _only_an_offloaded_optimizer_has_settings(self) -> Self:
        if "offload_optimizer" in self.deepspeed.get("zero_optimization", {}) and not self.offload_optimizer:
            raise ValueError(
                "deepspeed.zero_optimization.offload_optimizer has no effect with offload_optimizer false; set that to "
                "true, or leave the first out"
            )
        return self

    @model_validator(mode="after")
    def _only_gradients_in_bfloat16_are_reduced_in_it(self) -> Self:
        if self.reduce_dtype == "bfloat16" and self.dtype == "float32":
            raise ValueError(
                "reduce_dtype bfloat16 with dtype float32 would round gradients that are computed in float32; set "
                "reduce_dtype to float32, or dtype to bfloat16"
            )
        return self

    @model_validator(mode="after")
    def _bfloat16_needs_zero(self) -> Self:
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 0 with dtype bfloat16 trains without float32 master weights, unlike every other setting; "
                "set zero_stage to 1 or more, or dtype to float32"
            )
        return self


class GroupTrainerConfig(TrainerConfig):
    """Ranks that train on several completions of a prompt."""

    share_prompts: bool = Field(
        default=True,
        description="compute a prompt once for all its completions, without padding, if the architecture allows it",
    )

    @model_validator(mode="after")
    def _split_sequences_share_rows(self) -> Self:
        if self.sequence_parallel > 1 and not self.share_prompts:
            raise ValueError(
                f"sequence_parallel {self.sequence_parallel} splits rows without padding, which share_prompts false "
                "does not make; set share_prompts to true, or sequence_parallel to 1"
            )
        return self


class LearnerConfig(GroupTrainerConfig):
    """The learner's ranks, and their loss."""

    lora: PublishedLoraConfig | None = Field(default=None, description=LORA)
    loss: LossConfig = Field(
        default_factory=PairLossConfig, discriminator="kind", description="on pairs, scores or games; unset: dpo"
    )
    offload_reference: bool = Field(
        default=False, description="frozen reference in host memory, on the GPU one module at a time (on GPUs)"
    )
    anchor: AnchorConfig = Field(default_factory=AnchorConfig)
    average_last: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="share of the run, at its end, whose weights are averaged; written as final-average/ and evaluated "
        "beside final/. 0: none",
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _dpo_by_default(cls, loss: Any) -> Any:
        return {"kind": "dpo", **loss} if isinstance(loss, dict) else loss

    @model_validator(mode="after")
    def _an_anchor_joins_a_pull(self) -> Self:
        if self.anchor.weight and self.loss.kind == "best_of_n":
            raise ValueError(
                f"anchor.weight {self.anchor.weight:g} with loss.kind best_of_n, which has no pull to a reference that "
                "an anchor could join; set anchor.weight to 0, or choose another loss"
            )
        return self

    @model_validator(mode="after")
    def _an_average_needs_whole_weights(self) -> Self:
        if self.loss.opponent is not None and self.loss.opponent.kind == "ema" and self.zero_stage == 3:
            raise ValueError(
                "loss.opponent.kind ema needs unsharded weights, and zero_stage 3 shards them; set zero_stage to 2 or "
                "less, or choose another opponent"
            )
        return self

    @model_validator(mode="after")
    def _an_average_is_no_adapter(self) -> Self:
        ema = self.loss.opponent is not None and self.loss.opponent.kind == "ema"
        if ema and self.lora is not None and self.lora.publish == "adapter":
            raise ValueError(
                "lora.publish adapter with loss.opponent.kind ema: the average of adapted weights is no adapter; set "
                "lora.publish to merged"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Everything that one learner rank is built from. Made by the wiring; read by worker and engine."""

    config: LearnerConfig
    model_dir: str
    reference_dir: str | None = None  # None: `model_dir`
    with_reference: bool = True
    """True if the ranks hold the reference; otherwise every completion brings its reference log-probs."""
    tokenizer_dir: str | None = None  # None: `model_dir`
    total_updates: int  # length of the learning-rate schedule (updates)
    anchor: Anchor | None = None
    temperature: float = 1.0
    """Sampling temperature; divides the logits of policy and reference."""
    head_dtype: str = "model"  # of the logits; float32, or that of the weights
    ends: tuple[int, ...] = ()
    """Token ids that end an answer, which saved models name; empty keeps the directory's own."""
    canary_prompt: tuple[int, ...] = (0,)  # token ids of the prompt whose answer learner and engines score
    canary_tokens: int = 32  # length of that answer
    failed_batches_dir: str | None = None
    """Receives the batches of skipped updates; None keeps none."""
