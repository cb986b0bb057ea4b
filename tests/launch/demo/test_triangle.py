"""The family triangle: where shares stand, that nothing is lost or unescaped, and what a terminal shows."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from actors.errors import UsageError
from launch.demo.triangle import HEIGHT, LEFT, SIDE, TOP, Curve, triangle_svg, triangle_text

SVG = "{http://www.w3.org/2000/svg}"
WAY = Curve("Bradley-Terry", [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0)])
POINT = Curve("Nash, exact", [(1 / 3, 1 / 3, 1 / 3)])


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    """The drawn ways; those of the legend, below the triangle, left out."""
    found = [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    ]
    return [points for points in found if points[0][1] <= TOP + HEIGHT + 1]


def texts(svg: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_pure_families_stand_in_the_corners_clockwise_from_the_top() -> None:
    """And half of each of two stands half-way between their corners."""
    (points,) = polylines(triangle_svg([WAY]))
    top, right = (LEFT + SIDE / 2, TOP), (LEFT + SIDE, TOP + HEIGHT)
    between = ((top[0] + right[0]) / 2, (top[1] + right[1]) / 2)
    for drawn, expected in zip(points, (top, between, right), strict=True):
        assert drawn == pytest.approx(expected, abs=0.06)
    (points,) = polylines(triangle_svg([Curve("", [(0, 0, 1), (0, 0, 1)])]))
    assert points[0] == pytest.approx((LEFT, TOP + HEIGHT), abs=0.06)


def test_a_rest_without_family_is_left_out() -> None:
    """Shares of .4, .2, .2 (and .2 of nothing) stand where .5, .25, .25 do."""
    short, whole = (triangle_svg([Curve("a", [shares, (1, 0, 0)])]) for shares in ((0.4, 0.2, 0.2), (0.5, 0.25, 0.25)))
    assert short == whole


def test_a_way_begins_in_a_ring_and_ends_in_a_dot_and_a_single_policy_is_a_diamond() -> None:
    svg = ElementTree.fromstring(triangle_svg([WAY, POINT]))
    in_triangle = [circle for circle in svg.iter(f"{SVG}circle") if float(circle.get("cy")) <= TOP + HEIGHT + 1]
    ring, dot = in_triangle
    assert (ring.get("fill"), float(ring.get("cy"))) == ("#ffffff", TOP)
    assert (dot.get("fill"), float(dot.get("cx"))) == (ring.get("stroke"), LEFT + SIDE)
    diamonds = [path for path in svg.iter(f"{SVG}path") if path.get("fill") not in ("none", None)]
    assert len(diamonds) == 2  # in the triangle and in the legend
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", diamonds[0].get("d")).groups())
    # 7 units above the middle, which is a third of the height over the base.
    assert (x, y + 7) == pytest.approx((LEFT + SIDE / 2, TOP + 2 / 3 * HEIGHT), abs=0.06)


def test_every_curve_has_a_colour_and_a_line_of_the_legend_and_corners_are_named() -> None:
    curves = [Curve(f"route {i}", [(1, i, 1), (1, 1, i + 1)]) for i in range(4)]
    svg = triangle_svg(curves)
    assert texts(svg) == ["reference's favourite", "beats it", "beats that", *(f"route {i}" for i in range(4))]
    strokes = {line.get("stroke") for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")}
    assert len(strokes) == 4
    assert texts(triangle_svg(curves, corners=("rock", "paper", "scissors")))[:3] == ["rock", "paper", "scissors"]


def test_the_svg_fits_its_view_and_needs_nothing_from_elsewhere() -> None:
    svg = triangle_svg([WAY, POINT, Curve("c", [(0, 0, 1)])])
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.get("x")) < width
        assert 0 < float(text.get("y")) < height
    assert "href" not in svg
    assert svg.count("http") == 1  # the namespace
    assert root.find(f"{SVG}rect").get("fill") == "#ffffff"


def test_labels_are_escaped() -> None:
    assert "a <b> & c" in texts(triangle_svg([Curve("a <b> & c", [(1, 0, 0)])]))


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


@pytest.mark.parametrize("draw", [triangle_svg, triangle_text])
def test_what_cannot_be_drawn_is_refused_with_the_reason(draw) -> None:
    with pytest.raises(UsageError, match="no curves"):
        draw([])
    with pytest.raises(UsageError, match="curve 'a' has no points"):
        draw([Curve("a", [])])
    for point in ((0.5, 0.5), (0.5, -0.1, 0.6), (math.nan, 0.5, 0.5), (0.0, 0.0, 0.0)):
        with pytest.raises(UsageError, match=r"curve 'a' has the point \[.*three shares, none negative"):
            draw([Curve("a", [(1, 0, 0), point])])


def test_a_canvas_too_small_to_read_is_refused() -> None:
    with pytest.raises(UsageError, match="20 x 8 characters cannot be read"):
        triangle_text([WAY], 20, 8)
