"""The figure of the simplex: valid SVG, drawn where the policies are."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from actors.errors import UsageError
from benchmarks.simplex import DRAWN, OUTPUT, draw, main
from learner.games.tabular import GAMES, nash_md, regularised_nash, running_average

SVG = "{http://www.w3.org/2000/svg}"
MU = (0.7, 0.2, 0.1)


def points(element: ElementTree.Element) -> np.ndarray:
    return np.array([[float(value) for value in pair.split(",")] for pair in element.attrib["points"].split()])


def policies(drawn: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """The barycentric coordinates of points [k, 2] in a triangle [3, 2]."""
    weights = np.linalg.solve(np.vstack([triangle.T, np.ones(3)]), np.vstack([drawn.T, np.ones(len(drawn))]))
    return weights.T


def curves(figure: str) -> list[np.ndarray]:
    """Self-play, its average, Nash-MD, as policies read back from the figure."""
    root = ElementTree.fromstring(figure)
    left, right = (points(triangle) for triangle in root.findall(f"{SVG}polygon"))
    lines = [points(line) for line in root.findall(f"{SVG}polyline")]
    return [policies(line, triangle) for line, triangle in zip(lines, (left, left, right), strict=True)]


@pytest.mark.parametrize("game", sorted(DRAWN))
def test_every_game_gives_valid_svg_with_all_points_inside_its_triangle(game):
    for curve in curves(draw(game, MU, 0.05, 200, 0.2)):
        assert curve.shape == (201, 3)
        assert curve.min() > -1e-4


def test_what_is_drawn_are_the_iterates():
    """To the hundredth of a pixel that coordinates are rounded to."""
    cycling, average, nash = curves(draw("rps", MU, 0.05, 2000, 0.2))
    np.testing.assert_allclose(nash, nash_md(GAMES["rps"], MU, 0.05, 2000), atol=1e-4)
    np.testing.assert_allclose(nash[-1], regularised_nash(GAMES["rps"], MU, 0.05), atol=2e-3)
    np.testing.assert_allclose(average, running_average(cycling), atol=1e-4)
    assert cycling[-300:].min() < 0.01 < cycling[0].min()


def test_the_command_writes_the_file_that_the_documentation_shows(tmp_path, capsys):
    main(["--output", str(tmp_path / "new" / "simplex.svg")])
    # Not byte for byte: another machine's exp may round a coordinate the other way.
    for written, shown in zip(
        *(curves(path.read_text()) for path in (tmp_path / "new" / "simplex.svg", OUTPUT)), strict=True
    ):
        np.testing.assert_allclose(written, shown, atol=1e-3)
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "simplex.svg")


def test_the_figure_loads_nothing_from_elsewhere():
    figure = draw("wrps", MU, 0.05, 5, 0.2).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in figure for word in ("http", "href", "url(", "script", "@import"))


def test_a_game_of_five_actions_and_a_reference_that_is_no_distribution_are_refused(capsys):
    with pytest.raises(UsageError, match="'rps_dominated'; there are rps, dice"):
        draw("rps_dominated", MU, 0.05, 5, 0.2)
    with pytest.raises(SystemExit, match="2"):
        main(["--mu", "0.7", "0.2", "0.2"])
    assert "sum to 1; its sum is 1.1" in capsys.readouterr().err
