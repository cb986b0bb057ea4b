"""Settings of prompts and demonstrations. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from actors.settings import WORLD, Settings


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
