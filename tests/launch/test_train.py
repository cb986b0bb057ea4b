"""What a run checks before it starts anything, and what a resumed run must share with the saved one."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import world
from actors.errors import UsageError
from actors.prompts import PromptSource
from launch.config import RunConfig
from launch.train import check_model, check_same_run, fixed_settings, with_world_defaults
from learner.sft import TINY, build_policy


def _config(**settings) -> RunConfig:
    base = {"model": {"path": "world"}, "prompts": {"source": "world"}}
    return RunConfig.model_validate({**base, **settings})


def test_in_the_world_a_completion_ends_at_any_token_no_response_may_hold() -> None:
    assert with_world_defaults(_config()).sampling.stop_token_ids == world.STOP_TOKEN_IDS


def test_stop_tokens_that_were_given_are_kept() -> None:
    config = _config(sampling={"stop_token_ids": [3]})
    assert with_world_defaults(config).sampling.stop_token_ids == (3,)


def test_a_model_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model.path '.*nothing-here' holds no model"):
        check_model(_config(model={"path": str(tmp_path / "nothing-here")}))


def test_an_engine_longer_than_the_model_s_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    build_policy(TINY).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"max_model_len 1024 exceeds the 64 positions"):
        check_model(_config(model={"path": str(tmp_path)}))
    check_model(
        _config(
            model={"path": str(tmp_path)},
            generators={"max_model_len": 64},
            prompts={"max_prompt_tokens": 8},
            sampling={"max_new_tokens": 8},
        )
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling": {"completions_per_prompt": 2}}, r"sampling \(was .*'completions_per_prompt': 4"),
        ({"evaluation": {"prompts": 7}}, r"evaluation.prompts \(was 256, is 7\)"),
        ({"prompts": {"source": "world", "seed": 1}}, r"prompts.seed \(was 0, is 1\)"),
        ({"world": {"seed": 1}}, r"world \(was"),
    ],
)
def test_a_resume_names_what_was_changed_and_must_not_be(change: dict, named: str) -> None:
    def fixed(config: RunConfig) -> dict:
        return fixed_settings(config, PromptSource(config.prompts, world.tokenizer()))

    saved = fixed(_config())
    check_same_run(saved, fixed(_config(updates=5, replay={"max_staleness": 3})), Path("update-1"))
    check_same_run(saved, fixed(_config(evaluation={"prompts": 0})), Path("update-1"))
    with pytest.raises(UsageError, match=rf"cannot resume from update-1: .*{named}"):
        check_same_run(saved, fixed(_config(**change)), Path("update-1"))
