"""What `offbeat preference` prepares, and what it refuses before any actor starts."""

import json

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config, preset_names
from launch.settings.verbs import PREFERENCE
from launch.stages.preference import prepare_preference
from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model
from learner.tensors.examples import TRAIN, VALIDATION, read_pairs
from tests.fakes.models import tiny_preference_model


def config(*overrides):
    return load_config("embedded", [*overrides], PREFERENCE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, ["0123456789"], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=24))
    return path


def rows(tmp_path, chosen="yes"):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{n}", "chosen": chosen, "rejected": "no", "probability": 0.8} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_presets_load_and_are_named_after_themselves():
    assert preset_names(PREFERENCE) == ["embedded"]
    assert config().name == "preference-embedded"
    assert config().training.patience == 3


def test_pairs_of_the_world_are_written_for_a_policy_of_the_world(tmp_path):
    tiny_preference_model(tmp_path / "m", "pairwise")
    found = prepare_preference(config(f"model.path={tmp_path}/m", "data.world.pairs=50"), tmp_path)
    pairs = [read_pairs(tmp_path / "data" / name) for name in (TRAIN, VALIDATION)]
    assert [found.train, found.validation] == [len(side) for side in pairs]
    assert sum(map(len, pairs)) == 50


def test_pairs_of_the_world_are_refused_for_another_vocabulary(tmp_path, model):
    with pytest.raises(UsageError, match=r"data\.source is world and model\.path .* has another vocabulary"):
        prepare_preference(config(f"model.path={model}"), tmp_path)


def test_pairs_of_a_file_keep_their_prompts_and_probabilities(tmp_path, model):
    found = prepare_preference(
        config(f"model.path={model}", f"data.source={rows(tmp_path)}", "data.validation_fraction=0.3"), tmp_path
    )
    train, held_out = (read_pairs(tmp_path / "data" / name) for name in (TRAIN, VALIDATION))
    assert found.train + found.validation == 20
    assert found.validation > 0
    assert {pair.probability for pair in train + held_out} == {0.8}
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}


def test_pairs_that_fit_the_model_only_one_at_a_time_are_refused_or_left_out(tmp_path, model):
    """A prompt of 1 or 2 tokens, 19 (18 letters and the end), 3 (`no` and the end) and two separators are over 24."""
    source = rows(tmp_path, chosen="y" * 18)
    overrides = [f"model.path={model}", f"data.source={source}"]
    with pytest.raises(UsageError, match=r"pairs of data\.source .* are longer than the model's context of 24 tokens"):
        prepare_preference(config(*overrides), tmp_path)
    with pytest.raises(UsageError, match="are longer"):
        prepare_preference(config(*overrides, "data.on_malformed=skip"), tmp_path)
    assert prepare_preference(config(*overrides, "preference.kind=skew"), tmp_path).train > 0


def test_a_model_from_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a preference model starts from one that can read"):
        prepare_preference(config("model.path=scratch"), tmp_path)
