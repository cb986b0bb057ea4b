"""The figures of a sweep, as SVG and PNG. The only place that imports matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from actors.errors import writing
from actors.files import atomic_file
from launch.sweep.results import Outcome, Quality
from launch.sweep.table import Estimate, Results, TableRow

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"metadata": {"Date": None}},
    "png": {"dpi": 150, "metadata": {"Software": None}},
}
"""Without dates and versions, so that equal results give equal files."""
STYLE = {"svg.hashsalt": "offbeat", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
STYLE |= {"grid.alpha": 0.3, "font.size": 9, "legend.frameon": False}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish."""
MARKERS = "osD^vPX"


def draw_figures(results: Results, folder: Path) -> list[Path]:
    """Write every figure that the results have numbers for; return the files. Raises RunError."""
    quality = results.quality
    paths: list[Path] = []
    if quality is None:
        return paths
    with matplotlib.rc_context(STYLE), writing(f"figures to {folder}", "then give the same command again"):
        folder.mkdir(parents=True, exist_ok=True)
        figures = {
            "quality": _along_x(results, quality.name, f"{quality.title} at the end"),
            "area": _along_x(results, "area_updates", f"{quality.title}, mean over the updates"),
            "front": _front(results),
            "curves": _curves(results, quality),
        }
        for name, figure in figures.items():
            if figure is not None:
                paths += [_saved(figure, folder / f"{name}.{kind}", kind) for kind in FORMATS]
    return paths


def series(results: Results) -> dict[str, list[TableRow]]:
    """Return the rows of each line of a figure: those that differ on the x axis alone, in its order."""
    order = list(results.axes[results.x])
    found: dict[str, list[TableRow]] = {}
    for row in results.rows:
        name = ", ".join(label for axis, label in row.labels.items() if axis != results.x)
        found.setdefault(name, []).append(row)
    return {name: sorted(rows, key=lambda row: order.index(row.labels[results.x])) for name, rows in found.items()}


def panels(results: Results) -> dict[str, dict[str, list[TableRow]]]:
    """Return `series` by panel: one for each label of the first axis if two axes or more are not the x axis."""
    others = [axis for axis in results.axes if axis != results.x]
    if len(others) < 2:
        return {"": series(results)}
    found: dict[str, dict[str, list[TableRow]]] = {}
    for name, rows in series(results).items():
        found.setdefault(f"{others[0]} {rows[0].labels[others[0]]}", {})[name.partition(", ")[2]] = rows
    return found


def _saved(figure: Figure, path: Path, kind: str) -> Path:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, **FORMATS[kind])
    return path


def _along_x(results: Results, figure: str, title: str) -> Figure | None:
    """Draw a figure's mean over seeds, its interval and every seed, against the labels of the x axis."""
    labels = list(results.axes[results.x])
    parts = panels(results)
    drawing, axes = _new(len(parts))
    for panel, (part, lines) in zip(axes, parts.items(), strict=True):
        for number, (name, rows) in enumerate(lines.items()):
            shift = 0.06 * (number - (len(lines) - 1) / 2)  # so that intervals do not cover each other
            points = [(labels.index(row.labels[results.x]) + shift, row) for row in rows if figure in row.figures]
            if not points:
                continue
            style = _style(number)
            estimates = [row.figures[figure] for _, row in points]
            means = [each.mean for each in estimates]
            panel.errorbar([place for place, _ in points], means, yerr=_bars(estimates), capsize=3, label=name, **style)
            for place, row in points:
                values = [each.figures[figure] for each in results.of(row) if figure in each.figures]
                panel.plot([place] * len(values), values, "o", markersize=3, alpha=0.4, color=style["color"])
        panel.set_xticks(range(len(labels)), labels)
        panel.set(xlabel=results.x, title=part)
    axes[0].set(ylabel=title)
    return _finished(drawing, axes)


def _front(results: Results) -> Figure | None:
    """Draw win rate against KL, one point for each row, with both intervals."""
    parts = panels(results)
    drawing, axes = _new(len(parts))
    for panel, (part, lines) in zip(axes, parts.items(), strict=True):
        for number, (name, rows) in enumerate(lines.items()):
            drawn = [row for row in rows if {"kl", "win_rate"} <= row.figures.keys()]
            if not drawn:
                continue
            across, up = ([row.figures[figure] for row in drawn] for figure in ("kl", "win_rate"))
            places, means = [each.mean for each in across], [each.mean for each in up]
            panel.errorbar(places, means, xerr=_bars(across), yerr=_bars(up), capsize=3, label=name, **_style(number))
            for row, place, mean in zip(drawn, places, means, strict=True):
                text = f"{results.x} {row.labels[results.x]}"
                panel.annotate(text, (place, mean), textcoords="offset points", xytext=(5, 5), fontsize=7)
        panel.set(xlabel="KL to the reference (nats per completion)", title=part)
    axes[0].set(ylabel="win rate against the start")
    return _finished(drawing, axes)


def _curves(results: Results, quality: Quality) -> Figure | None:
    """Draw the mean curve of every row over its updates, one panel for each series."""
    lines = series(results)
    drawing, axes = _new(len(lines))
    labels = list(results.axes[results.x])
    for panel, (name, rows) in zip(axes, lines.items(), strict=True):
        for row in rows:
            points = list(mean_curve(results.of(row), quality.name))
            if points:
                place = labels.index(row.labels[results.x]) / max(1, len(labels) - 1)
                colour = matplotlib.colormaps["viridis"](0.9 * place)
                label = f"{results.x} {row.labels[results.x]}"
                panel.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.2)
        panel.set(xlabel="updates", ylabel=quality.title, title=name)
    return _finished(drawing, axes)


def mean_curve(outcomes: Sequence[Outcome], name: str) -> Iterator[tuple[int, float]]:
    """Yield update and mean value over runs, at the updates that all of them measured."""
    curves = [{point.update: point.values[name] for point in each.curve if name in point.values} for each in outcomes]
    if curves:
        for update in sorted(set.intersection(*map(set, curves))):
            yield update, fmean(curve[update] for curve in curves)


def _new(panels: int) -> tuple[Figure, list[Any]]:
    """Return a drawing of `panels` panels, at most four beside each other."""
    columns = min(panels, 4)
    rows = -(-panels // columns)
    drawing = Figure(figsize=(max(5.0, 4.0 * columns), 3.6 * rows), layout="constrained")
    axes = list(drawing.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for spare in axes[panels:]:
        spare.remove()
    return drawing, axes[:panels]


def _finished(drawing: Figure, axes: Sequence[Any]) -> Figure | None:
    """Add legends; None if nothing was drawn."""
    if not any(each.has_data() for each in axes):
        return None
    for each in axes:
        labels = each.get_legend_handles_labels()[1]
        if any(labels):
            each.legend()
    return drawing


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Return how far each interval reaches below and above its mean; 0 without an interval."""
    below = [0.0 if each.low is None else each.mean - each.low for each in estimates]
    return [below, [0.0 if each.high is None else each.high - each.mean for each in estimates]]
