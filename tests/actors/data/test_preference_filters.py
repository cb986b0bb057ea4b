"""Duplicates, rules on perplexity and the split, against what was worked out by hand and by a slow path."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.data.preference_filters import (
    PerplexityRules,
    apply_rules,
    ceiling_of,
    comparison_key,
    duplicates_among,
    split_of,
)
from actors.data.preference_layouts import PreferenceRow, prompt_key

AB, BA, AC = PreferenceRow("q", "a", "b"), PreferenceRow("q", "b", "a"), PreferenceRow("q", "a", "c")
SPACED, OTHER = PreferenceRow("q ", " a", "b\n", 0.5), PreferenceRow("r", "b", "a")

SIDES = ("train", "validation")
letters = st.sampled_from("abc")
rows_strategy = st.lists(
    st.builds(PreferenceRow, st.sampled_from(["q", "q ", "r"]), letters, letters).filter(
        lambda r: r.chosen != r.rejected
    )
)


def find_duplicates(rows: list[PreferenceRow], **settings: Any) -> list[Any]:
    return duplicates_among([comparison_key(*row.keys) for row in rows], **settings)


def test_every_row_but_the_first_is_a_duplicate() -> None:
    assert find_duplicates([AB, AC, SPACED, OTHER, AB]) == [None, None, "duplicate", None, "duplicate"]
    assert find_duplicates([AB, AC, SPACED], duplicates=False) == [None, None, None]


def test_a_pair_both_ways_round_is_kept_or_dropped_as_asked() -> None:
    assert find_duplicates([AB, BA, SPACED, OTHER]) == [None, None, "duplicate", None]
    dropped = ["contradictory", "contradictory", "contradictory", None]
    assert find_duplicates([AB, BA, SPACED, OTHER], contradictory="drop") == dropped
    assert find_duplicates([AB, BA, SPACED, OTHER], duplicates=False, contradictory="drop") == dropped


@given(rows_strategy)
def test_what_is_kept_is_the_set_of_what_was_there(rows: list[PreferenceRow]) -> None:
    kept = [row for row, decision in zip(rows, find_duplicates(rows), strict=True) if decision is None]
    assert Counter(row.id for row in kept) == Counter({row.id for row in rows})


@given(rows_strategy, st.integers(0, 3), st.floats(0.0, 1.0, exclude_max=True))
def test_a_prompt_is_never_on_both_sides(rows: list[PreferenceRow], seed: int, fraction: float) -> None:
    sides = {side: {prompt_key(r.prompt) for r in rows if split_of(r, fraction, seed) == side} for side in SIDES}
    assert not sides["train"] & sides["validation"]
    assert all(split_of(row, 0.0, seed) == "train" for row in rows)


def test_the_fraction_of_prompts_is_kept_and_the_seed_changes_which() -> None:
    rows = [PreferenceRow(str(number), "a", "b") for number in range(2000)]
    sides = [[split_of(row, 0.2, seed) for row in rows] for seed in (0, 1)]
    for side in sides:
        assert side.count("validation") == pytest.approx(400, abs=72), "four standard deviations"
    both = sum(a == b == "validation" for a, b in zip(*sides, strict=True))
    assert both == pytest.approx(80, abs=35), "independent of each other"


CHOSEN, REJECTED = np.array([1.0, 1.0, 5.0, 2.0, 3.0]), np.array([1.5, 4.0, 4.5, 2.0, 1.0])


@pytest.mark.parametrize(
    ("rules", "decisions", "outcomes"),
    [
        (PerplexityRules(), [None] * 5, []),
        (
            PerplexityRules(ceiling=4.0),
            [None, None, "unlike_own_samples", None, None],
            [("unlike_own_samples", 5, 1, 1, 0.8)],
        ),
        (
            PerplexityRules(max_gap=2.0),
            [None, "fluency_gap", None, None, None],
            [("fluency_gap", 5, 1, 1, 0.8)],
        ),
        (
            PerplexityRules(mistakes_only=True),
            ["no_mistake", "no_mistake", None, None, None],
            [("no_mistake", 5, 2, 2, 0.6)],
        ),
        (
            PerplexityRules(3.5, 1.0, True),
            ["no_mistake", "unlike_own_samples", "unlike_own_samples", None, "fluency_gap"],
            [
                ("unlike_own_samples", 5, 2, 2, 0.6),
                ("fluency_gap", 3, 1, 2, 1 - 1 / 3),
                ("no_mistake", 2, 1, 2, 0.5),
            ],
        ),
        (
            PerplexityRules(0.0, mistakes_only=True),
            ["unlike_own_samples"] * 5,
            [("unlike_own_samples", 5, 5, 5, 0.0), ("no_mistake", 0, 0, 2, None)],
        ),
    ],
)
def test_rules_leave_out_what_they_say(rules: PerplexityRules, decisions: list[Any], outcomes: list[Any]) -> None:
    found, done = apply_rules(CHOSEN, REJECTED, rules)
    assert found == decisions
    assert [(each.rule, each.judged, each.rejected, each.rejected_alone, each.acceptance) for each in done] == outcomes


def test_the_side_of_a_prompt_never_changes_between_versions() -> None:
    """Directories that were prepared before, and resumed runs, have these sides."""
    prompts = ("one", "two", "three", "four", "five", "six")
    sides = ["validation", "train", "train", "validation", "train", "validation"]
    assert [split_of(PreferenceRow(prompt, "a", "b"), 0.5, 3) for prompt in prompts] == sides


numbers = st.floats(0.0, 10.0)


@given(
    st.lists(st.tuples(numbers, numbers)),
    st.builds(PerplexityRules, st.none() | numbers, st.none() | numbers, st.booleans()),
)
def test_rules_agree_with_one_pair_at_a_time_and_their_counts_balance(
    pairs: list[tuple[float, float]], rules: PerplexityRules
) -> None:
    def slow(good: float, bad: float) -> str | None:
        if rules.ceiling is not None and (good > rules.ceiling or bad > rules.ceiling):
            return "unlike_own_samples"
        if rules.max_gap is not None and abs(good - bad) > rules.max_gap:
            return "fluency_gap"
        return "no_mistake" if rules.mistakes_only and bad > good else None

    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    decisions, outcomes = apply_rules(table[:, 0], table[:, 1], rules)
    assert decisions == [slow(*pair) for pair in pairs]
    assert sum(outcome.rejected for outcome in outcomes) + decisions.count(None) == len(pairs)


def test_a_ceiling_is_a_quantile_of_the_model_s_own_samples() -> None:
    assert ceiling_of([3.0, 1.0, 2.0], 0.5) == 2.0
    assert ceiling_of([0.0, 1.0], 0.99) == pytest.approx(0.99)
