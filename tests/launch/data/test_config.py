"""Settings of data preparation: what belongs together, and the command's arguments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.data.config import DataConfig, file_and_overrides
from launch.settings.fields import settings
from launch.settings.loading import load_config
from launch.settings.verbs import DATA

HERE = ["source=/p.jsonl", "output=/o"]


def mistakes(*overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_config(None, [*HERE, *overrides], DATA)
    return [line.strip() for line in str(caught.value).splitlines()[1:-1]]


def test_a_source_and_an_output_are_enough() -> None:
    config = load_config(None, HERE, DATA)
    assert config == DataConfig(source="/p.jsonl", output="/o")
    assert not config.filters.active


@pytest.mark.parametrize(
    "override", ["filters.max_gap=0", "filters.mistakes_only=true", "filters.ceiling.kind=sampled"]
)
def test_a_rule_needs_a_model(override: str) -> None:
    assert mistakes(override)[0].startswith("filters are on and model is unset; pass model=DIRECTORY")
    assert load_config(None, [*HERE, override, "model=/m"], DATA).filters.active


def test_limits_in_tokens_need_a_tokenizer() -> None:
    assert mistakes("max_prompt_tokens=5")[0].startswith("max_prompt_tokens and max_response_tokens count tokens")
    assert load_config(None, [*HERE, "max_response_tokens=5", "tokenizer=/t"], DATA).max_response_tokens == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["filters.ceiling.kind=file"], "source is missing; kind file needs it"),
        (["filters.ceiling.kind=value"], "log_perplexity is missing; kind value needs it"),
        (["filters.ceiling.source=/s"], "source is set and kind is off; kind file needs it"),
        (
            ["filters.ceiling={kind: sampled, log_perplexity: 3}"],
            "log_perplexity is set and kind is sampled; kind value needs it",
        ),
    ],
)
def test_a_ceiling_has_what_its_kind_reads_and_nothing_else(overrides: list[str], message: str) -> None:
    assert mistakes("model=/m", *overrides) == [f"filters.ceiling: {message} and the other kinds do not read it"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, [])),
        (["source=a"], (None, ["source=a"])),
        (["run.yaml", "seed=1"], ("run.yaml", ["seed=1"])),
        (["pairs.jsonl", "seed=1"], (None, ["source='pairs.jsonl'", "seed=1"])),
        (["it's: {here}"], (None, ["source='it''s: {here}'"])),
    ],
)
def test_the_first_argument_may_be_a_file_of_settings_or_the_source(
    arguments: list[str], expected: tuple[str | None, list[str]]
) -> None:
    file, overrides = file_and_overrides(arguments)
    assert (file, overrides) == expected
    if file is None and overrides and overrides[0].startswith("source='"):
        assert load_config(None, [*overrides, "output=/o"], DATA).source == arguments[0]


def test_the_page_on_data_names_no_setting_that_is_not_there() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    code = set(re.findall(r"`([^`\n]+)`", page))
    known = {setting.key for setting in settings(DataConfig)}
    dotted = {re.split("[:=]", name)[0] for name in code if re.match(r"filters\.[a-z_.]+", name)}
    assert dotted <= known
