"""Settings of the learner: loss, optimizer, DeepSpeed, publication, checkpoints. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from actors.settings import Settings


class PairLossTerms(Settings):
    """What every loss on pairs reads."""

    kind: str = Field(default="dpo", description="which loss")
    beta: float = Field(
        default=0.1,
        gt=0.0,
        description="pair losses: strength of the pull to the reference; IPO's tau and SLiC's 1/margin slope alike",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0.0,
        lt=0.5,
        description="pair losses: probability that the preference is taken to be the other way round",
    )


class PairLossConfig(PairLossTerms):
    """A loss on pairs that are given."""

    kind: Literal["dpo", "ipo", "slic"] = Field(
        default="dpo", description="dpo (logistic), ipo (squared) or slic (hinge)"
    )


class LossConfig(PairLossTerms):
    """The loss and its strength: on pairs (the best and worst completion of a prompt) or on games (all of them)."""

    kind: Literal["dpo", "ipo", "slic", "nash_pg", "online_ipo", "ipo_md", "reward_pg"] = Field(
        default="dpo",
        description="on pairs: dpo (logistic), ipo (squared), slic (hinge); on games against `opponent`: nash_pg "
        "(Nash-MD-PG, Nash-EMA-PG, self-play), online_ipo, ipo_md; on scores alone: reward_pg (policy gradient)",
    )
    tau: float = Field(
        default=0.05, gt=0.0, description="other losses: weight of KL(policy || reference) against the preference"
    )

    @property
    def on_pairs(self) -> bool:
        """Whether the loss consumes pairs; the others consume games."""
        return self.kind in ("dpo", "ipo", "slic")

    @property
    def has_opponent(self) -> bool:
        """Whether the loss compares the policy with an opponent."""
        return self.kind in ("nash_pg", "online_ipo", "ipo_md")


class CorrectionConfig(Settings):
    """How losses on games correct for completions that older policies sampled."""

    baseline: Literal["leave_one_out", "constant"] = Field(
        default="leave_one_out",
        description="leave_one_out: the mean advantage of the prompt's other players; constant: 1/2 (0 for reward_pg), "
        "as in the paper, biased once completions are stale unless players are weighted",
    )
    kl: Literal["sequence", "reward_to_go"] = Field(
        default="sequence",
        description="log-ratio that a token's gradient is charged with: of the whole completion, or of the token and "
        "those after it, biased once completions are stale unless players are weighted",
    )
    players: Literal["none", "token", "sequence"] = Field(
        default="none", description="importance weights policy / behaviour of the players"
    )
    player_cap: float = Field(default=2.0, ge=1.0, description="largest weight of a player (of a token, with `token`)")
    opponents: Literal["none", "token", "sequence"] = Field(
        default="sequence",
        description="importance weights opponent / behaviour of the opponents: none, the product of capped token "
        "weights, or the capped product",
    )
    opponent_cap: float = Field(
        default=2.0, ge=1.0, description="largest weight of an opponent (of a token, with `token`)"
    )
    beyond_cap: Literal["truncate", "mask"] = Field(
        default="truncate", description="weights outside [1/cap, cap]: cut to cap from above, or set to 0 on both sides"
    )

    @model_validator(mode="after")
    def _a_mask_leaves_something(self) -> CorrectionConfig:
        caps = {"player_cap": (self.players, self.player_cap), "opponent_cap": (self.opponents, self.opponent_cap)}
        emptied = [name for name, (level, cap) in caps.items() if level != "none" and cap <= 1.0]
        if self.beyond_cap == "mask" and emptied:
            raise ValueError(
                f"{' and '.join(emptied)} 1 with beyond_cap mask sets every weight that is not exactly 1 to 0; raise "
                "the cap above 1, or set beyond_cap to truncate"
            )
        return self


class OptimizerConfig(Settings):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-6, gt=0.0, description="peak learning rate")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW's moment decay rates, each in [0, 1)")
    eps: float = Field(default=1e-8, gt=0.0, description="AdamW's epsilon")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW's decoupled weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="after warm-up; the last two fall to 0"
    )
    warmup_updates: int = Field(default=0, ge=0, description="optimizer steps of linear warm-up")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="gradient norm is clipped to it")

    @model_validator(mode="after")
    def _betas_in_range(self) -> OptimizerConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must each be at least 0 and below 1")
        return self


class TrainerConfig(Settings):
    """Ranks that train one model, and how."""

    ranks: int = Field(default=1, ge=1, description="data-parallel learner processes")
    gpus_per_rank: float = Field(
        default=0.0, ge=0.0, description="GPUs that each rank reserves from Ray; 0 trains on CPU"
    )
    cpus_per_rank: float = Field(
        default=1.0, gt=0.0, description="CPU cores that each rank reserves from Ray; also its threads"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage; bfloat16 needs at least 1")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="weights and activations; optimizer state is float32"
    )
    offload_optimizer: bool = Field(default=False, description="optimizer state in host memory (ZeRO 1-3 on GPUs)")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass to save memory"
    )
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="padded tokens per forward pass on one rank; what exceeds them is accumulated"
    )
    logprob_chunk: int = Field(
        default=512, ge=1, description="tokens whose logits exist at a time in the chunked log-prob"
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    max_skipped_updates: int = Field(
        default=5, ge=0, description="updates skipped for a non-finite loss or gradient before the run stops"
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="port on rank 0's host where the ranks meet; unset: a free one"
    )
    seed: int = Field(default=0, ge=0, description="seed of the learner's random state")

    @model_validator(mode="after")
    def _bfloat16_needs_zero(self) -> Self:
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 0 with dtype bfloat16 trains without float32 master weights and diverges from every other "
                "setting; set zero_stage to 1 or more, or dtype to float32"
            )
        return self


class LearnerConfig(TrainerConfig):
    """The learner's ranks and how they train."""

    loss: LossConfig = Field(default_factory=LossConfig)
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig)


class PublicationConfig(Settings):
    """How weights reach the generators."""

    transport: Literal["shm", "object_store", "nccl", "ipc"] = Field(
        default="shm",
        description="shm: one host; object_store: many hosts; nccl: GPUs; ipc: generator and learner on one GPU",
    )
    chunk_mib: int = Field(default=256, ge=1, description="MiB per message of the object_store transport")
    timeout_seconds: float = Field(default=600.0, gt=0.0, description="seconds for one generator to take one version")
    canary_tokens: int = Field(
        default=32, ge=2, description="length of the fixed sequence that learner and engines both score"
    )


class CheckpointConfig(Settings):
    """When the run is saved and how much is kept."""

    every_updates: int = Field(
        default=100, ge=0, description="optimizer steps between checkpoints; 0 saves only at the end or on an interrupt"
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept, newest first")
