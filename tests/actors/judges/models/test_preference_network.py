"""Preference models: algebra by hand, and batches against each sequence alone, without padding or batching."""

import json
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from actors.errors import RunError, UsageError
from actors.judges.models.preference_network import (
    PreferenceForm,
    PreferenceModel,
    PreferenceNetwork,
    probabilities,
    read_form,
    write_form,
)
from actors.world import BOS, EOS, FIRST_SYMBOL, SEP
from tests.fakes.models import tiny_llama, tiny_preference_model

KINDS = [("bradley_terry", 0), ("pairwise", 0), ("skew", 3)]
PROMPTS = [(BOS, 10, 14, SEP), (BOS, 11, 15, SEP)]


def responses():
    """Five per prompt, of mixed lengths, one unfinished and one twice."""
    rng = np.random.default_rng(0)
    groups = []
    for _ in PROMPTS:
        said = [tuple((FIRST_SYMBOL + rng.integers(6, size=length)).tolist()) for length in (1, 3, 2, 4)]
        finished = [(*symbols, EOS) for symbols in said[:3]]
        groups.append([*finished, said[3], finished[1]])
    return groups


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind[0])
def directory(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("preference")
    tiny_preference_model(path, request.param[0], skew_blocks=request.param[1], temperature=1.7)
    return path


def outputs_alone(network, sequence):
    """The head on the last hidden state of one sequence."""
    with torch.no_grad():
        state = network.model.model(torch.tensor([sequence])).last_hidden_state[0, -1]
        return (network.model.score.weight @ state).double().numpy()


def logit_alone(network, form, prompt, first, second):
    if form.kind == "pairwise":
        both = [[*prompt, *a, EOS, *b, EOS] for a, b in ((first, second), (second, first))]
        one, other = (outputs_alone(network, sequence)[0] for sequence in both)
        return (one - other) / 2 / form.temperature
    a, b = (outputs_alone(network, [*prompt, *response]) for response in (first, second))
    rotation = np.kron(np.eye(form.skew_blocks), [[0.0, -1.0], [1.0, 0.0]])
    return (a[0] - b[0] + a[1:] @ rotation @ b[1:]) / form.temperature


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_batched_logits_are_those_of_each_pair_alone(directory, batch_tokens):
    model = PreferenceModel.load(directory, batch_tokens=batch_tokens)
    tables = model.tables(PROMPTS, responses())
    for prompt, ys, table in zip(PROMPTS, responses(), tables, strict=True):
        expected = [[logit_alone(model._network, model.form, prompt, a, b) for b in ys] for a in ys]
        assert np.std(expected) > 0.05
        np.testing.assert_allclose(table, expected, atol=2e-5)


def test_exchanged_responses_have_the_opposite_logit_and_equal_ones_none_exactly(directory):
    for table in PreferenceModel.load(directory).tables(PROMPTS, responses()):
        assert (table == -table.T).all()
        assert table[1, 4] == 0.0, "the same response twice"
        preferred = probabilities(table)
        assert (preferred + preferred.T == 1.0).all()
        assert (np.diag(preferred) == 0.5).all()
        assert preferred[1, 4] == 0.5


def test_the_curl_of_bradley_terry_is_exactly_zero_and_that_of_the_others_is_not(directory):
    model = PreferenceModel.load(directory)
    tables = model.tables(PROMPTS, responses())
    curls = [s[i, j] + s[j, k] + s[k, i] for s in tables for i, j, k in permutations(range(4), 3)]
    assert (max(map(abs, curls)) == 0.0) == (model.form.kind == "bradley_terry")


def test_the_temperature_divides_the_logits(directory):
    model = PreferenceModel.load(directory)
    warm = model.tables(PROMPTS, responses())
    model.form = replace(model.form, temperature=1.0)
    for divided, whole in zip(warm, model.tables(PROMPTS, responses()), strict=True):
        np.testing.assert_allclose(divided * 1.7, whole, rtol=1e-5, atol=1e-7)


def test_skew_logits_by_hand_alike_in_numpy_and_torch():
    """u_1 = (1, 2), u_2 = (3, -1): R u_2 = (1, 3), so u_1^T R u_2 = 7; and r_1 - r_2 = 1/2."""
    form = PreferenceForm("skew", EOS, 1)
    first, second = np.array([1.0, 1.0, 2.0]), np.array([0.5, 3.0, -1.0])
    assert form.logits(first, second) == 7.5
    assert form.logits(second, first) == -7.5
    assert form.logits(torch.tensor(first), torch.tensor(second)).item() == 7.5


def test_the_skew_form_holds_a_circle_that_no_reward_does():
    """Three unit vectors a third of a turn apart: each loses to the next by sin(120 degrees)."""
    form = PreferenceForm("skew", EOS, 1)
    angles = 2.0 * math.pi * np.arange(3) / 3.0
    outputs = np.stack([np.zeros(3), np.cos(angles), np.sin(angles)], axis=1)
    table = form.logits(outputs[:, None], outputs[None])
    np.testing.assert_allclose([table[0, 1], table[1, 2], table[2, 0]], -math.sqrt(3.0) / 2.0)


def test_pairs_are_read_with_a_separator_after_each_response_that_tells_an_unfinished_one_apart():
    pairwise, alone = PreferenceForm("pairwise", EOS), PreferenceForm("bradley_terry", EOS)
    assert pairwise.sequences((1, 9), (5, EOS), (6,)) == ((1, 9, 5, EOS, EOS, 6, EOS), (1, 9, 6, EOS, 5, EOS, EOS))
    assert alone.sequences((1, 9), (5, EOS), (6,)) == ((1, 9, 5, EOS), (1, 9, 6))


def test_probabilities_of_huge_logits_stay_probabilities():
    np.testing.assert_array_equal(probabilities(np.array([[0.0, 2000.0], [-2000.0, 0.0]])), [[0.5, 1.0], [0.0, 0.5]])


def test_a_single_response_and_no_prompt_at_all_are_answered(directory):
    model = PreferenceModel.load(directory)
    assert model.tables([], []) == []
    np.testing.assert_array_equal(model.tables(PROMPTS[:1], [[(5, EOS)]])[0], [[0.0]])


def test_a_sequence_beyond_the_models_positions_is_an_error(tmp_path):
    tiny_preference_model(tmp_path, "pairwise", positions=8)
    model = PreferenceModel.load(tmp_path)
    assert model.fits((1, 9), (5, EOS), (6, EOS))
    assert not model.fits((1, 9, 9), (5, EOS), (6, EOS))
    with pytest.raises(RunError, match="two responses is 9 tokens, and the preference model has 8 positions"):
        model.tables([(1, 9, 9)], [[(5, EOS), (6, EOS)]])


def test_the_form_is_written_and_read(tmp_path):
    form = PreferenceForm("skew", 7, 2, 1.25)
    write_form(tmp_path, form, calibration={"ece": 0.1})
    assert read_form(tmp_path) == form
    assert json.loads((tmp_path / "preference.json").read_text())["calibration"] == {"ece": 0.1}


@pytest.mark.parametrize("damage", ["", "[]", '{"kind": "pairwise"}'])
def test_a_directory_without_a_whole_form_is_refused(tmp_path, damage):
    if damage:
        (tmp_path / "preference.json").write_text(damage)
    with pytest.raises(UsageError, match=r"preference\.json is missing or damaged"):
        read_form(tmp_path)


def test_a_form_that_cannot_be_is_refused(tmp_path):
    write_form(tmp_path, PreferenceForm("pairwise", 2, 0, -1.0))
    with pytest.raises(UsageError, match=r"temperature -1\.0; allowed are"):
        read_form(tmp_path)


def test_a_language_model_is_not_taken_for_a_preference_model_with_a_random_head(tmp_path):
    tiny_llama(tmp_path, seed=0)
    write_form(tmp_path, PreferenceForm("pairwise", 1))
    with pytest.raises(UsageError, match=r"lacks the weights 'score\.weight' of LlamaForSeq"):
        PreferenceModel.load(tmp_path)


def test_a_model_without_a_head_on_the_last_token_is_refused():
    with pytest.raises(UsageError, match="Linear has no head `score`"):
        PreferenceNetwork(torch.nn.Linear(2, 2))
