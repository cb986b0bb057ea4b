"""Numbers as they are drawn; every expected value is counted by hand."""

import pytest

from launch.report.drawing.series import number, running_mean, scale_of, thinned, whole_scale


def test_a_thinned_line_keeps_both_ends_and_its_extremes():
    points = [(float(x), 0.0) for x in range(1000)]
    points[137], points[731] = (137.0, 9.0), (731.0, -9.0)
    kept = thinned(points, 10)
    assert len(kept) <= 10
    assert {points[0], points[137], points[731], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_a_short_line_is_not_thinned():
    points = [(1.0, 2.0), (2.0, 1.0), (3.0, 5.0)]
    assert thinned(points, 4) == points


def test_a_running_mean_averages_the_neighbours_and_fewer_at_the_ends():
    """Of 20 points a window is the point and two on each side: (0+1+2)/3, (0+1+2+3)/4, then the middle itself."""
    means = running_mean([(float(x), float(x)) for x in range(20)])
    assert [value for _, value in means[:3]] == pytest.approx([1.0, 1.5, 2.0])
    assert means[10] == pytest.approx((10.0, 10.0))
    assert means[-1] == pytest.approx((19.0, 18.0))


def test_nineteen_points_are_too_few_for_a_running_mean():
    assert running_mean([(float(x), 1.0) for x in range(19)]) == []


@pytest.mark.parametrize(
    ("values", "ticks", "labels"),
    [
        ([0.0, 1.0], [0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([2.0, 2.0], [1.0, 1.5, 2.0, 2.5, 3.0], ["1.0", "1.5", "2.0", "2.5", "3.0"]),
        ([-300.0, 900.0], [0.0, 500.0], ["0", "500"]),
    ],
)
def test_ticks_are_round_and_written_with_the_decimals_they_need(values, ticks, labels):
    scale = scale_of(values)
    assert scale.ticks == pytest.approx(ticks)
    assert [scale.label(tick) for tick in scale.ticks] == labels


def test_a_scale_leaves_room_around_the_values_but_none_below_zero():
    scale = scale_of([0.0, 100.0])
    assert (scale.low, scale.high) == (0.0, 104.0)
    assert scale.share(26.0) == 0.25
    assert scale_of([1.0, 101.0]).low == -3.0


def test_values_that_differ_by_rounding_alone_are_drawn_as_one_level():
    scale = scale_of([0.5, 0.5 + 6e-8, 0.5 - 3e-8])
    assert [scale.label(tick) for tick in scale.ticks] == ["0.4", "0.6"]
    assert scale.share(0.5) == pytest.approx(0.5, abs=1e-6)


def test_updates_have_whole_ticks():
    assert whole_scale(1, 300).ticks == (100.0, 200.0, 300.0)
    assert whole_scale(1, 3).ticks == (1.0, 2.0, 3.0)
    assert whole_scale(7, 7).share(7.0) == 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.66349, "0.663"), (-1.5, "-1.500"), (0.00125, "0.00125"), (1234.6, "1,235"), (123.45, "123")],
)
def test_a_number_has_the_digits_that_a_reader_wants(value, text):
    assert number(value) == text
