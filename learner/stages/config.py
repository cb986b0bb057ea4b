"""Settings of the stages, which train on a fixed data set: supervised fine-tuning, DPO and preference models.

Must not import torch, transformers or pyarrow.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from actors.adapters.config import MergedLoraConfig
from actors.data.config import ChatTemplateConfig, DemonstrationConfig, HeldOutConfig, PreferenceSourceConfig
from actors.settings import ModelPath, Settings
from learner.config import LORA, GroupTrainerConfig, OptimizerConfig, TrainerConfig
from learner.losses.config import PairLossConfig

VALIDATION_SPLIT = "data.validation_split"
"""A setting that checkpoints of older runs do not name: they held out a share of every source."""
SCRATCH = "scratch"
"""Value of model.path for a small model built from the data."""
_PATIENCE = (
    "stop after this many evaluations without a lower held-out loss, and keep the best model; null: train to the end "
    "and keep the last model"
)


class ScratchConfig(Settings):
    """A small Llama with random weights and a byte-level BPE tokenizer trained on the data: model.path `scratch`."""

    vocabulary: int = Field(
        default=2048, ge=300, le=1_000_000, description="tokens; every byte and every digit has one"
    )
    layers: int = Field(default=4, ge=1, le=1000, description="decoder layers")
    heads: int = Field(default=4, ge=1, le=1000, description="attention heads")
    head_size: int = Field(
        default=32, ge=32, le=1000, description="dimensions per head; vLLM's CPU attention needs 32 or more"
    )
    max_tokens: int = Field(default=1024, ge=2, description="longest sequence, tokens")
    seed: int = Field(default=0, ge=0, description="seed of the random weights")


class BaseModelConfig(ChatTemplateConfig):
    """The model to start from."""

    path: ModelPath = Field(description="Hugging Face directory or hub name; `scratch` builds a small model")
    tokenizer: ModelPath | None = Field(default=None, description="directory or hub name; unset: the model's own")
    scratch: ScratchConfig = Field(default_factory=ScratchConfig)


class PassesConfig(Settings):
    """Passes over the data, and early stopping."""

    epochs: float = Field(default=1.0, gt=0.0, le=100_000.0, description="passes over the training examples")
    batch_size: int = Field(default=32, ge=1, description="examples per optimizer step")
    evaluate_every: int = Field(
        default=50, ge=0, description="optimizer steps between held-out evaluations; 0: only at the end"
    )
    patience: int | None = Field(default=None, ge=1, description=_PATIENCE)
    seed: int = Field(default=0, ge=0, description="seed of the order; each epoch is shuffled anew")

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.patience is not None and self.evaluate_every == 0:
            raise ValueError(
                f"patience {self.patience} counts evaluations and evaluate_every 0 makes none; set it to 1 or more, or "
                "leave patience unset"
            )
        return self

    def updates(self, examples: int) -> int:
        """Count the optimizer steps for `examples` training examples."""
        return max(1, round(self.epochs * examples / self.batch_size))


class StageConfig(Settings):
    """Base of all stages."""

    stage: ClassVar[str]
    """Module whose `make_stage(config, model_dir, data_dir)` builds the `stage.Stage` on every rank."""

    model: BaseModelConfig
    data: HeldOutConfig
    training: PassesConfig = Field(default_factory=PassesConfig)
    learner: TrainerConfig = Field(default_factory=TrainerConfig)

    @property
    def fixed(self) -> dict[str, Any]:
        """Settings that may not change on resume."""
        training = {f"training.{name}": getattr(self.training, name) for name in ("epochs", "batch_size", "seed")}
        data = {VALIDATION_SPLIT: self.data.validation_split}
        scratch = {"model.scratch": self.model.scratch.model_dump()} if self.model.path == SCRATCH else {}
        passed: dict[str, Any] = {"learner.deepspeed": self.learner.deepspeed}
        if self.learner.lora is not None:
            passed["learner.lora"] = self.learner.lora.fixed
        return {"model.path": self.model.path, **scratch, **data, **training, **passed}


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Everything that one rank of a stage is built from. Made by the wiring; read by `StageWorker`."""

    config: StageConfig
    model_dir: str  # directory of the starting model and its tokenizer
    data_dir: str  # directory of the tokenised examples
    total_updates: int  # length of the learning-rate schedule
    failed_batches_dir: str | None = None
    """Receives the batches of skipped updates; None keeps none."""
    ends: tuple[int, ...] = ()
    """Token ids that end an answer, which saved models name; empty keeps the directory's own."""


class FineTuningConfig(TrainerConfig):
    """Ranks and optimizer, with the learning rate of fine-tuning."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=1e-5))


class SftTrainerConfig(GroupTrainerConfig):
    """Ranks and optimizer of supervised fine-tuning."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=1e-5))
    packing: bool = Field(
        default=True,
        description="several examples per row, with attention within each; without padding if share_prompts is true",
    )


class SftConfig(StageConfig):
    """Supervised fine-tuning."""

    stage: ClassVar[str] = "learner.stages.sft"

    data: DemonstrationConfig
    learner: SftTrainerConfig = Field(default_factory=SftTrainerConfig)


class PreferenceDataConfig(PreferenceSourceConfig, HeldOutConfig):
    """Preferences to learn from."""

    max_prompt_tokens: int = Field(default=512, ge=1, description="tokens; a longer prompt is a malformed row")
    max_response_tokens: int = Field(default=512, ge=1, description="tokens; a longer response is a malformed row")


class DpoTrainerConfig(GroupTrainerConfig):
    """Ranks, optimizer and loss of offline preference learning."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=5e-7))
    loss: PairLossConfig = Field(default_factory=PairLossConfig)


class DpoConfig(StageConfig):
    """Offline preference learning."""

    stage: ClassVar[str] = "learner.stages.dpo"

    data: PreferenceDataConfig
    reference: ModelPath | None = Field(
        default=None,
        description="directory or hub name of the frozen reference, with the model's vocabulary; unset: the starting "
        "model itself",
    )
    learner: DpoTrainerConfig = Field(default_factory=DpoTrainerConfig)

    @property
    def fixed(self) -> dict[str, Any]:
        return super().fixed | {"reference": self.reference}


class WorldPairsConfig(Settings):
    """Preferences of the embedded world, for data.source `world`, and its policy, for model.path `world`."""

    task: Literal["transitive", "intransitive"] = Field(default="intransitive", description="gold preference")
    pairs: int = Field(default=40_000, ge=2, description="pairs of corpus responses, including held-out pairs")
    labels: Literal["soft", "sampled"] = Field(default="soft", description="gold probability, or a sampled winner")
    seed: int = Field(default=0, ge=0, description="seed of the pairs and of the policy's supervised training")
    sft_updates: int = Field(default=300, ge=1, description="optimizer steps of the policy's supervised training")


class PreferenceModelDataConfig(PreferenceDataConfig):
    """Preferences to learn from."""

    source: str = Field(
        description="a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, a hub "
        "data set, `owner/name` or `owner/name:configuration`, or `world`; each row has a prompt, a chosen and a "
        "rejected response"
    )
    world: WorldPairsConfig = Field(default_factory=WorldPairsConfig)


class PreferenceModelConfig(Settings):
    """Form of the preference model, and its loss."""

    kind: Literal["bradley_terry", "pairwise", "skew"] = Field(
        default="pairwise",
        description="bradley_terry: a reward, no cycles; pairwise: reads both responses, 2 passes per pair; skew: a "
        "reward and a vector, 1 pass per response, cycles",
    )
    skew_blocks: int = Field(default=4, ge=1, description="rotations of the skew form; its vector has twice as many")
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5, description="assumed probability of a flipped label")
    margin: float = Field(
        default=0.0,
        ge=0.0,
        description="above 0, the winner must lead by this many times the source's score difference, and labels are "
        "hard; needs data.probability_from margin or scores",
    )
    calibrate: bool = Field(default=True, description="fit a temperature on the held-out pairs after training")


class PreferenceTrainerConfig(FineTuningConfig):
    """Ranks and optimizer of a preference model."""

    lora: MergedLoraConfig | None = Field(default=None, description=LORA)


class PreferencePassesConfig(PassesConfig):
    """Passes over the data, and early stopping."""

    patience: int | None = Field(default=3, ge=1, description=_PATIENCE)


class PreferenceConfig(StageConfig):
    """Training of a preference model."""

    stage: ClassVar[str] = "learner.stages.preference"

    data: PreferenceModelDataConfig
    preference: PreferenceModelConfig = Field(default_factory=PreferenceModelConfig)
    training: PreferencePassesConfig = Field(default_factory=PreferencePassesConfig)
    learner: PreferenceTrainerConfig = Field(default_factory=PreferenceTrainerConfig)

    @model_validator(mode="after")
    def _sequences_stay_whole(self) -> Self:
        if self.learner.sequence_parallel > 1:
            raise ValueError(
                f"learner.sequence_parallel {self.learner.sequence_parallel} splits sequences, and a preference model "
                "reads its answer from the last token of a whole one; set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _a_margin_needs_scores(self) -> Self:
        if self.preference.margin and self.data.probability_from == "probability":
            raise ValueError(
                f"preference.margin {self.preference.margin:g} is in units of the source's score difference, and "
                "data.probability_from is probability; set that to margin or scores, or preference.margin to 0"
            )
        return self

    @property
    def fixed(self) -> dict[str, Any]:
        settings = {f"preference.{name}": value for name, value in self.preference.model_dump().items()}
        return super().fixed | settings
