"""Configuration models: frozen, every setting described with its bounds, contradictions refused with both values."""

import pytest
from pydantic import ValidationError

from launch.config import RunConfig
from launch.fields import settings
from launch.loading import load_config

ALL = list(settings(RunConfig))


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: f"{setting.key}-{setting.only_for}")
def test_every_setting_and_section_is_described(setting):
    assert setting.description
    assert setting.title
    assert not setting.description.endswith(".")


@pytest.mark.parametrize("setting", ALL, ids=lambda setting: f"{setting.key}-{setting.only_for}")
def test_every_number_has_a_bound(setting):
    if setting.types & {int, float} and "|" not in setting.allowed and "list" not in setting.allowed:
        assert any(sign in setting.allowed for sign in "<>") or setting.key == "judging.missing_eos_score"


def test_a_setting_is_described_with_type_bounds_and_default():
    described = {setting.key: (setting.allowed, setting.default) for setting in ALL if not setting.only_for}
    assert described["replay.max_staleness"] == ("integer >= 0", "1")
    assert described["generators.gpu_memory_utilization"] == ("number > 0 and <= 1", "0.85")
    assert described["generators.canary_tolerance"] == ("number > 0 or null", "null")
    assert described["learner.zero_stage"] == ("0 | 1 | 2 | 3", "2")
    assert described["prompts.shuffle"] == ("true | false", "true")
    assert described["sampling.stop_token_ids"] == ("list of integers", "[]")
    assert described["learner.optimizer.betas"] == ("list of 2 numbers", "[0.9, 0.95]")
    assert described["model.path"] == ("text", "required")
    assert described["judging.judge.kind"] == ("gold | reward_model | verifier | function", "gold")


def test_settings_of_one_kind_of_judge_name_it():
    assert [setting.only_for for setting in ALL if setting.key == "judging.judge.path"] == ["reward_model", "function"]


def test_a_configuration_cannot_be_changed_behind_the_run_s_back():
    config = load_config("embedded")
    with pytest.raises(ValidationError, match="frozen"):
        config.replay.max_staleness = 5


def test_a_prompt_and_its_completion_must_fit_the_engine():
    with pytest.raises(ValidationError, match=r"512 \+ sampling\.max_new_tokens 512 = 1024 exceed .* 1023"):
        RunConfig.model_validate(
            {"model": {"path": "m"}, "sampling": {"max_new_tokens": 512}, "generators": {"max_model_len": 1023}}
        )


def test_bfloat16_without_master_weights_is_refused():
    with pytest.raises(ValidationError, match="zero_stage 0 with dtype bfloat16"):
        RunConfig.model_validate({"model": {"path": "m"}, "learner": {"zero_stage": 0}})


@pytest.mark.parametrize("overrides", [["output=/data/x"], ["name=x", "output=/data/x"]])
def test_a_run_s_directory_is_its_output(overrides):
    assert str(load_config("embedded", overrides).directory) == "/data/x"


def test_a_run_s_directory_is_named_after_it_otherwise():
    assert str(load_config("embedded", ["name=x"]).directory) == "runs/x"


def test_the_final_model_is_one_that_was_published():
    """The win rate of a run was that of an older model than the one it left behind."""
    base = {"model": {"path": "m"}, "replay": {"updates_per_publish": 5}}
    with pytest.raises(ValidationError, match=r"updates 12 is no multiple .* 5: .*; set updates to 10 or 15"):
        RunConfig.model_validate({**base, "updates": 12})
    with pytest.raises(ValidationError, match=r"; set updates to 5"):
        RunConfig.model_validate({**base, "updates": 3})
    assert RunConfig.model_validate({**base, "updates": 15}).updates == 15
