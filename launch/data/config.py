"""Settings of `offbeat data`. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from actors.data.config import ChatTemplateConfig, PreferenceSourceConfig
from actors.settings import ModelPath, OutputPath, Settings


class CeilingConfig(Settings):
    """Rule 1: drops pairs with a response that the model would never produce."""

    kind: Literal["off", "sampled", "file", "value"] = Field(
        default="off",
        description="source of the highest log-perplexity; sampled: the model's responses to prompts of the data; "
        "file: samples of the model in `source`; value: `log_perplexity`",
    )
    quantile: float = Field(
        default=0.99, gt=0.0, le=1.0, description="quantile of the log-perplexities of the model's own samples"
    )
    samples: int = Field(default=512, ge=1, description="responses to sample, at temperature 1; kind sampled")
    max_new_tokens: int = Field(default=256, ge=1, description="tokens per sampled response; kind sampled")
    source: str | None = Field(
        default=None, description="file with the columns prompt and response, sampled from the model; kind file"
    )
    log_perplexity: float | None = Field(default=None, description="nats per token; kind value")

    @model_validator(mode="after")
    def _check_kind(self) -> CeilingConfig:
        for kind, name in {"file": "source", "value": "log_perplexity"}.items():
            given = getattr(self, name) is not None
            if given != (self.kind == kind):
                problem = f"is set and kind is {self.kind}" if given else "is missing"
                raise ValueError(f"{name} {problem}; kind {kind} needs it and the other kinds do not read it")
        return self


class FilterConfig(Settings):
    """Rules on the log-perplexity of responses under the model; each may be off, and all need `model`."""

    ceiling: CeilingConfig = Field(default_factory=CeilingConfig)
    max_gap: float | None = Field(
        default=None,
        ge=0.0,
        description="nats per token; rule 2 drops pairs whose log-perplexities differ by more. Unset: off",
    )
    mistakes_only: bool = Field(
        default=False,
        description="rule 3 keeps only pairs whose rejected response is at least as likely, per token, as the chosen",
    )

    @property
    def active(self) -> bool:
        """Return whether any rule is on."""
        return self.ceiling.kind != "off" or self.max_gap is not None or self.mistakes_only


class DataConfig(ChatTemplateConfig, PreferenceSourceConfig):
    """One preparation of preference data."""

    output: OutputPath = Field(description="directory to write, which must be empty or absent")
    model: ModelPath | None = Field(
        default=None,
        description="directory or hub name of the policy to train, usually after supervised fine-tuning; unset: no "
        "perplexities",
    )
    tokenizer: ModelPath | None = Field(
        default=None, description="directory or hub name; unset: the model's own, if any"
    )
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="tokens; a longer prompt is a malformed row")
    max_response_tokens: int | None = Field(
        default=None, ge=2, description="tokens, end-of-sequence included; a longer response is a malformed row"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights of the model")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one")
    micro_batch_tokens: int = Field(default=8192, ge=1, description="padded tokens in one forward pass of the model")
    deduplicate: bool = Field(
        default=True, description="keep one of the rows that differ only in white space or Unicode's form"
    )
    contradictory: Literal["keep", "drop"] = Field(
        default="keep", description="pairs that occur both ways round; drop: all their rows go"
    )
    filters: FilterConfig = Field(default_factory=FilterConfig)
    seed: int = Field(default=0, ge=0, description="seed of the split and of sampled responses")

    @model_validator(mode="after")
    def _check_model(self) -> DataConfig:
        if self.filters.active and self.model is None:
            raise ValueError(
                "filters are on and model is unset; pass model=DIRECTORY, whose perplexities they compare, or turn "
                "them off"
            )
        limits = self.max_prompt_tokens is not None or self.max_response_tokens is not None
        if limits and self.model is None and self.tokenizer is None:
            raise ValueError(
                "max_prompt_tokens and max_response_tokens count tokens, and tokenizer and model are unset; pass "
                "tokenizer=DIRECTORY or leave the limits out"
            )
        return self


def file_and_overrides(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split the command's arguments into configuration file and overrides; the first may be a file or the source."""
    if not arguments or "=" in arguments[0]:
        return None, list(arguments)
    first, *overrides = arguments
    if first.endswith((".yaml", ".yml")):
        return first, overrides
    quoted = first.replace("'", "''")
    return None, [f"source='{quoted}'", *overrides]
