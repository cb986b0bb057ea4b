"""What fine-tuning starts from: a model given or made once, examples on disk, and requests that cannot be met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.data.text import load_tokenizer
from actors.errors import RunError, UsageError
from launch.stages import sft as preparation
from launch.stages.config import SftRunConfig
from launch.stages.sft import prepare_sft
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model, train_tokenizer
from learner.tensors.examples import TRAIN, VALIDATION, read_sequences
from tests.fakes.architectures import rewrite

SCRATCH = {"vocabulary": 300, "layers": 1, "heads": 1, "max_tokens": 64}
ROWS = [{"prompt": f"{a}+{b}", "response": str(a + b)} for a in range(8) for b in range(8)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def config_of(source: Path, model: dict[str, Any] | None = None, **data: Any) -> SftRunConfig:
    return SftRunConfig.model_validate(
        {
            "model": {"path": "scratch", "scratch": SCRATCH} if model is None else model,
            "data": {"source": str(source), "max_tokens": 64, "template": "{prompt} = ", **data},
        }
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_model_and_its_tokenizer_are_made_of_the_data_and_examples_written(source: Path, run_dir: Path) -> None:
    prepared = prepare_sft(config_of(source, validation_fraction=0.2), run_dir)
    assert prepared.model_dir == run_dir / "start"
    train, held_out = (read_sequences(run_dir / "data" / name) for name in (TRAIN, VALIDATION))
    assert (len(train), len(held_out)) == (prepared.train, prepared.validation)
    assert len(train) + len(held_out) == len(ROWS)
    assert prepared.skipped == []
    tokenizer = load_tokenizer(str(prepared.model_dir))
    texts = {(tokenizer.decode(prompt), tokenizer.decode(response)) for prompt, response in train + held_out}
    assert texts == {(f"{row['prompt']} = ", f"{row['response']}<|end|>") for row in ROWS}


def test_a_model_is_made_once(source: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_sft(config_of(source), run_dir)
    monkeypatch.setattr("learner.stages.scratch.make_model", None)
    assert prepare_sft(config_of(source), run_dir).model_dir == run_dir / "start"


def test_a_given_model_is_used_as_it_is_with_its_tokenizer_or_another(
    source: Path, run_dir: Path, tmp_path: Path
) -> None:
    make_model(tmp_path / "model", ["xyz"] * 9, ScratchConfig(**SCRATCH))
    assert prepare_sft(config_of(source, {"path": str(tmp_path / "model")}), run_dir).model_dir == tmp_path / "model"
    own = read_sequences(run_dir / "data" / TRAIN)
    assert not (run_dir / "start").exists()

    train_tokenizer([" = "] * 9, 300).save_pretrained(tmp_path / "tokenizer")
    model = {"path": str(tmp_path / "model"), "tokenizer": str(tmp_path / "tokenizer")}
    prepare_sft(config_of(source, model), run_dir)
    others = read_sequences(run_dir / "data" / TRAIN)
    assert max(len(prompt) for prompt, _ in others) < max(len(prompt) for prompt, _ in own)


def test_malformed_rows_are_told(source: Path, run_dir: Path) -> None:
    with source.open("a") as rows:
        rows.write('{"prompt": "\\ud800", "response": "x"}\n{\n')
    prepared = prepare_sft(config_of(source, on_malformed="skip"), run_dir)
    assert [line.split(": ")[0] for line in prepared.skipped] == [f"{source}:65", f"{source}:66"]


# Requests that cannot be met


def test_scratch_with_a_tokenizer_is_refused(source: Path, run_dir: Path) -> None:
    model = {"path": "scratch", "tokenizer": "gpt2", "scratch": SCRATCH}
    with pytest.raises(UsageError, match=r"model.tokenizer 'gpt2' is set and model.path is scratch"):
        prepare_sft(config_of(source, model), run_dir)


def test_a_scratch_model_too_short_for_the_data_is_refused(source: Path, run_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"data.max_tokens 65 exceeds model.scratch.max_tokens 64"):
        prepare_sft(config_of(source, max_tokens=65), run_dir)


def test_a_given_model_too_short_for_the_data_is_refused(source: Path, run_dir: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "model", ["0 1 2"], ScratchConfig(**SCRATCH))
    with pytest.raises(UsageError, match=r"data.max_tokens 65 exceeds the 64 positions of model.path .*model"):
        prepare_sft(config_of(source, {"path": str(tmp_path / "model")}, max_tokens=65), run_dir)


def test_a_tokenizer_with_tokens_that_the_model_does_not_know_is_refused(
    source: Path, run_dir: Path, tmp_path: Path
) -> None:
    make_model(tmp_path / "model", [], ScratchConfig(**SCRATCH))
    train_tokenizer([" = "] * 9, 300).save_pretrained(tmp_path / "tokenizer")
    model = {"path": str(tmp_path / "model"), "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(UsageError, match=r"has token 2\d\d, and model.path .* only 258 tokens"):
        prepare_sft(config_of(source, model), run_dir)


def test_a_model_that_lacks_a_matrix_is_refused_and_unused_tensors_are_told(
    source: Path, run_dir: Path, tmp_path: Path
) -> None:
    """It was trained from random numbers, with exit code 0."""
    matrix = "model.layers.0.mlp.up_proj.weight"
    make_model(tmp_path / "model", ["xyz"] * 9, ScratchConfig(**SCRATCH))
    config = config_of(source, {"path": str(tmp_path / "model")})
    rewrite(tmp_path / "model", lambda tensors: tensors | {"v_head.weight": tensors[matrix].clone()})
    (note,) = prepare_sft(config, run_dir).notes
    assert note.endswith("1 tensor of its files is not part of LlamaForCausalLM: 'v_head.weight'")
    rewrite(tmp_path / "model", lambda tensors: {name: t for name, t in tensors.items() if name != matrix})
    with pytest.raises(UsageError, match=rf"lacks the weights '{matrix}'"):
        prepare_sft(config, run_dir)


def test_demonstrations_end_with_any_token_that_ends_an_answer(source: Path, run_dir: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "model", ["xyz"] * 9, ScratchConfig(**SCRATCH))
    source.write_text("".join(json.dumps({"prompt": f"{n}+1=", "response": f"{n + 1}x"}) + "\n" for n in range(64)))
    config = config_of(source, {"path": str(tmp_path / "model")})
    prepare_sft(config, run_dir)
    (_, response), *_ = read_sequences(run_dir / "data" / TRAIN)
    settings = tmp_path / "model" / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [response[-2], response[-1]]}))
    prepare_sft(config, run_dir)
    (_, shorter), *_ = read_sequences(run_dir / "data" / TRAIN)
    assert shorter == response[:-1]


def test_a_directory_without_a_model_is_refused(source: Path, run_dir: Path, tmp_path: Path) -> None:
    train_tokenizer([], 300).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"model' has no config.json, so it holds no model"):
        prepare_sft(config_of(source, {"path": str(tmp_path / "model")}), run_dir)


def test_a_disk_that_refuses_is_told_with_the_directory(
    source: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "write_sequences", refuse)
    with pytest.raises(
        RunError, match=r"cannot write to .*run: .*No space left on device; free space there, or choose another"
    ):
        prepare_sft(config_of(source), run_dir)
