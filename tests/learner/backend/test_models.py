"""Generation settings that saved models carry, and the rehearsal of saving before the first update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from actors.errors import UsageError
from learner.backend.models import generation_settings, load_model, rehearse, settle_generation
from tests.fakes.models import tiny_llama

ENDS = (1, 3)


def model_with(directory: Path, **generation_config: Any) -> Path:
    """A model that ends with 1, and its generation_config.json."""
    tiny_llama(directory, seed=0)
    (directory / "generation_config.json").write_text(json.dumps(generation_config))
    return directory


def saved(directory: Path, **settings: Any) -> dict[str, Any]:
    made, _ = generation_settings(directory, ENDS, **settings)
    made.save_pretrained(directory / "saved")
    return json.loads((directory / "saved" / "generation_config.json").read_text())


def test_saved_settings_name_every_token_that_ends_an_answer(tmp_path: Path) -> None:
    assert saved(model_with(tmp_path, eos_token_id=[7, 3]))["eos_token_id"] == [1, 3]
    (tmp_path / "generation_config.json").unlink()
    assert saved(tmp_path)["eos_token_id"] == [1, 3]
    one, _ = generation_settings(tmp_path, (3,))
    own, _ = generation_settings(tmp_path, ())
    assert (one.eos_token_id, own.eos_token_id) == (3, 1)


def test_saved_settings_of_a_run_sample_as_the_run_did(tmp_path: Path) -> None:
    model_with(tmp_path, temperature=0.2, top_p=0.9, top_k=20, do_sample=True, repetition_penalty=1.1, pad_token_id=0)
    found = saved(tmp_path, temperature=0.7)
    assert {name: found[name] for name in ("do_sample", "temperature", "top_k", "top_p")} == {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 1.0,
    }
    assert (found["repetition_penalty"], found["pad_token_id"]) == (1.1, 0)
    kept = saved(tmp_path)
    assert (kept["temperature"], kept["top_p"], kept["top_k"]) == (0.2, 0.9, 20)


@pytest.mark.parametrize("sampling", [{"temperature": 0.9, "top_p": 0.6}, {"typical_p": 0.5}, {"min_p": 0.1}])
def test_sampling_settings_without_do_sample_are_repaired_and_told(tmp_path: Path, sampling: dict[str, float]) -> None:
    """Such a file ended a run at its first checkpoint, with nothing saved."""
    model_with(tmp_path, do_sample=False, **sampling)
    _, repaired = generation_settings(tmp_path, ENDS)
    assert repaired is not None
    assert "sets how to sample, but not do_sample" in repaired
    assert saved(tmp_path) == {**saved(tmp_path), **sampling, "do_sample": True}


def test_a_negative_padding_token_of_old_exports_is_left_out(tmp_path: Path) -> None:
    assert "pad_token_id" not in saved(model_with(tmp_path, pad_token_id=-1))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"early_stopping": 7}, "`early_stopping` must be a boolean or 'never', but is 7"),
        ({"max_new_tokens": -1, "temperature": 0.3}, "`max_new_tokens` must be greater than 0, but is -1"),
        ({"cache_implementation": "foo"}, "Choose one of"),
    ],
)
def test_settings_that_cannot_be_saved_are_refused_with_the_whole_reason(tmp_path, broken, reason) -> None:
    model_with(tmp_path, **broken)
    with pytest.raises(UsageError, match=r"generation_config\.json") as refused:
        generation_settings(tmp_path, ENDS)
    assert reason in str(refused.value)


def test_a_settled_model_is_saved_and_loaded_with_its_settings(tmp_path: Path) -> None:
    source = model_with(tmp_path / "source", temperature=0.9, top_p=0.6, do_sample=False)
    model = load_model(source, "float32")
    settle_generation(model, source, ENDS, 0.8)
    rehearse(model, source)
    model.save_pretrained(tmp_path / "final")
    found = GenerationConfig.from_pretrained(tmp_path / "final")
    assert (found.temperature, found.do_sample, found.eos_token_id) == (0.8, True, [1, 3])
    AutoModelForCausalLM.from_pretrained(tmp_path / "final")


def test_the_rehearsal_writes_nothing_beside_the_model_and_tells_what_saving_would_raise(tmp_path: Path) -> None:
    source = model_with(tmp_path / "source")
    model = load_model(source, "float32")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    rehearse(model, source)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert model.generation_config is not None
    model.generation_config.temperature = 0.5  # as a directory's own settings would be, unsettled
    with pytest.raises(
        UsageError, match=r"could not be saved: ValueError: GenerationConfig is invalid: \n.*temperature"
    ):
        rehearse(model, source)


def test_a_model_that_writes_no_text_names_in_its_configuration_what_ended_answers_in_training(tmp_path: Path) -> None:
    """A preference model whose ends stood in another directory's generation_config.json was read at another token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=9, **sizes))
    settle_generation(model, tmp_path, (2, 5))
    assert model.config.eos_token_id == [2, 5]
    settle_generation(model, tmp_path, (3,))
    assert model.config.eos_token_id == 3
