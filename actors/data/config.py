"""Settings of every data source: prompts, demonstrations, preferences. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from actors.settings import WORLD, Settings


def _has_prompt(template: str) -> str:
    if template.count("{prompt}") != 1:
        raise ValueError(
            f"given {template[:80]!r}, which holds {{prompt}} {template.count('{prompt}')} times; a template must hold "
            "{prompt} once: put it where the prompt goes"
        )
    return template


Template = Annotated[str, AfterValidator(_has_prompt)]  # text with one `{prompt}`; other braces are kept
ProbabilityFrom = Literal["probability", "margin", "scores"]


SHIPPED_PROMPTS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.jsonl"))}
"""Prompt files that come with Offbeat, by the name that prompts.source accepts for each."""


_GIVEN_BY_US = {"messages", "tools", "documents", "add_generation_prompt"}


def _checked_names(options: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name in options if not name.isidentifier() or name in _GIVEN_BY_US]
    if wrong:
        raise ValueError(f"{wrong[0]!r} cannot be set; allowed are variables of the template's own")
    return options


class ChatTemplateConfig(Settings):
    """A tokenizer's way of writing chats. Part of the section that names the tokenizer."""

    chat_template: str | None = Field(
        default=None, description="Jinja file, or Jinja text, to use for chats; unset: the tokenizer's own template"
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_checked_names)] = Field(
        default_factory=dict, description="variables for the chat template, such as `enable_thinking: false`"
    )


class SourceConfig(Settings):
    """The source of rows, and the treatment of malformed ones."""

    source: str = Field(
        description="a .jsonl or .parquet file, a directory of them or one written by `datasets.save_to_disk`, or a "
        "hub data set, `owner/name` or `owner/name:configuration`"
    )
    split: str = Field(default="train", description="split, for data sets with several")
    template: Template = Field(default="{prompt}", description="the text around a prompt that is a string")
    on_malformed: Literal["error", "skip"] = Field(
        default="error", description="`error` names file and line and stops; `skip` leaves the row out and counts it"
    )


class SplitSourceConfig(SourceConfig):
    """Rows, some of which are held out."""

    validation_fraction: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="share of the prompts that is held out; a prompt is on one side only, and new rows move no other",
    )


class HeldOutConfig(SplitSourceConfig):
    """Rows to train on, and rows to hold out: of a split that the source has, or a share."""

    validation_split: str = Field(
        default="auto",
        description="split that is held out instead of a share of the rows; auto: `validation`, if `source` is a "
        "directory that has it beside the split `train`; none: always a share",
    )


class PromptConfig(SourceConfig):
    """The source of prompts, and their order."""

    source: str = Field(
        default=WORLD,
        description="`world` (the embedded one), `instructions` (chat prompts that come with Offbeat), a .jsonl or "
        ".parquet file, a directory of them or one written by `datasets.save_to_disk`, or a hub data set, `owner/name` "
        "or `owner/name:configuration`",
    )
    prompt_field: str = Field(
        default="prompt", description="column with the prompt: a string, or a list of chat messages"
    )
    answer_field: str | tuple[str, ...] | None = Field(
        default=None,
        description="column with the gold answer, for verifiers: a string, a number or a list; or several columns, "
        "for judges of kind code and instructions",
    )
    columns: tuple[str, ...] = Field(
        default=(), description="further columns that judges and environments read, as metadata of the prompt"
    )
    max_prompt_tokens: int = Field(default=512, ge=1, description="tokens; a longer prompt is a malformed row")
    seed: int = Field(default=0, ge=0, description="seed of the order; each epoch has its own")
    shuffle: bool = Field(default=True, description="False keeps file order, epoch after epoch")
    validation_fraction: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="share of the prompts that is held out for evaluations, by a hash of each prompt; 0: evaluations "
        "draw from the prompts that are trained on",
    )
    validation_source: str | None = Field(
        default=None, description="other prompts for evaluations, with the same columns; unset: `source`"
    )
    validation_split: str | None = Field(
        default=None, description="split that evaluations draw from, for data sets with several; unset: `split`"
    )

    @model_validator(mode="after")
    def _held_out_in_one_way(self) -> PromptConfig:
        if self.validation_fraction and self.validates_elsewhere:
            other = self.validation_source or f"split {self.validation_split}"
            raise ValueError(
                f"validation_fraction {self.validation_fraction:g} holds prompts out for evaluations, which draw from "
                f"{other}; leave out one of the two settings"
            )
        return self

    @property
    def validates_elsewhere(self) -> bool:
        """Return whether evaluations draw from a file, a data set or a split of their own."""
        return self.validation_source is not None or self.validation_split is not None


class DemonstrationConfig(HeldOutConfig):
    """Demonstrations to imitate: prompt and response, or conversations with every assistant turn imitated."""

    prompt_field: str = Field(default="prompt", description="column with the prompt: a string, or chat messages")
    response_field: str = Field(default="response", description="column with the response, a string")
    messages_field: str | None = Field(
        default=None, description="column with whole conversations, read instead of prompt and response"
    )
    max_tokens: int = Field(default=1024, ge=2, description="tokens, prompt and response; a longer row is malformed")


class PreferenceSourceConfig(SplitSourceConfig):
    """Preferences: a prompt, a chosen and a rejected response per row."""

    ranked_pairs: Literal["all", "best_worst"] = Field(
        default="all", description="pairs of a row that ranks K responses: all that differ, or the best and the worst"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="columns of the source by the name that they are read under, such as {prompt: question}",
    )
    probability_from: ProbabilityFrom = Field(
        default="probability",
        description="source of the probability that chosen is preferred; probability: that column, 1 without it; "
        "margin: sigmoid of that column; scores: sigmoid of score_chosen - score_rejected",
    )
