"""Settings of `offbeat data`, the preparation of preference data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from actors.data.config import Template
from actors.settings import Settings


class CeilingConfig(Settings):
    """Rule 1: drops pairs with a response that the model would never produce."""

    kind: Literal["off", "sampled", "file", "value"] = Field(
        default="off",
        description="where the highest log-perplexity comes from; sampled: responses that the model gives to prompts "
        "of the data; file: samples of the model in `source`; value: `log_perplexity`",
    )
    quantile: float = Field(
        default=0.99, gt=0.0, le=1.0, description="of the log-perplexities of the model's own samples"
    )
    samples: int = Field(default=512, ge=1, description="responses to sample, at temperature 1; kind sampled")
    max_new_tokens: int = Field(default=256, ge=1, description="tokens per sampled response; kind sampled")
    source: str | None = Field(
        default=None, description="file with the columns prompt and response, sampled from the model; kind file"
    )
    log_perplexity: float | None = Field(default=None, description="nats per token; kind value")

    @model_validator(mode="after")
    def _the_kind_has_what_it_needs(self) -> CeilingConfig:
        needed = {"file": "source", "value": "log_perplexity"}
        for kind, name in needed.items():
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
        """Whether any rule is on."""
        return self.ceiling.kind != "off" or self.max_gap is not None or self.mistakes_only


class DataConfig(Settings):
    """One preparation of preference data."""

    source: str = Field(
        description="a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, or a "
        "hub data set, `owner/name` or `owner/name:configuration`"
    )
    split: str = Field(default="train", description="split, for data sets that have several")
    output: str = Field(description="directory to write, which must not hold anything yet")
    on_malformed: Literal["error", "skip"] = Field(
        default="error", description="`error` names file and line and stops; `skip` leaves the row out and counts it"
    )
    probability_from: Literal["probability", "margin", "scores"] = Field(
        default="probability",
        description="that chosen is preferred; probability: the column of that name, else 1; margin: sigmoid of the "
        "column; scores: sigmoid of score_chosen - score_rejected",
    )
    model: str | None = Field(
        default=None,
        description="directory or hub name of the policy that will be trained, usually after supervised fine-tuning; "
        "unset: no perplexities",
    )
    tokenizer: str | None = Field(default=None, description="directory or hub name; unset: the model's own, if any")
    template: Template = Field(
        default="{prompt}", description="what the model sees a text prompt in; the written rows hold the prompt alone"
    )
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="tokens; a longer prompt is a malformed row")
    max_response_tokens: int | None = Field(
        default=None, ge=2, description="tokens, end-of-sequence included; a longer response is a malformed row"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="weights of the model")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    micro_batch_tokens: int = Field(default=8192, ge=1, description="padded tokens that the model takes together")
    deduplicate: bool = Field(
        default=True, description="whether rows that only differ in white space or Unicode's form are kept once"
    )
    contradictory: Literal["keep", "drop"] = Field(
        default="keep", description="what is done with pairs that occur both ways round; drop: all their rows go"
    )
    filters: FilterConfig = Field(default_factory=FilterConfig)
    validation_fraction: float = Field(default=0.05, ge=0.0, lt=1.0, description="share of the prompts held out")
    seed: int = Field(default=0, ge=0, description="seed of the split and of sampled responses")

    @model_validator(mode="after")
    def _what_needs_a_model_has_one(self) -> DataConfig:
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
    """Configuration file and overrides of the command's arguments: the first may be a file, or the source itself."""
    if not arguments or "=" in arguments[0]:
        return None, list(arguments)
    first, *overrides = arguments
    if first.endswith((".yaml", ".yml")):
        return first, overrides
    quoted = first.replace("'", "''")
    return None, [f"source='{quoted}'", *overrides]
