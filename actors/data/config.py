"""Settings of every data source: prompts, demonstrations, preferences. Imports nothing heavy."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from actors.settings import WORLD, Settings


def _has_prompt(template: str) -> str:
    if template.count("{prompt}") != 1:
        raise ValueError("a template must hold {prompt} once")
    return template


Template = Annotated[str, AfterValidator(_has_prompt)]  # text with one `{prompt}`; other braces are kept
ProbabilityFrom = Literal["probability", "margin", "scores"]


class SourceConfig(Settings):
    """Where rows come from, and what happens to malformed ones."""

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
    """Rows of which some are held out."""

    validation_fraction: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="share of the prompts that is held out; a prompt is on one side only, and new rows move no other",
    )


class PromptConfig(SourceConfig):
    """Where prompts come from, and their order."""

    source: str = Field(
        default=WORLD,
        description="`world` (the embedded one), a .jsonl or .parquet file, a directory of them or one written by "
        "`datasets.save_to_disk`, or a hub data set, `owner/name` or `owner/name:configuration`",
    )
    prompt_field: str = Field(
        default="prompt", description="column with the prompt: a string, or a list of chat messages"
    )
    answer_field: str | None = Field(default=None, description="column with the gold answer, for verifiers")
    max_prompt_tokens: int = Field(default=512, ge=1, description="tokens; a longer prompt is a malformed row")
    seed: int = Field(default=0, ge=0, description="seed of the order; each epoch has its own")
    shuffle: bool = Field(default=True, description="False keeps file order, epoch after epoch")


class DemonstrationConfig(SplitSourceConfig):
    """Demonstrations to imitate: prompt and response, or conversations with every assistant turn imitated."""

    prompt_field: str = Field(default="prompt", description="column with the prompt: a string, or chat messages")
    response_field: str = Field(default="response", description="column with the response, a string")
    messages_field: str | None = Field(
        default=None, description="column with whole conversations, read instead of prompt and response"
    )
    max_tokens: int = Field(default=1024, ge=2, description="tokens, prompt and response; a longer row is malformed")


class PreferenceSourceConfig(SplitSourceConfig):
    """Preferences: a prompt, a chosen and a rejected response per row."""

    probability_from: ProbabilityFrom = Field(
        default="probability",
        description="source of the probability that chosen is preferred; probability: that column, 1 without it; "
        "margin: sigmoid of that column; scores: sigmoid of score_chosen - score_rejected",
    )
