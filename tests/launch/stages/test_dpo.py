"""Preparation of offline preference learning: what is written for the ranks, and which requests are refused."""

import json

import pyarrow.parquet
import pytest

from actors.data.config import DemonstrationConfig
from actors.data.demonstrations import load_demonstrations
from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.settings.verbs import DPO
from launch.stages.dpo import load_pairs, prepare_dpo, run_dpo
from learner.stages.config import PreferenceDataConfig, ScratchConfig
from learner.stages.scratch import make_model
from learner.tensors.examples import TRAIN, VALIDATION, read_pairs
from tests.actors.data.test_prompts import W0, make_tokenizer

TEXTS = ["Question: 1+1\nAnswer: 2 or so", "Question: 2+2\nAnswer: 4 or so"]
ROWS = [
    {"prompt": f"{n}+1", "chosen": str(n + 1), "rejected": str(n + 2), "probability": 0.5 + n / 40} for n in range(20)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A policy, and a model of another vocabulary."""
    path = tmp_path_factory.mktemp("models")
    size = {"layers": 1, "heads": 1, "max_tokens": 40}
    make_model(path / "policy", TEXTS, ScratchConfig(vocabulary=300, **size))
    make_model(path / "other", ["more words than there were before, " * 9], ScratchConfig(vocabulary=310, **size))
    return path


@pytest.fixture
def config(models, tmp_path):
    def make(*overrides, rows=ROWS):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fixed = [f"model.path={models / 'policy'}", f"data.source={tmp_path / 'rows.jsonl'}", f"output={tmp_path}/run"]
        return load_config(None, [*fixed, *overrides], DPO)

    return make


def test_pairs_are_written_as_the_policy_would_have_sampled_them(config, models, tmp_path):
    from actors.data.text import load_tokenizer

    template = 'data.template="Question: {prompt}\\nAnswer: "'
    prepared = prepare_dpo(config(template, "data.validation_fraction=0.5"), tmp_path / "run")
    train, validation = (read_pairs(tmp_path / "run" / "data" / name) for name in (TRAIN, VALIDATION))
    assert (prepared.train, prepared.validation, prepared.skipped) == (len(train), len(validation), [])
    assert len(train) + len(validation) == 20
    record = {"reference": str(models / "policy"), "kind": "dpo"}
    assert record.items() <= json.loads(prepared.beside["dpo.json"]).items()
    assert 0 < len(validation) < 20
    tokenizer = load_tokenizer(str(models / "policy"))
    written = {tokenizer.decode(pair.prompt): pair for pair in [*train, *validation]}
    for row in ROWS:
        pair = written[f"Question: {row['prompt']}\nAnswer: "]
        for response, text in ((pair.chosen, row["chosen"]), (pair.rejected, row["rejected"])):
            assert response[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(response[:-1]) == text
        assert pair.probability == row["probability"]


def test_saved_runs_find_their_pairs_on_the_same_sides(tmp_path):
    """A resumed run compares its examples with the saved ones, so these sides must never change."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "w{i}", "chosen": "w1", "rejected": "w2"}}\n' for i in range(12)))
    (_, validation), _ = load_pairs(
        PreferenceDataConfig(source=str(path), validation_fraction=0.5), make_tokenizer(), None
    )
    assert [pair.prompt[1] - W0 for pair in validation] == [0, 2, 3, 7, 8, 9, 11]


def test_long_rows_are_refused_by_place_or_skipped_and_told(config, tmp_path):
    rows = [*ROWS, {"prompt": "1" * 9, "chosen": "1", "rejected": "2"}]
    with pytest.raises(UsageError, match=r"1 of 21 rows of data.source .*\n.*rows.jsonl.*21: 9 prompt tokens"):
        prepare_dpo(config("data.max_prompt_tokens=8", rows=rows), tmp_path / "run")
    prepared = prepare_dpo(config("data.max_prompt_tokens=8", "data.on_malformed=skip", rows=rows), tmp_path / "run")
    assert prepared.train + prepared.validation == 20
    assert len(prepared.skipped) == 1
    with pytest.raises(UsageError, match="more than the model's context of 40"):
        prepare_dpo(config(rows=[*ROWS, {"prompt": "1" * 30, "chosen": "1" * 20, "rejected": "2"}]), tmp_path / "run")


def test_wrong_requests_are_refused_before_anything_starts(config, models, tmp_path):
    with pytest.raises(UsageError, match="cannot write yet; give a model, such as one from `offbeat sft`"):
        run_dpo(config("model.path=scratch"))
    with pytest.raises(UsageError, match=r"reference .*other has a vocabulary of \d+ tokens .*; use a reference with"):
        prepare_dpo(config(f"reference={models / 'other'}"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"what it has, 1 example, is held out by data\.validation_fraction 0\.99"):
        prepare_dpo(config("data.validation_fraction=0.99", rows=ROWS[:1]), tmp_path / "run")
    with pytest.raises(UsageError, match=r"learner\.loss\.kind"):
        config("learner.loss.kind=nash_pg")


def test_a_resumed_run_may_not_change_its_reference(config, models):
    before, after = config(), config(f"reference={models / 'policy'}")
    assert {key for key in before.fixed if before.fixed[key] != after.fixed[key]} == {"reference"}
    assert before.fixed["model.path"] == str(models / "policy")
    assert before.fixed["training.batch_size"] == before.training.batch_size


def test_a_split_that_offbeat_data_made_is_held_out_and_not_made_again(config, tmp_path):
    """Both commands split by one hash: the second one found that all prompts to hold out were gone."""
    from launch.cli import main

    config()  # writes the rows
    directory = str(tmp_path / "pairs")
    assert main(["data", str(tmp_path / "rows.jsonl"), "validation_fraction=0.3", "--output", directory]) == 0
    sizes = {name: pyarrow.parquet.read_metadata(f"{directory}/{name}").num_rows for name in (TRAIN, VALIDATION)}
    assert 0 < sizes[VALIDATION] < sizes[TRAIN]
    prepared = prepare_dpo(config(f"data.source={directory}"), tmp_path / "run")
    assert (prepared.train, prepared.validation) == (sizes[TRAIN], sizes[VALIDATION])
    assert "held out: split 'validation' of data.source" in prepared.notes[-1]
    assert len(read_pairs(tmp_path / "run" / "data" / VALIDATION)) == sizes[VALIDATION]

    share = prepare_dpo(config(f"data.source={directory}", "data.validation_split=none"), tmp_path / "share")
    assert share.train + share.validation == sizes[TRAIN]
    alone = prepare_dpo(config(f"data.source={directory}/{TRAIN}"), tmp_path / "alone")
    assert alone.train + alone.validation == sizes[TRAIN], "a file has no splits"
    with pytest.raises(UsageError, match=r"has no file of data\.split 'dev'"):
        prepare_dpo(config(f"data.source={directory}", "data.validation_split=dev"), tmp_path / "none")


def test_demonstrations_use_the_split_that_is_there_too(tmp_path):
    for name, numbers in (("train", range(10)), ("validation", range(10, 14))):
        rows = [json.dumps({"prompt": f"w{n}", "response": "w1"}) + "\n" for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    found = load_demonstrations(DemonstrationConfig(source=str(tmp_path)), make_tokenizer())
    assert [prompt[1] - W0 for prompt, _ in found.train] == list(range(10))
    assert [prompt[1] - W0 for prompt, _ in found.validation] == list(range(10, 14))
    shared = load_demonstrations(DemonstrationConfig(source=str(tmp_path), validation_split="none"), make_tokenizer())
    assert len(shared.train) + len(shared.validation) == 10
