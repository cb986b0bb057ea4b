"""What a run checks before it starts anything, and what a resumed run must share with the saved one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors import world
from actors.data.prompts import PromptSource
from actors.errors import UsageError
from launch.output.session import check_same_run
from launch.run import preflight
from launch.run.plugins import plugin_of
from launch.run.preflight import fixed_settings
from launch.settings.run import RunConfig
from learner.backend import manifest
from learner.world.policy import TINY, build_policy
from tests.fakes.models import tiny_llama


def _config(**settings) -> RunConfig:
    base = {"model": {"path": "world"}, "prompts": {"source": "world"}}
    return RunConfig.model_validate({**base, **settings})


def resolved(config: RunConfig) -> RunConfig:
    return plugin_of(config).resolve(config)


def check_model(config: RunConfig) -> None:
    preflight.check_model(config, plugin_of(config))


def test_in_the_world_a_completion_ends_at_any_token_no_response_may_hold() -> None:
    assert resolved(_config()).sampling.stop_token_ids == world.STOP_TOKEN_IDS


def test_stop_tokens_that_were_given_are_kept() -> None:
    config = _config(sampling={"stop_token_ids": [3]})
    assert resolved(config).sampling.stop_token_ids == (3,)


def test_a_model_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model.path '.*nothing-here' does not exist .*; give an existing directory"):
        check_model(_config(model={"path": str(tmp_path / "nothing-here")}))


def test_an_engine_longer_than_the_model_s_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    build_policy(TINY).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"max_model_len 1024 exceeds the 64 positions"):
        check_model(_config(model={"path": str(tmp_path)}))
    check_model(
        _config(
            model={"path": str(tmp_path)},
            generators={"max_model_len": 64},
            prompts={"source": "world", "max_prompt_tokens": 8},
            sampling={"max_new_tokens": 8},
        )
    )


def _with_reference(policy: Path, reference: Path, **settings) -> RunConfig:
    return _config(
        model={"path": str(policy), "reference": str(reference)},
        generators={"max_model_len": 64},
        prompts={"source": "world", "max_prompt_tokens": 8},
        sampling={"max_new_tokens": 8},
        **settings,
    )


def test_a_reference_of_another_vocabulary_is_refused_with_both_sizes(tmp_path: Path) -> None:
    build_policy(TINY).save_pretrained(tmp_path / "policy")
    tiny_llama(tmp_path / "reference", seed=0, vocab_size=96)
    with pytest.raises(UsageError, match=r"vocabulary of 96 tokens and the policy .* one of 18; use a reference with"):
        check_model(_with_reference(tmp_path / "policy", tmp_path / "reference"))


def test_a_reference_of_another_architecture_is_refused_only_where_it_is_mixed(tmp_path: Path) -> None:
    build_policy(TINY).save_pretrained(tmp_path / "policy")
    build_policy(replace(TINY, intermediate=64)).save_pretrained(tmp_path / "reference")
    check_model(_with_reference(tmp_path / "policy", tmp_path / "reference"))
    with pytest.raises(UsageError, match=r"cannot be mixed with the policy .*: its intermediate_size is 64, the pol"):
        check_model(
            _with_reference(
                tmp_path / "policy",
                tmp_path / "reference",
                learner={"loss": {"kind": "nash_pg", "opponent": {"kind": "mixture"}}},
            )
        )


def test_the_world_s_own_policy_takes_no_other_reference() -> None:
    with pytest.raises(UsageError, match=r"model\.path is world, whose policy is trained by the run and is its own"):
        check_model(_config(model={"path": "world", "reference": "elsewhere"}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"sampling": {"completions_per_prompt": 2}},
            r"saved: sampling.completions_per_prompt \(was 4, is 2\);",
        ),
        ({"evaluation": {"prompts": 7}}, r"evaluation.prompts \(was 256, is 7\)"),
        ({"prompts": {"source": "world", "seed": 1}}, r"prompts.seed \(was 0, is 1\)"),
        ({"world": {"seed": 1}}, r"world.seed \(was 0, is 1\)"),
        ({"learner": {"loss": {"kind": "nash_pg"}}}, r"learner.loss.kind \(was dpo, is nash_pg\)"),
        ({"generators": {"engine": {"block_size": 16}}}, r"generators.engine.block_size \(was unset, is 16\)"),
        ({"learner": {"deepspeed": {"dump_state": True}}}, r"learner.deepspeed.dump_state \(was unset, is True\)"),
    ],
)
def test_a_resume_names_what_was_changed_and_must_not_be(change: dict, named: str) -> None:
    def fixed(config: RunConfig) -> dict:
        return fixed_settings(config, PromptSource(config.prompts, world.tokenizer()), plugin_of(config))

    saved = fixed(_config())
    check_same_run(saved, fixed(_config(updates=5, replay={"max_staleness": 3})), Path("update-1"))
    check_same_run(saved, fixed(_config(evaluation={"prompts": 0})), Path("update-1"))
    elsewhere = {"environment": {"NCCL_SOCKET_IFNAME": "eth1"}, "resources": {"rack": 1}}
    cluster = {"runtime_env": {"pip": ["a"]}}
    given = _config(generators=elsewhere, learner=elsewhere, judging=elsewhere, cluster=cluster)
    check_same_run(saved, fixed(given), Path("update-1"))
    with pytest.raises(UsageError, match=rf"cannot resume from update-1: .*{named}"):
        check_same_run(saved, fixed(_config(**change)), Path("update-1"))


@pytest.mark.parametrize(
    "opponent",
    [
        {"kind": "reference", "beta": 0.25, "max_staleness": 1},
        {"kind": "mixture", "beta": 0.5, "max_staleness": 1},
        {"kind": "mixture", "beta": 0.25, "max_staleness": 1, "completions_per_prompt": 3},
        {"kind": "mixture", "beta": 0.25, "max_staleness": 0},
    ],
)
def test_a_resume_keeps_its_opponent(opponent: dict) -> None:
    """Saved groups carry the saved opponent's completions: one batch held both, and every resume of it failed."""

    def fixed(**opponent) -> dict:
        config = _config(learner={"loss": {"kind": "nash_pg", "opponent": opponent}})
        return fixed_settings(config, PromptSource(config.prompts, world.tokenizer()), plugin_of(config))

    saved = fixed(kind="mixture", beta=0.25, max_staleness=1)
    check_same_run(saved, fixed(kind="mixture", beta=0.25, max_staleness=1, ema_decay=0.5), Path("update-1"))
    with pytest.raises(UsageError, match=r"changed since it was saved: learner.loss.opponent\.\w+ \(was "):
        check_same_run(saved, fixed(**opponent), Path("update-1"))


def test_a_checkpoint_from_before_losses_owned_their_opponent_is_held_to_it() -> None:
    config = _config(learner={"loss": {"kind": "nash_pg", "opponent": {"kind": "mixture"}}})
    given = fixed_settings(config, PromptSource(config.prompts, world.tokenizer()), plugin_of(config))
    old = dict(given)
    old["opponent"] = old.pop("learner.loss.opponent")
    check_same_run(old, given, Path("update-1"))
    old["opponent"] = old["opponent"] | {"beta": 0.75}
    with pytest.raises(UsageError, match=r"learner\.loss\.opponent\.beta \(was 0\.75, is 0\.125\)"):
        check_same_run(old, given, Path("update-1"))


def test_a_resume_is_not_held_to_what_its_checkpoint_does_not_tell() -> None:
    check_same_run({"prompts.seed": 0}, {"prompts.seed": 0, "learner.loss.kind": "dpo"}, Path("update-1"))


def test_evaluation_cannot_be_turned_on_by_a_resume() -> None:
    off, on = ({"evaluation.prompts": prompts} for prompts in (0, 7))
    check_same_run(on, off, Path("update-1"))
    with pytest.raises(UsageError, match=r"evaluation.prompts \(was 0, is 7\)"):
        check_same_run(off, on, Path("update-1"))


def test_a_model_is_known_by_its_weights_and_not_by_its_path(tmp_path: Path) -> None:
    """Other weights at the same path were taken."""

    def fixed(path: Path) -> dict:
        config = _config(model={"path": str(path)})
        return fixed_settings(config, PromptSource(config.prompts, world.tokenizer()), plugin_of(config))

    tiny_llama(tmp_path / "a", seed=0)
    saved = fixed(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    (tmp_path / "moved" / "generation_config.json").write_text("{}")
    check_same_run(saved, fixed(tmp_path / "moved"), Path("update-1"))
    shutil.rmtree(tmp_path / "a")
    tiny_llama(tmp_path / "a", seed=1)
    with pytest.raises(UsageError, match=r"changed since it was saved: the model \(was \w{32}, is \w{32}\)"):
        check_same_run(saved, fixed(tmp_path / "a"), Path("update-1"))
    del saved["the model"]  # as by older versions
    with pytest.raises(UsageError, match=r"model\.path \(was"):
        check_same_run(saved, fixed(tmp_path / "moved"), Path("update-1"))


@pytest.mark.parametrize("role", ["policy", "reference", "judge"])
def test_a_damaged_model_of_an_earlier_run_is_refused_before_anything_starts(tmp_path: Path, role: str) -> None:
    for name in {"policy", role}:
        build_policy(TINY).save_pretrained(tmp_path / name)
    manifest.seal(tmp_path / role)
    weights = bytearray((tmp_path / role / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (tmp_path / role / "model.safetensors").write_bytes(weights)
    judge = {"judging": {"judge": {"kind": "reward_model", "path": str(tmp_path / role)}}} if role == "judge" else {}
    reference = tmp_path / ("reference" if role == "reference" else "policy")
    with pytest.raises(UsageError, match=rf"{role} is not as it was written: model\.safetensors has other content"):
        check_model(_with_reference(tmp_path / "policy", reference, **judge))
