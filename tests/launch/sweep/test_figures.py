"""The figures: which are drawn, what is in them, and that equal results give equal files."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from launch.sweep.figures import draw_figures, mean_curve, panels, series
from launch.sweep.results import QUALITIES, Quality
from launch.sweep.table import Results, make_rows, with_areas
from tests.launch.sweep.sweeps import curve, outcome


def made(*, quality: Quality | None = QUALITIES[0], points: bool = True) -> Results:
    """Two losses at two bounds, with two seeds each."""
    outcomes = []
    for loss in ("dpo", "nash"):
        for bound in ("4", "0"):
            for seed in (0, 1):
                value = 0.1 + 0.01 * int(bound) + 0.02 * seed
                outcomes.append(
                    outcome(
                        *("", seed, {"exploitability": value, "kl": 1.0 + seed, "win_rate": 0.7 + 0.01 * seed}),
                        labels={"loss": loss, "bound": bound},
                        curve=curve((10, 100, 0.4), (20, 200, value)) if points else (),
                    )
                )
    outcomes = with_areas(outcomes, quality)
    axes = {"loss": ["dpo", "nash"], "bound": ["0", "4"]}
    return Results("made", axes, "bound", quality, make_rows(outcomes, {"bound": "0"}), outcomes)


def test_four_figures_are_written_in_two_forms(tmp_path: Path) -> None:
    paths = draw_figures(made(), tmp_path / "figures")
    names = [f"{name}.{kind}" for name in ("quality", "area", "front", "curves") for kind in ("svg", "png")]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    for path in paths:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    first, second = (draw_figures(made(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_without_curves_only_the_ends_are_drawn(tmp_path: Path) -> None:
    paths = draw_figures(made(points=False), tmp_path)
    assert [path.stem for path in paths] == ["quality", "quality", "front", "front"]


def test_without_a_quality_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw_figures(made(quality=None), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_a_line_is_what_differs_on_the_x_axis_alone_in_the_file_s_order() -> None:
    lines = series(made())
    assert {name: [row.name for row in rows] for name, rows in lines.items()} == {
        "dpo": ["loss=dpo,bound=0", "loss=dpo,bound=4"],
        "nash": ["loss=nash,bound=0", "loss=nash,bound=4"],
    }


def test_of_three_axes_the_first_makes_panels(tmp_path: Path) -> None:
    outcomes = [
        outcome("", 0, {"exploitability": 0.1}, labels={"size": size, "loss": loss, "n": n})
        for size in ("small", "large")
        for loss in ("dpo", "ppo", "rloo")
        for n in ("1", "16")
    ]
    axes = {"size": ["small", "large"], "loss": ["dpo", "ppo", "rloo"], "n": ["1", "16"]}
    results = Results("made", axes, "n", QUALITIES[0], make_rows(outcomes, {"n": "1"}), outcomes)
    assert {part: list(lines) for part, lines in panels(results).items()} == {
        "size small": ["dpo", "ppo", "rloo"],
        "size large": ["dpo", "ppo", "rloo"],
    }
    assert list(panels(made())) == [""], "two axes are one panel"
    drawn = (draw_figures(results, tmp_path)[0]).read_text()
    assert [drawn.count(f"<!-- {part} -->") for part in ("size small", "size large", "dpo")] == [1, 1, 2]


def test_a_mean_curve_has_the_updates_that_all_runs_measured() -> None:
    runs = [
        outcome("a", 0, {}, curve=curve((10, 1, 0.5), (20, 2, 0.3))),
        outcome("a", 1, {}, curve=curve((10, 1, 0.25), (15, 2, 0.9), (20, 2, 0.1))),
    ]
    assert list(mean_curve(runs, "exploitability")) == [(10, 0.375), (20, 0.2)]
    assert list(mean_curve([], "exploitability")) == []
