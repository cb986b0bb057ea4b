"""Settings of LoRA. Must not import anything heavy."""

from typing import Any, Literal

from pydantic import Field, field_validator

from actors.settings import Settings

ALL_LINEAR: Literal["all-linear"] = "all-linear"


class LoraConfig(Settings):
    """Low-rank adapters instead of all weights: W x + (alpha / rank) B A x for each adapted layer.

    The base stays frozen and serves as the reference. Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1.
    """

    rank: int = Field(default=16, ge=1, le=512, description="rows of A and columns of B")
    alpha: int = Field(default=32, ge=1, description="the adapter's output is multiplied by alpha / rank")
    targets: Literal["all-linear"] | list[str] = Field(
        default=ALL_LINEAR,
        description="names of the linear layers that get an adapter, such as q_proj; all-linear: all but the head",
    )
    save: Literal["adapter", "merged"] = Field(
        default="adapter",
        description="form of saved models: peft's adapter files, or a whole model with the adapter merged in",
    )

    @field_validator("targets")
    @classmethod
    def _names_are_some(cls, targets: str | list[str]) -> str | list[str]:
        if not targets:
            raise ValueError("targets is empty, so nothing would be trained; name layers such as q_proj, or all-linear")
        return targets

    @property
    def fixed(self) -> dict[str, Any]:
        """Return the settings that may not change on resume."""
        return self.model_dump(include={"rank", "alpha", "targets"})


class PublishedLoraConfig(LoraConfig):
    """Low-rank adapters of a policy that engines sample from."""

    publish: Literal["adapter", "merged"] = Field(
        default="adapter",
        description="what a weight sync sends: the adapter, which engines apply beside their base, or whole weights "
        "with the adapter merged in",
    )


class MergedLoraConfig(LoraConfig):
    """Low-rank adapters of a model that is read whole."""

    save: Literal["merged"] = Field(default="merged", description="form of saved models: whole, as judges read them")
