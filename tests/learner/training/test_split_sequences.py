"""Ranks that split sequences between them train as one rank that has whole ones."""

from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from tests.learner.backend.ranks import make_model, run_ranks
from tests.learner.backend.split_ranks import CASES, HEADS, OTHER_CASES, PROGRAM, SAVED, STAGES, checkpoint_of

pytestmark = pytest.mark.slow
TRAINED = {"train-1-1": 1, "train-2-2": 2, "train-4-2": 4, "train-4-4": 4, "other-1-1": 1, "other-2-2": 2}
"""Scenarios, and their ranks: one with whole sequences; two that split them; two such groups; one of four; variants."""
RESUMED = {"resume-2-1": 2, "resume-1-1": 1}
"""From the checkpoint of two ranks that split sequences: two ranks with whole ones, and one."""
ONE_OF_FOUR = pytest.mark.long
"""Two that split, and two such groups, show the same."""
SPLIT = [
    *(("train-2-2", case) for case in CASES),
    *(("train-4-2", case) for case in SAVED),
    *(pytest.param("train-4-4", case, marks=ONE_OF_FOUR) for case in SAVED),
    *(pytest.param("other-2-2", case, marks=pytest.mark.long) for case in OTHER_CASES),
]
"""What of them is compared with whole sequences."""
MEASURED_EXACTLY = ("update", "lr", "pairs", "ties", "games", "tokens", "padded_tokens", "skipped", "skipped_updates")
"""Of an update: what no rounding changes. The counts of tokens leave out an idle rank's."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("split")
    make_model(path / "model", **HEADS)
    make_model(path / "reference", initializer_range=0.1, **HEADS)
    make_model(path / "world", vocab_size=18, **HEADS)
    return path


class Results(dict):
    """What each scenario leaves; it runs when it is first asked for."""

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def __missing__(self, scenario):
        if scenario in RESUMED:
            self["train-2-2"]  # writes the checkpoint
        world = {**TRAINED, **RESUMED}[scenario]
        codes = run_ranks(self.directory, scenario, world, PROGRAM)
        assert codes == [0] * world, (self.directory / f"{scenario}-rank0.log").read_text()[-3000:]
        self[scenario] = torch.load(self.directory / f"{scenario}.pt", weights_only=False)
        return self[scenario]


@pytest.fixture(scope="module")
def results(directory):
    return Results(directory)


def whole_of(scenario):
    """The scenario on the same cases whose one rank has whole sequences."""
    return f"{scenario.partition('-')[0]}-1-1"


def assert_close(found, expected, what):
    """Weights after steps of up to 5e-3, of which a lost or doubled gradient costs a large part; 6e-7 were measured."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=5e-6, rtol=1e-5, msg=f"{what}: {name}")


def assert_same_update(found, expected, *, idle=False):
    found, expected = asdict(found), asdict(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("seconds", *(("tokens", "padded_tokens") if idle else ())):
            continue
        if name in MEASURED_EXACTLY or value is None:
            assert found[name] == value, name
        else:
            assert found[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize(("scenario", "case"), SPLIT)
def test_loss_gradient_and_weights_are_those_of_whole_sequences(results, scenario, case):
    whole, split = results[whole_of(scenario)][case], results[scenario][case]
    assert len(split["updates"]) == len(whole["updates"]) == 3
    for found, expected in zip(split["updates"], whole["updates"], strict=True):
        assert found.grad_norm > 0.01
        assert_same_update(found, expected, idle=scenario == "train-4-2")
    assert_close(split["state"], whole["state"], scenario)


@pytest.mark.parametrize(("scenario", "case"), SPLIT)
def test_scores_are_those_of_whole_sequences(results, scenario, case):
    split, whole = results[scenario][case]["score"], results[whole_of(scenario)][case]["score"]
    assert len(split) == (0 if case[0] else 5)
    for found, expected in zip(split, whole, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("scenario", "case"), SPLIT)
def test_a_publication_is_that_of_whole_sequences_and_holds_the_weights(results, scenario, case):
    whole, split = results[whole_of(scenario)][case], results[scenario][case]
    assert split["published"].keys() == split["state"].keys()
    assert all(torch.equal(split["published"][name], tensor) for name, tensor in split["state"].items())
    assert_close(split["published"], whole["published"], scenario)
    for name in ("canary", "fresh"):
        ours, theirs = (getattr(each["manifest"], name) for each in (split, whole))
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("scenario", ["train-2-2", "train-4-2", pytest.param("train-4-4", marks=ONE_OF_FOUR)])
def test_a_checkpoint_s_model_is_that_of_whole_sequences(results, directory, scenario, case):
    assert case in results[scenario]
    assert case in results["train-1-1"]
    written, expected = (
        load_file(checkpoint_of(directory, each, case) / "hf" / "model.safetensors") for each in (scenario, "train-1-1")
    )
    assert_close(written, expected, scenario)


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("scenario", RESUMED)
def test_a_run_resumes_with_another_split_as_it_would_have_gone_on(results, scenario, case):
    """The same ranks load every bit as it was; one rank does after a conversion."""
    resumed, split = results[scenario][case], results["train-2-2"][case]
    assert resumed["client"] == {"note": "train-2-2"}
    assert all(torch.equal(resumed["state"][name], tensor) for name, tensor in split["state"].items())
    assert_same_update(resumed["update"], split["updates"][2])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["adapters", "offline", "supervised"])
def test_stages_and_adapters_train_as_with_whole_sequences(results, kind, stage):
    whole, split = results["train-1-1"][kind, stage], results["train-2-2"][kind, stage]
    for found, expected in zip(split["stats"], whole["stats"], strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    held_out, expected = (dict_of(each["held out"]) for each in (split, whole))
    assert held_out == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert_close(split["state"], whole["state"], kind)


def dict_of(held_out):
    """Metrics of the held-out set: one evaluation, or the last of several. Idle ranks and padding count tokens more."""
    last = held_out[-1] if isinstance(held_out, list) else held_out
    return {name: value for name, value in last.items() if name not in ("tokens", "padded_tokens")}
