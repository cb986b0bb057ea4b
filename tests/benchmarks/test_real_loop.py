"""What a benchmark reads from a loop's times, and the model that ends its answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.beside_trl import OFFBEAT, WORDS, make_models, medians
from benchmarks.real_loop import FixedPrompts, Loop


def loop_of(*stamps: float) -> Loop:
    return Loop(0.0, stamps, {}, {}, (), (), None)


def test_only_updates_after_the_first_ones_are_timed_and_none_after_those() -> None:
    loop = loop_of(10.0, 11.0, 13.0, 16.0, 20.0)
    assert loop.update_seconds(first=2, count=2) == [2.0, 3.0]


def test_a_rate_is_of_the_groups_since_the_end_of_the_first_updates() -> None:
    # Updates 3, 4 and 5 take from 11 to 20.
    assert loop_of(10.0, 11.0, 13.0, 16.0, 20.0).rate(groups=6, first=2) == pytest.approx(3 * 6 / 9.0)


def test_fixed_prompts_come_in_turn() -> None:
    prompts = FixedPrompts([[1, 2], [3, 4]])
    assert [prompts.prompt(position).token_ids for position in range(3)] == [(1, 2), (3, 4), (1, 2)]


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        {name: {"completions_per_second": rate} for name, rate in (("TRL, cached", slow), (OFFBEAT, fast))}
        for slow, fast in ((1.0, 2.0), (4.0, 12.0), (2.0, 8.0))
    ]
    assert medians(rounds, ["TRL, cached"]) == {"TRL, cached": 2.0, OFFBEAT: 8.0, f"{OFFBEAT} / TRL, cached": 3.0}


@pytest.mark.parametrize("mean", [None, 8])
def test_the_policy_ends_an_answer_as_often_as_it_is_made_to(tmp_path, mean) -> None:
    make_models(tmp_path / "policy", tmp_path / "reward", mean)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        logits = model(torch.randint(WORDS, (32, 16), generator=generator)).logits[:, -1]
    padding, end = logits.softmax(-1)[:, WORDS:].mean(0).tolist()
    assert padding < 1e-6
    assert end == (pytest.approx(1 / mean, rel=0.1) if mean else pytest.approx(0.0, abs=1e-6))
