"""Settings of the stages before the loop: supervised fine-tuning and what else learns from a fixed data set.

Light by law: importing this module must not import torch, transformers or pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, model_validator

from actors.data.config import DemonstrationConfig, PreferenceSourceConfig
from actors.settings import Settings
from learner.config import OptimizerConfig, PairLossConfig, TrainerConfig

SCRATCH = "scratch"
"""Stands in model.path for a small model made of the data."""


class ScratchConfig(Settings):
    """A small Llama with random weights and a byte-level BPE tokenizer trained on the data, where model.path is
    `scratch`."""

    vocabulary: int = Field(default=2048, ge=300, description="tokens; every byte and every digit is one")
    layers: int = Field(default=4, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    head_size: int = Field(default=32, ge=32, description="dimensions of a head; vLLM's CPU attention takes 32 or more")
    max_tokens: int = Field(default=1024, ge=2, description="longest sequence, tokens")
    seed: int = Field(default=0, ge=0, description="seed of the random weights")


class BaseModelConfig(Settings):
    """The model to start from."""

    path: str = Field(description="Hugging Face directory or hub name; `scratch` makes a small one")
    tokenizer: str | None = Field(default=None, description="directory or hub name; unset: the model's own")
    scratch: ScratchConfig = Field(default_factory=ScratchConfig)


class PassesConfig(Settings):
    """How often the data are gone through, and when training ends early."""

    epochs: float = Field(default=1.0, gt=0.0, description="times that the training examples are gone through")
    batch_size: int = Field(default=32, ge=1, description="examples per optimizer step")
    evaluate_every: int = Field(
        default=50, ge=0, description="optimizer steps between evaluations on the held-out examples; 0: at the end only"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations without a better held-out loss before training ends; the best model is kept. Unset: "
        "trains to the end and keeps the last",
    )
    seed: int = Field(default=0, ge=0, description="seed of the order; every epoch is shuffled anew")

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> PassesConfig:
        if self.patience is not None and self.evaluate_every == 0:
            raise ValueError(
                f"patience {self.patience} counts evaluations and evaluate_every 0 makes none; set it to 1 or more, or "
                "leave patience unset"
            )
        return self

    def updates(self, examples: int) -> int:
        """Optimizer steps for `examples` training examples."""
        return max(1, round(self.epochs * examples / self.batch_size))


class StageConfig(Settings):
    """What every stage has."""

    stage: ClassVar[str]
    """Module whose `make_stage(config, model_dir, data_dir)` makes the `trainer.Stage` on every rank."""

    model: BaseModelConfig
    training: PassesConfig = Field(default_factory=PassesConfig)
    learner: TrainerConfig = Field(default_factory=TrainerConfig)

    @property
    def fixed(self) -> dict[str, Any]:
        """Settings that a resumed run must share with the saved one, beside its examples."""
        training = {f"training.{name}": getattr(self.training, name) for name in ("epochs", "batch_size", "seed")}
        scratch = {"model.scratch": self.model.scratch.model_dump()} if self.model.path == SCRATCH else {}
        return {"model.path": self.model.path, **scratch, **training}


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything that one rank of a stage is built from. Made by the wiring; read by `StageWorker`."""

    config: StageConfig
    model_dir: str
    """The model to start from, with its tokenizer."""
    data_dir: str
    """Tokenised examples."""
    total_updates: int
    """Length of the learning-rate schedule."""
    failed_batches_dir: str | None = None
    """Receives the batches of skipped updates."""


class SftTrainerConfig(TrainerConfig):
    """The ranks that fine-tune, and how."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=1e-5))
    packing: bool = Field(
        default=True, description="several examples in one row, none of which sees another; False: one example per row"
    )


class SftConfig(StageConfig):
    """What supervised fine-tuning learns, and how."""

    stage: ClassVar[str] = "learner.stages.sft"

    data: DemonstrationConfig
    learner: SftTrainerConfig = Field(default_factory=SftTrainerConfig)


class PreferenceDataConfig(PreferenceSourceConfig):
    """Preferences to learn from."""

    max_prompt_tokens: int = Field(default=512, ge=1, description="tokens; a longer prompt is a malformed row")
    max_response_tokens: int = Field(default=512, ge=1, description="tokens; a longer response is a malformed row")


class DpoTrainerConfig(TrainerConfig):
    """The ranks that learn from preferences, and how."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=5e-7))
    loss: PairLossConfig = Field(default_factory=PairLossConfig)


class DpoConfig(StageConfig):
    """What offline preference learning learns, and how."""

    stage: ClassVar[str] = "learner.stages.dpo"

    data: PreferenceDataConfig
    reference: str | None = Field(
        default=None,
        description="directory or hub name of the frozen reference, of the model's vocabulary; unset: the model "
        "itself, as it starts",
    )
    learner: DpoTrainerConfig = Field(default_factory=DpoTrainerConfig)

    @property
    def fixed(self) -> dict[str, Any]:
        return super().fixed | {"reference": self.reference}
