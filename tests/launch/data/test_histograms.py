"""Histograms that lose nothing, and a figure that stands alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.data.histograms import AFTER, BEFORE, BINS, HEIGHT, MARK, WIDTH, Histogram, histogram, histograms_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1)
    | st.lists(st.tuples(st.integers(1, 100_000), st.booleans()), min_size=1),
    st.booleans(),
)
def test_every_value_is_in_a_bin_and_none_is_left_that_was_not_there(
    values: list[tuple[float, bool]], lengths: bool
) -> None:
    lengths = lengths and all(isinstance(value, int) for value, _ in values)
    found = histogram("t", "u", [v for v, _ in values], [v for v, kept in values if kept], lengths=lengths)
    assert sum(found.before) == len(values)
    assert sum(found.after) == sum(kept for _, kept in values)
    assert all(after <= before for before, after in zip(found.before, found.after, strict=True))
    assert found.edges == sorted(set(found.edges))
    assert len(found.edges) == len(found.before) + 1


def test_few_lengths_have_a_bin_each_and_many_have_bins_of_equal_ratio() -> None:
    few = histogram("t", "tokens", [3, 3, 4, 6], [3], lengths=True)
    assert (few.edges, few.before, few.after) == ([2.5, 3.5, 4.5, 5.5, 6.5], [2, 1, 0, 1], [1, 0, 0, 0])
    assert not few.logarithmic
    many = histogram("t", "tokens", [1, 10_000], [], lengths=True)
    assert many.logarithmic
    assert many.edges[BINS // 2] == pytest.approx(100.0)


def test_other_values_have_bins_of_equal_width() -> None:
    found = histogram("t", "nats", [-1.0, 3.0], [3.0])
    assert found.edges == pytest.approx([-1.0 + 4.0 * number / BINS for number in range(BINS + 1)])
    assert (found.before[0], found.before[-1], found.after[-1]) == (1, 1, 1)
    assert histogram("t", "nats", [2.0, 2.0], []).edges == [1.5, 2.5]


def test_bars_stand_where_their_counts_say() -> None:
    """Two bins from 0 to 2 with 4 and 2 before, 1 and 0 after, and a threshold at 1.5."""
    panel = Histogram("a < b", "nats", False, [0.0, 1.0, 2.0], [4, 2], [1, 0], (1.5, 9.0))
    root = ElementTree.fromstring(histograms_svg([panel]))
    bars = [
        (rect.get("fill"), float(rect.get("x", 0)), float(rect.get("y", 0)), float(rect.get("height", 0)))
        for rect in root.findall(f"{SVG}g/{SVG}rect")
    ]
    assert bars == [
        (BEFORE, 0.0, 0.0, HEIGHT),
        (BEFORE, WIDTH / 2, HEIGHT / 2, HEIGHT / 2),
        (AFTER, 0.0, 0.75 * HEIGHT, HEIGHT / 4),
    ]
    marks = [path.get("d") for path in root.iter(f"{SVG}path") if path.get("stroke") == MARK]
    assert marks == [f"M{0.75 * WIDTH:.2f} 0V{HEIGHT:g}"], "one beyond the axis is not drawn"
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "a < b 6 to 1" in texts
    assert {"before", "after", "threshold", "nats", "4"} <= set(texts)


def test_panels_stand_three_in_a_row_and_inside_the_figure() -> None:
    panel = histogram("t", "tokens", [1, 10_000], [1], lengths=True)
    root = ElementTree.fromstring(histograms_svg([panel] * 4))
    places = [group.get("transform", "")[len("translate(") : -1].split() for group in root.findall(f"{SVG}g")]
    x, y = [float(place[0]) for place in places], [float(place[1]) for place in places]
    assert x[0] < x[1] < x[2]
    assert x[3] == x[0]
    assert y[0] == y[1] == y[2] < y[3]
    assert max(x) + WIDTH < float(root.get("width", 0))
    assert max(y) + HEIGHT + 34 < float(root.get("height", 0))


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "expected"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]),
        (-1.3, 1.4, False, [-1, 0, 1]),
        (0.02, 0.11, False, [0.02, 0.04, 0.06, 0.08, 0.1]),
        (1.0, 60.0, True, [1, 2, 5, 10, 20, 50]),
        (1.0, 10_000.0, True, [1, 10, 100, 1000, 10000]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, logarithmic: bool, expected: list[float]) -> None:
    assert ticks(low, high, logarithmic=logarithmic) == pytest.approx(expected)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_lie_on_the_axis(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= tick <= low + span + 1e-9 for tick in found)
