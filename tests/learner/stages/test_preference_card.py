"""The card of a preference model: its figures by hand, and as written."""

import json
import random

import numpy as np
import pytest
import torch

from actors.judges.models.preference_network import PreferenceModel, read_form
from actors.world import EOS, prompt_token_ids
from learner.stages import preference_card as card
from learner.stages.config import PreferenceConfig
from learner.tensors.examples import TokenPair
from learner.world.pairs import world_pairs
from tests.fakes.models import tiny_preference_model

KINDS = [("bradley_terry", 0), ("pairwise", 0), ("skew", 2)]


def test_degraded_answers_by_hand():
    other = (9, EOS)
    made = card.degraded((4, 5, 6, 7, EOS), other, EOS, random.Random(1))
    assert sorted(made.pop("shuffled")) == [EOS, 4, 5, 6, 7]
    assert made == {
        "repeated": (4, 5, 6, 7, 4, 5, 6, 7, EOS),
        "truncated": (4, 5, EOS),
        "other_prompt": other,
        "empty": (EOS,),
    }


def test_a_degradation_that_changes_nothing_is_left_out():
    made = card.degraded((4, EOS), (4, EOS), EOS, random.Random(0))
    assert {name for name, tokens in made.items() if tokens is None} == {"shuffled", "other_prompt"}
    assert (made["repeated"], made["truncated"], made["empty"]) == ((4, 4, EOS), (EOS,), (EOS,))
    assert card.degraded((EOS,), (5, EOS), EOS, random.Random(0))["empty"] is None
    assert card.degraded((4, 4), (5, EOS), EOS, random.Random(0))["shuffled"] is None, "it would only be finished"


def pair(prompt, a, b, p=1.0):
    return TokenPair((prompt,), (a, EOS), (b, EOS), p)


def test_triples_are_of_three_different_responses_to_one_prompt():
    pairs = [pair(1, 4, 5), pair(1, 5, 6), pair(2, 4, 5), pair(2, 5, 4), pair(3, 7, 8), pair(3, 8, 9), pair(3, 4, 9)]
    found = card.triples(pairs)
    assert {prompt for prompt, _ in found} == {(1,), (3,)}
    assert [ys for prompt, ys in found if prompt == (1,)] == [((4, EOS), (5, EOS), (6, EOS))]
    assert len([ys for prompt, ys in found if prompt == (3,)]) == 4, "of 4, 7, 8 and 9"
    assert card.triples(pairs[2:4]) == []
    assert found == card.triples(pairs)
    assert len(card.triples(pairs, 2)) == 2


def test_a_baseline_of_length_alone_by_hand():
    """In training the longer by one wins with 3/4, so a = log 3; held out it loses once and wins once."""
    longer, shorter = (4, 5, EOS), (4, EOS)
    train = [TokenPair((1,), longer, shorter, 0.75), TokenPair((1,), shorter, longer, 0.25)]
    held_out = [TokenPair((1,), longer, shorter, 1.0), TokenPair((1,), longer, shorter, 0.0)]
    found = card.length_baseline(train, held_out)["length_only"]
    assert found["slope"] == pytest.approx(np.log(3.0))
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-0.5 * np.log(0.75 * 0.25))


class Scripted:
    """A model that answers with given values."""

    def __init__(self, orders=None, table=None):
        self._orders, self._table = orders, table

    def raw_orders(self, prompts, pairs):
        return self._orders

    def fits(self, *sequences):
        return True

    def tables(self, prompts, responses):
        return [np.array([[0.0, s], [-s, 0.0]]) for s in (self._table(*both) for both in responses)]


def test_order_bias_by_hand():
    """b = 1, 0 and -1/2; the first pair's winner is whoever comes first, the others' is the same both ways."""
    orders = np.array([[3.0, -1.0], [2.0, -2.0], [0.5, -1.5]])
    found = card.order_bias(Scripted(orders), [pair(1, 4, 5)] * 3)["order_bias"]
    assert found == {"mean": pytest.approx(1 / 6), "mean_absolute": 0.5, "order_decides": 0.0}
    orders[0] = [3.0, 1.0]
    assert card.order_bias(Scripted(orders), [pair(1, 4, 5)] * 3)["order_bias"]["order_decides"] == pytest.approx(1 / 3)


def test_a_model_that_likes_length_is_found_to_like_repetition_and_not_truncation():
    pairs = [TokenPair((x,), (4, 5 + x, EOS), (9, EOS), 1.0) for x in range(4)]
    figures = card.degraded_metrics(Scripted(table=lambda a, b: float(len(a) - len(b))), pairs, EOS)
    assert {name: entry["loses"] for name, entry in figures.items()} == {
        "shuffled": 0.5,
        "repeated": 0.0,
        "truncated": 1.0,
        "other_prompt": 0.5,
        "empty": 1.0,
    }


def config(**preference):
    return PreferenceConfig.model_validate(
        {"model": {"path": "m"}, "data": {"source": "world"}, "learner": {"dtype": "float32"}, "preference": preference}
    )


def finished(path, kind, blocks, validation, **preference):
    tiny_preference_model(path, kind, skew_blocks=blocks)
    form, train = read_form(path), world_pairs("intransitive", 200, "soft", 1, 0.0)[0]
    settings = config(kind=kind, **preference)
    return card.finish(path, torch.device("cpu"), config=settings, form=form, train=train, validation=validation)


@pytest.mark.parametrize(("kind", "blocks"), KINDS)
def test_a_finished_model_is_calibrated_and_tells_its_figures(tmp_path, kind, blocks):
    validation = world_pairs("intransitive", 300, "soft", 0, 0.0)[0]
    told = finished(tmp_path, kind, blocks, validation)
    assert told == json.loads((tmp_path / "model_card.json").read_text())
    model = PreferenceModel.load(tmp_path)
    assert model.form.temperature == told["temperature"] != 1.0
    z, p = card.logits(model, validation), np.array([each.probability for each in validation])
    assert told["nll"] == pytest.approx(card.negative_log_likelihood(z, p), abs=1e-6)
    assert told["label_entropy"] < told["nll"] < told["nll_before"]
    assert (told["curl"]["mean_absolute"] == 0.0) == (told["curl"]["cyclic_share"] == 0.0) == (kind == "bradley_terry")
    assert (told["order_bias"]["mean_absolute"] == 0.0) == (kind != "pairwise")
    assert told["degraded"]["empty"]["pairs"] > 200
    text = (tmp_path / "README.md").read_text()
    assert f"{told['accuracy']:.4f}" in text
    assert f"{told['curl']['mean_absolute']:.4f}" in text


def test_without_calibration_the_temperature_stays_one(tmp_path):
    validation = world_pairs("intransitive", 50, "soft", 0, 0.0)[0]
    told = finished(tmp_path, "skew", 1, validation, calibrate=False)
    assert told["temperature"] == 1.0
    assert told["nll"] == told["nll_before"]


def test_where_nothing_is_held_out_or_no_triple_is_there_the_card_says_why(tmp_path):
    told = finished(tmp_path / "a", "pairwise", 0, [])
    assert told["temperature"] == 1.0
    assert told["fit"] is told["order_bias"] is told["length_only"] is told["curl"] is None
    assert told["degraded"]["shuffled"] == {"loses": None, "pairs": 0}
    assert "no pair was held out" in (tmp_path / "a" / "README.md").read_text()
    two = [TokenPair(prompt_token_ids(0), (4, EOS), (6, EOS), 1.0)]
    told = finished(tmp_path / "b", "pairwise", 0, two)
    assert told["curl_why"] == "no held-out prompt has three different responses"
