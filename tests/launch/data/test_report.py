"""Histograms that lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.data.report import BINS, histogram


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
