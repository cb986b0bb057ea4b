"""Means, intervals, paired differences and areas, each worked out by hand."""

from __future__ import annotations

import pytest

from launch.sweep.results import QUALITIES
from launch.sweep.table import area, estimate, make_rows, paired, quality_of, with_areas
from tests.launch.sweep.sweeps import curve, outcome

EXPLOITABILITY, REWARD, WIN_RATE = QUALITIES
T_1, T_2 = 12.706205, 4.302653
"""Student's t of one and two degrees of freedom, 95%, from a table."""


def test_an_estimate_has_student_s_interval_over_seeds() -> None:
    """0.1, 0.2, 0.3: s = 0.1, half-width 4.3027 x 0.1 / sqrt 3 = 0.2484."""
    found = estimate([0.1, 0.2, 0.3])
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.2 - T_2 * 0.1 / 3**0.5, abs=1e-6),
        pytest.approx(0.2 + T_2 * 0.1 / 3**0.5, abs=1e-6),
    )
    assert found.n == 3


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.4]])
def test_one_seed_or_equal_values_have_no_interval(values: list[float]) -> None:
    found = estimate(values)
    assert (found.mean, found.low, found.high) == (0.4, None, None)


def test_a_difference_is_paired_over_the_seeds_that_both_have() -> None:
    """Differences -0.1 and -0.2: mean -0.15, s = 0.1 / sqrt 2, half-width t s / sqrt 2 = 0.05 t."""
    own = [outcome("b", 0, {"kl": 0.1}), outcome("b", 1, {"kl": 0.3}), outcome("b", 3, {"kl": 9.0})]
    other = [outcome("a", 1, {"kl": 0.5}), outcome("a", 0, {"kl": 0.2}), outcome("a", 2, {"kl": 9.0})]
    found = paired(own, other)["kl"]
    assert (found.mean, found.n) == (pytest.approx(-0.15), 2)
    assert found.low == pytest.approx(-0.15 - 0.05 * T_1, abs=1e-6)
    assert found.high == pytest.approx(-0.15 + 0.05 * T_1, abs=1e-6)


def test_a_failed_run_is_in_no_mean_and_no_difference() -> None:
    failed = outcome("b", 1, {}, status="failed")
    rows = make_rows([outcome("a", 0, {"kl": 1.0}), outcome("b", 0, {"kl": 3.0}), failed], {"loss": "a"})
    assert [(row.runs, row.planned) for row in rows] == [(1, 1), (1, 2)]
    assert rows[1].figures["kl"].mean == 3.0
    assert rows[1].differences is not None
    assert rows[1].differences["kl"].mean == 2.0


def test_a_row_is_compared_with_that_of_its_own_labels_on_the_other_axes() -> None:
    outcomes = [
        outcome("", 0, {"kl": value}, labels={"loss": loss, "bound": bound})
        for loss, bound, value in (("a", "0", 1.0), ("a", "4", 2.0), ("b", "0", 5.0), ("b", "4", 9.0))
    ]
    rows = make_rows(outcomes, {"bound": "0"})
    assert [row.compared_with for row in rows] == [None, "loss=a,bound=0", None, "loss=b,bound=0"]
    assert [row.differences and row.differences["kl"].mean for row in rows] == [None, 1.0, None, 4.0]
    rows = make_rows(outcomes, {"loss": "a", "bound": "0"})
    assert [row.compared_with for row in rows] == [None, *["loss=a,bound=0"] * 3]


def test_a_resumed_run_lends_its_quality_and_not_its_times() -> None:
    figures = {"kl": 1.0, "wall_seconds": 60.0, "share.learner.training": 0.5, "trained_share": 0.9}
    resumed = {"kl": 3.0, "wall_seconds": 2.0, "share.learner.training": 0.1, "trained_share": 0.1}
    (row,) = make_rows([outcome("a", 0, figures), outcome("a", 1, resumed, resumed=True)], {})
    assert row.figures["kl"].mean == 2.0
    for name in ("wall_seconds", "share.learner.training", "trained_share"):
        assert (row.figures[name].mean, row.figures[name].n) == (figures[name], 1)


def test_the_quality_is_the_first_that_every_completed_run_has() -> None:
    both = outcome("a", 0, {"exploitability": 0.1, "win_rate": 0.6})
    one = outcome("a", 1, {"win_rate": 0.7})
    failed = outcome("a", 2, {}, status="failed")
    assert quality_of([both, failed]) is EXPLOITABILITY
    assert quality_of([both, one]) is WIN_RATE
    assert quality_of([both, outcome("a", 1, {"kl": 1.0})]) is None
    assert quality_of([failed]) is None


def test_an_area_is_the_mean_of_the_piecewise_linear_curve() -> None:
    """From (0, 1) to (2, 3), then level to (4, 3). Over [0, 4]: (2 x 2 + 2 x 3) / 4. Over [1, 3]: (2.5 + 3) / 2."""
    points = [(0.0, 1.0), (2.0, 3.0), (4.0, 3.0)]
    assert area(points, 0.0, 4.0) == pytest.approx(2.5)
    assert area(points, 1.0, 3.0) == pytest.approx(2.75)
    assert area(points, 2.0, 4.0) == pytest.approx(3.0)


def test_areas_are_taken_where_all_runs_have_a_curve() -> None:
    """Updates 10 to 30 in both. Tokens up to 60, the smaller total: the second reaches it half-way, at 0.3."""
    first = outcome("a", 0, {}, curve=curve((10, 20, 0.5), (20, 40, 0.3), (30, 60, 0.1)))
    second = outcome("b", 0, {}, curve=curve((10, 20, 0.5), (30, 100, 0.1)))
    without = outcome("b", 1, {}, curve=curve((10, 20, 0.5)))
    found = with_areas([first, second, without], EXPLOITABILITY)
    assert found[0].figures == pytest.approx({"area_updates": 0.3, "area_tokens": 0.3})
    assert found[1].figures == pytest.approx({"area_updates": 0.3, "area_tokens": 0.4})
    assert found[2].figures == {}
    assert with_areas([first], None) == [first]


def test_curves_of_another_figure_have_no_area() -> None:
    other = outcome("a", 0, {}, curve=curve((10, 20, 0.5), (20, 40, 0.3), name="win_rate"))
    assert with_areas([other], REWARD)[0].figures == {}
