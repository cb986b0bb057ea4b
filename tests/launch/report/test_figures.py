"""Figures: where things are drawn, from coordinates that are worked out by hand."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from launch.demo.triangle import Curve
from launch.report.drawing import svg
from launch.report.drawing.diagrams import Lane, budget_figure, histogram_figure, timeline_figure, triangle_figure
from launch.report.drawing.plots import Line, Plot, plot_figure

SVG = "svg"


def elements(figure: str, name: str, kind: str | None = None) -> list[ElementTree.Element]:
    found = ElementTree.fromstring(figure).iter(name)
    return [each for each in found if kind is None or kind in each.get("class", "").split()]


def plotted(*lines: Line, **more: object) -> str:
    return plot_figure(Plot(title="T", lines=lines, **more))


def test_a_line_runs_from_corner_to_corner_of_its_axes():
    """x: 0 to 10 is 48 to 388. y: 0 to 1 with 4% of room above is 186 to 186 - 174 / 1.04 = 18.7."""
    (line,) = elements(plotted(Line("a", [(0.0, 0.0), (10.0, 1.0)])), "path", "line")
    assert line.get("d") == "M48.0 186.0L388.0 18.7"


def test_an_interval_is_an_area_that_widens_the_axis():
    """The highest bound, 2, is at the top: 186 - 174 / 1.04 * (2 / 2) = 18.7."""
    bounded = Line("a", [(0.0, 1.0), (10.0, 1.0)], bounds={0.0: (0.0, 2.0), 10.0: (1.0, 1.0)})
    figure = plotted(bounded)
    (band,) = elements(figure, "path", "band")
    assert band.get("d") == "M48.0 18.7L388.0 102.3L388.0 102.3L48.0 186.0Z"
    assert elements(figure, "path", "whisker") == []


def test_noise_is_faint_under_its_running_mean():
    figure = plotted(Line("a", [(float(x), float(x % 2)) for x in range(40)], noisy=True))
    assert len(elements(figure, "path", "faint")) == 1
    assert len(elements(figure, "path", "line")) == 1


def test_a_single_point_is_a_dot_in_the_middle():
    figure = plotted(Line("a", [(7.0, 3.0)]))
    (dot,) = elements(figure, "circle", "dot")
    assert (dot.get("cx"), elements(figure, "path", "line")) == ("218", [])


def test_several_lines_have_a_legend_and_one_has_none():
    one, other = Line("first", [(1.0, 1.0)]), Line("second", [(1.0, 2.0)], 1)
    assert [item.get("class") for item in elements(plotted(one, other), "li")] == ["s0", "s1"]
    assert elements(plotted(one), "li") == []


def test_a_long_line_is_drawn_with_few_points_and_its_highest():
    points = [(float(x), 0.0) for x in range(50_000)]
    points[31_313] = (31_313.0, 1.0)
    figure = plotted(Line("a", points))
    (line,) = elements(figure, "path", "line")
    assert line.get("d").count("L") < 600
    assert " 18.7" in line.get("d")


def test_what_the_script_shows_is_the_value_with_its_interval():
    figure = plotted(Line("a", [(4.0, 0.5)], bounds={4.0: (0.25, 0.75)}))
    (drawing,) = elements(figure, SVG)
    ((name, colour, points),) = json.loads(drawing.get("data-tips"))
    assert (name, colour) == ("a", "s0")
    assert points[0][2:] == ["update 4", "0.500 [0.250, 0.750]"]


def test_a_level_that_matters_is_in_the_picture():
    figure = plotted(Line("a", [(1.0, 0.7), (2.0, 0.8)]), level=(0.5, "even"))
    assert len(elements(figure, "path", "level")) == 1
    assert "even" in [each.text for each in elements(figure, "text")]


def test_bars_over_the_bound_are_told_apart():
    figure = histogram_figure("T", "", {0: 1, 2: 3}, bound=1)
    allowed, over = elements(figure, "rect", "s0"), elements(figure, "rect", "over")
    assert [each[0].text for each in allowed] == ["1 group at staleness 0, 25.0%"]
    assert [each[0].text for each in over] == ["3 groups at staleness 2, 75.0%"]
    assert float(over[0].get("height")) == pytest.approx(3 * float(allowed[0].get("height")), abs=0.2)


def test_a_bound_far_beyond_all_ages_is_told_and_not_drawn():
    figure = histogram_figure("T", "note", {0: 1, 1: 1}, bound=1000)
    assert elements(figure, "path", "level") == []
    assert "note; the bound is 1000, beyond the figure" in [each.text for each in elements(figure, "span")]


def test_many_ages_share_bars_and_no_group_is_lost():
    """600 ages on 60 bars: ten ages each, and a group at each of them."""
    figure = histogram_figure("T", "", dict.fromkeys(range(600), 1), bound=599)
    told = [bar[0].text for bar in elements(figure, "rect", "bar")]
    assert len(told) == 60
    assert told[1] == "10 groups at staleness 10 to 19, 1.7%"


def test_a_role_s_bar_is_split_by_its_seconds():
    """30 of 40 seconds of 1,000 units."""
    figure = budget_figure("T", "", {"learner": {"training": 30.0, "waiting": 10.0, "publishing": 0.0}})
    bars = elements(figure, "rect", "bar")
    assert [(each.get("x"), each.get("width")) for each in bars] == [("0", "750"), ("750", "250")]
    assert [item[0].tail for item in elements(figure, "li")] == ["training", "waiting"]


def test_a_timeline_has_a_bar_as_high_as_the_busy_share_and_a_mark_at_each_moment():
    """5 to 10 of 20 seconds; a half of 52 units; a mark at 15 of 20 seconds, two units wide."""
    lanes = [Lane("busy", [(5.0, 10.0, 0.5)]), Lane("marks", moments=[(15.0, "version 1")])]
    stretch, mark = elements(timeline_figure("T", "", lanes, 20.0), "rect", "bar")
    assert [stretch.get(name) for name in ("x", "width", "height")] == ["250", "250", "26"]
    assert (mark.get("x"), mark[0].text) == ("749", "version 1")


def test_equal_shares_of_all_families_are_in_the_middle_of_the_triangle():
    """Corners at (200, 34), (350, 293.8) and (50, 293.8)."""
    figure = triangle_figure("T", "", [Curve("a", [(1, 0, 0), (1, 1, 1)])])
    (ring,), (dot,) = elements(figure, "circle", "ring"), elements(figure, "circle", "dot")
    assert (ring.get("cx"), ring.get("cy")) == ("200", "34")
    assert (dot.get("cx"), dot.get("cy")) == ("200", "207.2")


def test_foreign_text_is_no_markup_and_no_control_character():
    assert svg.text("<script>alert('1')</script>") == "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;"
    assert svg.text("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    (drawn,) = elements(plotted(Line('"><b>', [(1.0, 1.0)])), SVG)
    assert json.loads(drawn.get("data-tips"))[0][0] == '"><b>'
