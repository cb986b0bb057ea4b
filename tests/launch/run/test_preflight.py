"""What a run's models and prompts must be before anything starts: the same for `train` and `doctor`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from actors.data.prompts import PromptSource
from actors.data.text import load_tokenizer
from actors.errors import UsageError
from launch.run.preflight import (
    check_model,
    check_prompts,
    check_restored,
    check_tokenizer,
    check_weights,
    meet_judges,
    repetition,
    slow_anchor,
    slow_programs,
)
from launch.run.protocols import RunPlugin
from launch.settings.run import RunConfig
from learner.reference.config import ReferenceConfig
from tests.fakes.architectures import rewrite
from tests.fakes.generators import make_group
from tests.fakes.models import tiny_llama, tiny_preference_model

MATRIX = "model.layers.1.mlp.up_proj.weight"


def config(directory: Path, **settings: Any) -> RunConfig:
    """A run of the model in `directory`/model on one prompt."""
    source = directory / "prompts.jsonl"
    if not source.exists():
        source.write_text(json.dumps({"prompt": "w5 w6"}) + "\n")
    settings = {
        "model": {"path": str(directory / "model")},
        "prompts": {"source": str(source), "max_prompt_tokens": 8},
        "sampling": {"max_new_tokens": 4},
        "generators": {"max_model_len": 64},
        "judging": {"judge": {"kind": "function", "path": "judges:score"}},
    } | settings
    return RunConfig.model_validate(settings)


def tokenizer_of(path: Path) -> Any:
    return load_tokenizer(str(path))


def test_a_sound_model_has_nothing_to_be_told(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", seed=0)
    run, tokenizer = config(tmp_path), tokenizer_of(tmp_path / "model")
    assert check_model(run, RunPlugin()) == []
    assert check_tokenizer(run, tokenizer) == []
    assert check_prompts(run, PromptSource(run.prompts, tokenizer)) == []


def test_heads_that_ranks_cannot_split_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """Of the policy, and of a reference of another shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_llama(tmp_path / "model", seed=0)
    split = {"ranks": 2, "sequence_parallel": 2}
    assert check_model(config(tmp_path, learner=split), RunPlugin()) == []
    settings = {"vocab_size": 96, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(**settings, num_hidden_layers=1)).save_pretrained(tmp_path / "other")
    models = {"path": str(tmp_path / "model"), "reference": str(tmp_path / "other")}
    with pytest.raises(UsageError, match=r"2 does not divide the 3 attention heads of .*/other; set it to one of 1, 3"):
        check_model(config(tmp_path, learner=split, model=models), RunPlugin())
    with pytest.raises(UsageError, match=r"3 does not divide the 2 attention heads of .*/model"):
        check_model(config(tmp_path, learner={"ranks": 3, "sequence_parallel": 3}), RunPlugin())


def test_missing_weights_are_refused_and_unused_ones_told(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", seed=0)
    rewrite(
        tmp_path / "model", lambda tensors: tensors | {"v_head.weight": torch.ones(1), "v_head.bias": torch.ones(1)}
    )
    (note,) = check_model(config(tmp_path), RunPlugin())
    assert note == (
        f"model.path {tmp_path}/model: 2 tensors of its files are not part of LlamaForCausalLM: 'v_head.bias', "
        "'v_head.weight'"
    )
    rewrite(tmp_path / "model", lambda tensors: {n: t for n, t in tensors.items() if n != MATRIX})
    with pytest.raises(UsageError, match=rf"lacks the weights '{MATRIX}' of LlamaForCausalLM"):
        check_model(config(tmp_path), RunPlugin())


def test_the_weights_of_reference_and_judges_are_checked_too(tmp_path: Path) -> None:
    for name in ("model", "reference"):
        tiny_llama(tmp_path / name, seed=0)
    models = {"path": str(tmp_path / "model"), "reference": str(tmp_path / "reference")}
    assert check_model(config(tmp_path, model=models), RunPlugin()) == []
    rewrite(tmp_path / "reference", lambda tensors: {n: t for n, t in tensors.items() if n != MATRIX})
    with pytest.raises(UsageError, match=rf"reference' lacks the weights '{MATRIX}'"):
        check_model(config(tmp_path, model=models), RunPlugin())

    tiny_preference_model(tmp_path / "judge", "pairwise")
    judging = {"judge": {"kind": "preference_model", "path": str(tmp_path / "judge")}}
    assert check_model(config(tmp_path, judging=judging), RunPlugin()) == []
    rewrite(tmp_path / "judge", lambda tensors: {n: t for n, t in tensors.items() if n != "score.weight"})
    with pytest.raises(UsageError, match=r"lacks the weights 'score\.weight' of LlamaForSequenceClassification"):
        check_model(config(tmp_path, judging=judging), RunPlugin())


def test_a_language_model_may_start_a_preference_model(tmp_path: Path) -> None:
    tiny_llama(tmp_path, seed=0)
    assert check_weights("model.path", tmp_path, classifier=True, new_head=True) == []


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """It was told by `doctor` only: `train` started everything and failed after half a minute."""
    tiny_llama(tmp_path / "model", seed=0)
    tiny_llama(tmp_path / "other", seed=0, vocab_size=128)
    run = config(tmp_path, model={"path": str(tmp_path / "model"), "tokenizer": str(tmp_path / "other")})
    with pytest.raises(UsageError, match=r"has 128 tokens and .*/model 96; set model\.tokenizer to the model's own"):
        check_tokenizer(run, tokenizer_of(tmp_path / "other"))


def test_tokens_added_beyond_the_model_are_told_and_refused_in_prompts(tmp_path: Path) -> None:
    """Gemma 3's tokenizer has one token more than the model: harmless as long as no prompt holds it."""
    tiny_llama(tmp_path / "model", seed=0)
    tokenizer = tokenizer_of(tmp_path / "model")
    tokenizer.add_tokens([AddedToken("<image>")])
    run = config(tmp_path)
    (note,) = check_tokenizer(run, tokenizer)
    assert note.endswith(
        "has 97 tokens and " + f"{tmp_path}/model 96: those that were added to it must not be in the prompts"
    )
    assert check_prompts(run, PromptSource(run.prompts, tokenizer)) == []
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "w5 <image>"}) + "\n")
    with pytest.raises(UsageError, match=r"has the token 96, and model\.path .* only 96"):
        check_prompts(run, PromptSource(run.prompts, tokenizer))


def test_a_generation_config_that_cannot_be_saved_is_refused_before_the_run(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", seed=0)
    run, tokenizer = config(tmp_path), tokenizer_of(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "do_sample": False}))
    assert check_tokenizer(run, tokenizer) == [], "a run saves how it sampled itself"
    path.write_text(json.dumps({"early_stopping": 7}))
    with pytest.raises(UsageError, match=r"generation_config\.json is not valid, .*must be a boolean or 'never'"):
        check_tokenizer(run, tokenizer)


def test_prompts_that_begin_with_two_bos_are_counted_and_told(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tiny_llama(tmp_path / "model", seed=0)
    tokenizer = tokenizer_of(tmp_path / "model")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    rows = [{"prompt": "w5"}, {"prompt": "<s>w5"}, {"prompt": "w7"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config(tmp_path)
    (note,) = check_prompts(run, PromptSource(run.prompts, tokenizer))
    assert note == "1 of 3 prompts hold <s>, which the tokenizer adds to texts as well; they are read with one"
    source = PromptSource(config(tmp_path, prompts=run.prompts.model_dump() | {"shuffle": False}).prompts, tokenizer)
    assert source.prompt(0).token_ids == source.prompt(1).token_ids == tuple(tokenizer("w5").input_ids)
    twice = config(tmp_path, prompts=run.prompts.model_dump() | {"template": "<s>{prompt}"})
    assert PromptSource(twice.prompts, tokenizer).doubled_bos == 3


def test_what_reading_the_prompts_has_to_say_is_told(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", seed=0)
    run = config(tmp_path)
    prompts = PromptSource(run.prompts, tokenizer_of(tmp_path / "model"))
    prompts.notes.append("not kept")
    assert check_prompts(run, prompts) == check_prompts(run, prompts) == ["not kept"]


@pytest.mark.parametrize("temperature", [0.005, 1e-6])
def test_a_temperature_at_which_the_engine_would_not_sample_is_refused(tmp_path: Path, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"vLLM samples at 0\.01 instead .*; set 0\.01 or more"):
        config(tmp_path, sampling={"max_new_tokens": 4, "temperature": temperature})
    assert config(tmp_path, sampling={"max_new_tokens": 4, "temperature": 0.01}).sampling.temperature == 0.01


def test_prompts_that_repeat_are_told_before_the_run(tmp_path: Path) -> None:
    """256 evaluation prompts of a source with 3, 3 prompts for 8 a step, and 1,000 updates of them: nothing was said.
    One of four rows is the same as another, so that three prompts are different."""
    rows = [json.dumps({"prompt": f"w{number}"}) + "\n" for number in (6, 7, 8, 8)]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    tiny_llama(tmp_path / "model", seed=0)
    prompts = PromptSource(config(tmp_path).prompts, tokenizer_of(tmp_path / "model"))
    many = config(tmp_path, replay={"prompts_per_update": 10}, evaluation={"prompts": 256}, updates=1000)
    evaluated, together, epochs = repetition(many, prompts)
    assert "evaluation.prompts 256 finds 3 different prompts" in evaluated
    assert "exceeds the 4 prompts of prompts.source: an update trains on a prompt up to 3 times" in together
    assert "updates 1,000 of 10 prompts are 2,500 epochs of 4 prompts" in epochs
    few = config(tmp_path, replay={"prompts_per_update": 4}, evaluation={"prompts": 2}, updates=20)
    assert [note for note in repetition(few, prompts) if "evaluation.prompts" not in note] == []


def test_programs_that_may_take_longer_than_a_batch_are_told_before_the_run(tmp_path: Path) -> None:
    """8 programs, 2 at a time and in turn with another batch's, are 8 turns of 10 s."""
    judge = {"kind": "code", "time_limit_seconds": 10.0, "max_concurrent_programs": 2}
    sampling = {"max_new_tokens": 4, "completions_per_prompt": 8}
    prompts = {"source": str(tmp_path / "prompts.jsonl"), "max_prompt_tokens": 8, "answer_field": "tests"}

    def told(seconds: float) -> list[str]:
        judging = {"judge": judge, "timeout_seconds": seconds}
        return slow_programs(config(tmp_path, prompts=prompts, sampling=sampling, judging=judging))

    (note,) = told(79.0)
    assert "8 programs of one prompt may take 80 s" in note
    assert "judging.timeout_seconds 79 ends them" in note
    assert told(80.0) == []


def test_a_judge_of_a_cluster_that_fails_here_is_told_and_not_refused(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", seed=0)
    settings = config(tmp_path, judging={"judge": {"kind": "function", "path": "a_module_of_the_cluster:f"}})
    tokenizer = tokenizer_of(tmp_path / "model")
    prompts = PromptSource(settings.prompts, tokenizer)
    with pytest.raises(UsageError, match="No module named 'a_module_of_the_cluster'"):
        meet_judges(settings, prompts, tokenizer)
    (note,) = meet_judges(settings, prompts, tokenizer, elsewhere=True)
    assert note.startswith("warning: judging.judge.path 'a_module_of_the_cluster:f'")
    assert note.endswith("judges run on the cluster, which may have what is missing here")


def test_groups_of_a_checkpoint_that_nobody_scored_are_refused_by_a_learner_without_a_reference() -> None:
    config = RunConfig.model_validate({"model": {"path": "unused"}, "reference": {"count": 2}})
    bare = make_group(["a", "b"], index=1)
    scored = replace(
        bare, completions=tuple(replace(each, reference_logprobs=each.logprobs) for each in bare.completions)
    )
    half = replace(bare, completions=(scored.completions[0], bare.completions[1]))
    check_restored([scored], config)
    check_restored([bare], config.model_copy(update={"reference": ReferenceConfig()}))
    with pytest.raises(UsageError) as told:
        check_restored([scored, half], config)
    assert str(told.value) == (
        "1 of 2 groups in the checkpoint's buffer have no reference log-probs: reference.count was 0 when they "
        "were judged, and is 2; resume with reference.count=0, or start a new run"
    )


def _with_loss(loss: dict[str, Any], bound: int, updates: int) -> RunConfig:
    base = {"model": {"path": "m"}, "prompts": {"source": "p"}, "judging": {"judge": {"kind": "gold"}}}
    base |= {"sampling": {"completions_per_prompt": 4}, "updates": updates}
    return RunConfig.model_validate(base | {"replay": {"max_staleness": bound}, "learner": {"loss": loss}})


@pytest.mark.parametrize(
    ("bound", "needed"),
    [
        (64, 1924),  # 2 * 130 * (0.05 + 0.32) / 0.05
        (2, 119),  # 118.4: the shortest horizon is 8
    ],
)
def test_a_game_that_is_too_short_for_its_anchor_is_told(bound: int, needed: int):
    loss = {"kind": "nash_pg", "tau": 0.05}
    assert slow_anchor(_with_loss(loss, bound, needed)) == []
    (note,) = slow_anchor(_with_loss(loss, bound, needed - 1))
    assert f"and this one has {needed - 1:,}: it stays near its start" in note


def test_a_short_run_of_online_dpo_is_no_worse_with_its_anchor_and_told_nothing():
    """At a lag of 64 it is below the run without one from the first 400 updates on (`anchor_map.json`)."""
    config = _with_loss({"kind": "dpo"}, 64, 10)
    assert config.anchor is not None
    assert slow_anchor(config) == []


def test_without_an_anchor_no_run_is_too_short_for_one():
    tree = {"model": {"path": "m"}, "prompts": {"source": "p"}, "judging": {"judge": {"kind": "gold"}}, "updates": 1}
    assert slow_anchor(RunConfig.model_validate(tree)) == []
