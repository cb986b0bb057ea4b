"""The figure of the family triangle: where shares stand, and that nothing is lost or unescaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from actors.errors import UsageError
from benchmarks.triangle import HEIGHT, LEFT, OUTPUT, SIDE, TOP, draw, main
from launch.demo.triangle import Curve
from launch.settings.loading import dump_config, load_config
from learner.world.policy import TINY, train_sft

GRID = "#e4e4e4"
SVG = "{http://www.w3.org/2000/svg}"
WAY = Curve("Bradley-Terry", [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0)])
POINT = Curve("Nash, exact", [(1 / 3, 1 / 3, 1 / 3)])


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    """The drawn trajectories; without the grid, and without the legend below the triangle."""
    found = [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")
        if line.get("stroke") != GRID
    ]
    return [points for points in found if points[0][1] <= TOP + HEIGHT + 1]


def texts(svg: str) -> list[str]:
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_pure_families_stand_in_the_corners_clockwise_from_the_top() -> None:
    """And half of each of two stands half-way between their corners."""
    (points,) = polylines(draw([WAY]))
    top, right = (LEFT + SIDE / 2, TOP), (LEFT + SIDE, TOP + HEIGHT)
    between = ((top[0] + right[0]) / 2, (top[1] + right[1]) / 2)
    for drawn, expected in zip(points, (top, between, right), strict=True):
        assert drawn == pytest.approx(expected, abs=0.06)
    (points,) = polylines(draw([Curve("", [(0, 0, 1), (0, 0, 1)])]))
    assert points[0] == pytest.approx((LEFT, TOP + HEIGHT), abs=0.06)


def test_a_rest_without_family_is_left_out() -> None:
    """Shares of .4, .2, .2 (and .2 of nothing) stand where .5, .25, .25 do."""
    short, whole = (draw([Curve("a", [shares, (1, 0, 0)])]) for shares in ((0.4, 0.2, 0.2), (0.5, 0.25, 0.25)))
    assert short == whole


def test_a_way_begins_in_a_ring_and_ends_in_a_dot_and_a_single_policy_is_a_diamond() -> None:
    svg = ElementTree.fromstring(draw([WAY, POINT]))
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
    svg = draw(curves)
    assert texts(svg) == ["reference's favourite", "beats it", "beats that", *(f"route {i}" for i in range(4))]
    strokes = {line.get("stroke") for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")}
    assert len(strokes - {GRID}) == 4
    assert texts(draw(curves, corners=("rock", "paper", "scissors")))[:3] == ["rock", "paper", "scissors"]


def test_the_svg_fits_its_view_and_needs_nothing_from_elsewhere() -> None:
    svg = draw([WAY, POINT, Curve("c", [(0, 0, 1)])])
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox").split())
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.get("x")) < width
        assert 0 < float(text.get("y")) < height
    assert "href" not in svg
    assert svg.count("http") == 1  # the namespace
    assert root.find(f"{SVG}rect").get("fill") == "#ffffff"


def test_labels_are_escaped() -> None:
    assert "a <b> & c" in texts(draw([Curve("a <b> & c", [(1, 0, 0)])]))


def test_no_curves_are_refused() -> None:
    with pytest.raises(UsageError, match="no curves"):
        draw([])


def test_the_command_draws_both_routes_the_start_and_where_nash_md_should_end(tmp_path: Path, capsys) -> None:
    demo = tmp_path / "demo"
    train_sft(demo / "start", updates=1, seed=0, size=TINY)
    for name in ("bradley-terry", "nash-md"):
        (demo / name).mkdir()
        (demo / name / "config.yaml").write_text(dump_config(load_config(f"embedded-{name}")))
        lines: list[dict[str, float]] = [{"step": step, "loss": 0.5} for step in range(1, 21)]
        for line, shares in ((lines[9], (0.2, 0.6, 0.1)), (lines[19], (0.3, 0.3, 0.3))):
            line |= {f"family_{number}": share for number, share in enumerate(shares)}
        (demo / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(demo), "--output", str(tmp_path / "new" / "triangle.svg")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "triangle.svg")
    figure = (tmp_path / "new" / "triangle.svg").read_text()
    assert texts(figure)[3:] == ["bradley-terry", "nash-md", "start", "Nash-MD, exact"]
    ways = polylines(figure)
    assert [len(points) for points in ways] == [3, 3], "the start and two evaluations"
    assert ways[0][0] == ways[1][0], "one start"
    assert texts(OUTPUT.read_text()) == texts(figure), "the page shows a figure of this kind"


def test_a_directory_without_a_demo_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "config.yaml" in capsys.readouterr().err
