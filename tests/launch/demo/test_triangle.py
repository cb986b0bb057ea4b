"""The family triangle in a terminal: where trajectories run and end, and that it keeps to its size."""

from __future__ import annotations

import math

import pytest

from actors.errors import UsageError
from launch.demo.triangle import Curve, triangle_text

WAY = Curve("Bradley-Terry", [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0)])
POINT = Curve("Nash, exact", [(1 / 3, 1 / 3, 1 / 3)])


def test_the_text_shows_ways_in_small_letters_and_ends_in_capitals() -> None:
    lines = triangle_text([WAY, POINT]).splitlines()
    canvas, legend = lines[:20], lines[20:]
    assert canvas[0].strip() == "reference's favourite"
    assert canvas[19].split("  ")[0] == "beats that"
    assert canvas[19].endswith("beats it")
    assert canvas[1].strip() == "a"  # the way begins in the top corner
    assert canvas[18].endswith("A")  # and ends in the lower right one
    assert sum("a" in line for line in canvas[1:18]) == 17
    (middle,) = (row for row, line in enumerate(canvas) if "B" in line)
    assert middle == round(1 + 2 / 3 * 17)
    assert canvas[middle].index("B") == 30
    assert legend == ["  a..A  Bradley-Terry", "  B     Nash, exact"]


def test_the_text_keeps_to_its_size() -> None:
    for width, height in ((60, 20), (40, 10), (100, 31)):
        lines = triangle_text([WAY, POINT, Curve("a label " * 20, [(0, 0, 1)])], width, height).splitlines()
        assert len(lines) == height + 3
        assert max(map(len, lines)) <= width
        assert "C" in lines[height - 2]


def test_policies_that_end_in_one_place_share_a_star() -> None:
    text = triangle_text([WAY, Curve("other", [(0, 1, 0)])])
    assert text.splitlines()[18].endswith("*")
    assert text.splitlines()[-1] == "  *     several end here"
    assert "*" not in triangle_text([WAY, POINT])


def test_what_cannot_be_drawn_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no curves"):
        triangle_text([])
    with pytest.raises(UsageError, match="curve 'a' has no points"):
        Curve("a", [])
    for point in ((0.5, 0.5), (0.5, -0.1, 0.6), (math.nan, 0.5, 0.5), (0.0, 0.0, 0.0)):
        with pytest.raises(UsageError, match=r"curve 'a' has the point \[.*three shares, none negative"):
            Curve("a", [(1, 0, 0), point])


def test_a_canvas_too_small_to_read_is_refused() -> None:
    with pytest.raises(UsageError, match="20 x 8 characters is unreadable"):
        triangle_text([WAY], 20, 8)
