"""Settings of training preference models: what a model reads, its loss and its data.

Light by law: importing this module must not import torch, transformers or pyarrow.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from actors.settings import Settings
from learner.config import OptimizerConfig, TrainerConfig
from learner.stages.config import PassesConfig, PreferenceDataConfig, StageConfig


class WorldPairsConfig(Settings):
    """Preferences of the embedded world, where data.source is `world`, and its policy, where model.path is `world`."""

    task: Literal["transitive", "intransitive"] = Field(
        default="intransitive", description="which closed-form preference is gold"
    )
    pairs: int = Field(default=40_000, ge=2, description="pairs of corpus responses, held-out ones among them")
    labels: Literal["soft", "sampled"] = Field(
        default="soft", description="soft: the gold probability itself; sampled: the winner of one comparison"
    )
    seed: int = Field(default=0, ge=0, description="seed of the pairs, and of the policy's supervised training")
    sft_updates: int = Field(
        default=300, ge=1, description="optimizer steps of supervised training of the small policy"
    )


class PreferenceModelDataConfig(PreferenceDataConfig):
    """Preferences to learn from."""

    source: str = Field(
        description="a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, a hub "
        "data set, `owner/name` or `owner/name:configuration`, or `world`; a prompt, a chosen and a rejected response "
        "a row"
    )
    world: WorldPairsConfig = Field(default_factory=WorldPairsConfig)


class PreferenceModelConfig(Settings):
    """What the model reads, what its outputs mean, and its loss."""

    kind: Literal["bradley_terry", "pairwise", "skew"] = Field(
        default="pairwise",
        description="bradley_terry: a reward, no cycles; pairwise: reads both responses, 2 passes per pair; skew: a "
        "reward and a vector, 1 pass per response, cycles",
    )
    skew_blocks: int = Field(default=4, ge=1, description="rotations of the skew form; its vector has twice as many")
    label_smoothing: float = Field(
        default=0.0, ge=0.0, lt=0.5, description="probability that a label is wrong: p becomes (1 - e) p + e (1 - p)"
    )
    margin: float = Field(
        default=0.0,
        ge=0.0,
        description="above 0, the winner must lead by this many times the source's score difference, and labels are "
        "hard; needs data.probability_from margin or scores",
    )
    calibrate: bool = Field(default=True, description="fit a temperature on the held-out pairs after training")


class PreferencePassesConfig(PassesConfig):
    """How often the data are gone through, and when training ends early."""

    patience: int | None = Field(
        default=3,
        ge=1,
        description="evaluations without a better held-out loss before training ends; the best model is kept. Null: "
        "trains to the end and keeps the last",
    )


class PreferenceTrainerConfig(TrainerConfig):
    """The ranks that train the preference model, and how."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(lr=1e-5))


class PreferenceConfig(StageConfig):
    """What a preference model learns, and how."""

    stage: ClassVar[str] = "learner.stages.preference"

    data: PreferenceModelDataConfig
    preference: PreferenceModelConfig = Field(default_factory=PreferenceModelConfig)
    training: PreferencePassesConfig = Field(default_factory=PreferencePassesConfig)
    learner: PreferenceTrainerConfig = Field(default_factory=PreferenceTrainerConfig)

    @model_validator(mode="after")
    def _a_margin_needs_scores(self) -> PreferenceConfig:
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
