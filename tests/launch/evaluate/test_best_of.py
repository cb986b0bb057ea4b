"""Estimates of a choice among K candidates against enumeration of every subset, and figures by hand."""

from fractions import Fraction
from itertools import combinations

import pytest

from actors.intervals import share_interval
from launch.evaluate.best_of import Candidates, best_of_k, majority_is_correct, pass_at_k, render, report, wins

CORRECT = (True, False, False, True, False, True)
SCORES = (-3.0, -1.0, -7.0, -2.0, -5.0, -4.0)


@pytest.mark.parametrize("k", range(1, 7))
def test_estimates_are_means_over_all_subsets(k):
    subsets = list(combinations(range(6), k))
    oracle = sum(any(CORRECT[i] for i in subset) for subset in subsets) / len(subsets)
    chosen = sum(CORRECT[max(subset, key=lambda i: SCORES[i])] for subset in subsets) / len(subsets)
    assert pass_at_k(CORRECT, k) == pytest.approx(oracle)
    assert best_of_k(CORRECT, SCORES, k) == pytest.approx(chosen)


def test_a_verifier_that_knows_is_the_oracle_and_one_that_errs_is_below_chance():
    knows, errs = [float(ok) for ok in CORRECT], [-float(ok) for ok in CORRECT]
    assert best_of_k(CORRECT, knows, 2) == pytest.approx(pass_at_k(CORRECT, 2))
    assert best_of_k(CORRECT, errs, 2) == pytest.approx(3 / 15)


def test_the_majority_decides_without_those_that_give_no_answer():
    two = Fraction(2)
    assert majority_is_correct(Candidates((True, False, True, False), (two, "x", two, None)))
    assert not majority_is_correct(Candidates((True, False, False, True), (two, "x", "x", None)))
    # No majority of the silent, and a tie goes to the first sampled.
    assert majority_is_correct(Candidates((True, False, False, False), (two, None, None, "x")))
    assert not majority_is_correct(Candidates((False, True), ("x", two)))
    assert not majority_is_correct(Candidates((False, False), (None, None)))


def test_the_report_averages_prompts_for_powers_of_two_and_for_all():
    sampled = [
        Candidates((True, False, False), ("a", "b", "b"), ((1.0, 0.0, -1.0), (-1.0, 0.0, 1.0))),
        Candidates((False, False, False), ("c", "d", None), ((1.0, 0.0, -1.0), (1.0, 0.0, -1.0))),
    ]
    figures = report(sampled)
    assert [row.k for row in figures.rows] == [1, 2, 3]
    assert figures.pass_at_1.value == pytest.approx(1 / 6)
    assert (figures.pass_at_1.low, figures.pass_at_1.high) == pytest.approx(share_interval([1 / 3, 0.0]))
    assert [row.oracle.value for row in figures.rows] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert [row.verifiers[0].value for row in figures.rows] == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert [row.verifiers[1].value for row in figures.rows] == pytest.approx([1 / 6, 0.0, 0.0])
    assert figures.majority.value == 0.0
    table = render(figures, ["knows", "errs"])
    assert "2 prompts, 3 candidates each" in table
    assert "verifier 2: errs" in table
    (row,) = [line for line in table.splitlines() if line.startswith("best of 2")]
    assert [cell for cell in row.split() if "." in cell][::3] == ["0.333", "0.333", "0.000"]


def test_what_nobody_said_is_left_out():
    figures = report([Candidates((True, True))])
    assert figures.majority is None
    assert [row.verifiers for row in figures.rows] == [[], []]
    assert [row.oracle.value for row in figures.rows] == [1.0, 1.0]
    assert "majority" not in render(figures)


def test_scores_without_a_threshold_have_a_mean_and_wins_instead_of_accuracies():
    """Lengths with a minus sign, no answer right: pass@1 was 0.000. Of two prompts' three scores the best is -1 and -2,
    and of two drawn at random the better one -1, -1 or -2, then -2, -2 or -4; the verifier takes the first drawn."""
    sampled = [
        Candidates(None, scores=((3.0, 2.0, 1.0),), judged=(-2.0, -1.0, -3.0), prompt="a"),
        Candidates(None, scores=((3.0, 2.0, 1.0),), judged=(-2.0, -4.0, -6.0), prompt="b"),
    ]
    figures = report(sampled)
    assert (figures.pass_at_1, figures.majority) == (None, None)
    assert figures.mean_score.value == pytest.approx(-3.0)
    assert [row.oracle.value for row in figures.rows] == pytest.approx([-3.0, -2.0, -1.5])
    assert [row.oracle_wins.value for row in figures.rows] == pytest.approx([1 / 2, (5 / 6 + 5 / 6) / 2, 1.0])
    assert [row.verifiers[0].value for row in figures.rows] == pytest.approx([-3.0, (-5 / 3 - 8 / 3) / 2, -2.0])
    assert [row.verifier_wins[0].value for row in figures.rows] == pytest.approx([1 / 2, (2 / 3 + 5 / 6) / 2, 3 / 4])
    table = render(figures, ["one"])
    assert "mean score" in table
    assert "win rate" in table
    assert "pass@1" not in table


def test_equal_scores_tie():
    assert wins((1.0, 1.0, 0.0)) == [0.75, 0.75, 0.0]
    assert wins((4.0,)) == [0.5]


def test_a_prompt_that_repeats_counts_once():
    sampled = [Candidates((True,), prompt="a"), Candidates((False,), prompt="a"), Candidates((True,), prompt="b")]
    figures = report(sampled)
    assert (figures.prompts, figures.pass_at_1.value) == (2, 0.75)


def test_one_prompt_has_no_interval():
    figures = report([Candidates((True, False))])
    assert (figures.pass_at_1.value, figures.pass_at_1.low) == (0.5, None)
    assert "pass@1         0.500" in render(figures)
