"""Several runs beside each other: one table, the same curves over each other, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from launch.output.board import clock
from launch.report.charts import charts_of, lines_of
from launch.report.drawing import svg
from launch.report.drawing.plots import Plot, plot_figure
from launch.report.drawing.series import number
from launch.report.records import Run
from launch.report.sections import front, game_title, kl_text, links, triangle
from launch.report.verdict import (
    Estimate,
    difference,
    exploitability_of,
    largest_staleness,
    rise_of,
    verdict,
    win_rate_of,
)
from launch.settings.yaml_text import leaves

MOST_RUNS = 12
POINTS = 2400
"""Most points of one plot, over all its lines."""
COLUMNS = (
    "run", "status", "updates", "loss", "policy", "win rate", "rise of the reward", "exploitability", "KL",
    "staleness", "wall time",
)  # fmt: skip
OWN = ("name", "output")
"""Settings in which all runs differ."""


def head(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Return the table of what each run came to, and what separates the others from the first."""
    said = "".join(svg.paragraph(text) for text in differences(runs, names))
    note = "<p>Intervals cover prompts and not seeds: <code>offbeat sweep</code> compares settings over seeds.</p>"
    rows = _with_values([COLUMNS, *(_row(run, name) for run, name in zip(runs, names, strict=True))])
    lacking = "".join(
        svg.paragraph(f"{name}: {text}", "note") for run, name in zip(runs, names, strict=True) for text in run.missing
    )
    return f'<div class="verdict open">{said}{note}</div>{svg.table(rows[0], rows[1:])}{lacking}'


def differences(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Say in a sentence for each later run whether it is separable from the first."""
    return [_difference(runs[0], names[0], run, name) for run, name in zip(runs[1:], names[1:], strict=True)]


def body(runs: Sequence[Run], names: Sequence[str], base: Path) -> Iterator[tuple[str, str]]:
    """Yield title and content of every section; links are relative to `base`."""
    named = [replace(run, label=name) for run, name in zip(runs, names, strict=True)]
    yield "Curves", _curves(named)
    if drawn := "".join((triangle(named), front(named))):
        yield game_title(named), f'<div class="plots">{drawn}</div>'
    yield "Settings that differ", _settings(named)
    yield "Files", "".join(f"<h3>{svg.text(run.name)}</h3>{links(run, base)}" for run in named)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Name each run by the last parts of its path, as many as it takes to distinguish the runs."""
    paths = [run.files.path.resolve().parts for run in runs]
    depth = 1
    while len({path[-depth:] for path in paths}) < len(set(paths)) and depth < max(map(len, paths)):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def _row(run: Run, name: str) -> list[str]:
    rate, rise, exploitability = win_rate_of(run), rise_of(run), exploitability_of(run)
    largest, _ = largest_staleness(run)
    bound = "" if run.bound is None else f" of {run.bound}"
    seconds = run.figure("wall_seconds")
    return [
        name,
        run.status,
        f"{run.updates:,}",
        run.loss or "-",
        verdict(run).outcome,
        _told(rate),
        _told(rise),
        "-" if exploitability is None else number(exploitability),
        kl_text(run),
        "-" if largest is None else f"{largest}{bound}",
        "-" if seconds is None else clock(seconds),
    ]


def _with_values(table: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a table, its head first, without columns in which no row has a value."""
    kept = [column for column in zip(*table, strict=True) if set(column[1:]) != {"-"}]
    return [list(row) for row in zip(*kept, strict=True)]


def _told(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{number(estimate.value)}{estimate.interval}"


def _difference(first: Run, first_name: str, run: Run, name: str) -> str:
    """Compare win rates if both are against the same opponent by the same judge; exact figures if there are any."""
    exact = exploitability_of(first), exploitability_of(run)
    parts = []
    if exact[0] is not None and exact[1] is not None:
        change = exact[1] - exact[0]
        kind = "less" if change < 0.0 else "more" if change > 0.0 else "as"
        parts.append(
            f"{name} is {kind} exploitable {'as' if kind == 'as' else 'than'} {first_name}: {number(exact[1])} and "
            f"{number(exact[0])}, by enumeration."
        )
    rates = win_rate_of(first), win_rate_of(run)
    if rates[0] is not None and rates[1] is not None:
        parts.append(_rates(first, first_name, run, name, difference(rates[0], rates[1])))
    return " ".join(parts) or f"{name} and {first_name} have no figure in common that would compare them."


def _rates(first: Run, first_name: str, run: Run, name: str, change: Estimate) -> str:
    told = f"The win rate of {name} less that of {first_name} is {number(change.value)}{change.interval}"
    unlike = [key for key in ("opponent", "judge") if first.summary.get(key) != run.summary.get(key)]
    if unlike:
        return f"The win rates of {name} and {first_name} are not compared: they differ in {' and '.join(unlike)}."
    if not change.interval:
        return f"{told}, without an interval, so nothing follows from it."
    return f"{told}{': not separable from none' if change.outcome(0.0) == 'not separable' else ''}."


def _curves(runs: Sequence[Run]) -> str:
    """Draw each chart with the first column that any run has, a line for each run."""
    charts = list({chart.title: chart for run in runs for chart in charts_of(run)}.values())
    drawn = []
    for chart in charts:
        for column, meaning in chart.columns.items():
            single = replace(chart, columns={column: meaning})
            lines = [line for n, run in enumerate(runs) for line in lines_of(single, run, n, run.name)]
            if lines:
                title = chart.title if len(chart.columns) == 1 else f"{chart.title}, {meaning}"
                most = max(60, min(600, POINTS // len(lines)))
                drawn.append(plot_figure(Plot(title=title, note=chart.note, lines=lines, level=chart.level, most=most)))
    if not drawn:
        return svg.paragraph("The runs have recorded nothing that could be drawn.", "quiet")
    return f'<div class="plots">{"".join(drawn)}</div>'


def _settings(runs: Sequence[Run]) -> str:
    flat = [dict(leaves(run.config)) if run.config else {} for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    differ = [key for key in keys if key not in OWN and len({repr(each.get(key)) for each in flat}) > 1]
    if not differ:
        return svg.paragraph("The configurations agree in every setting, names and directories aside.", "quiet")
    rows = [(key, *(_setting(each, key) for each in flat)) for key in differ]
    return svg.table(("setting", *(run.name for run in runs)), rows, numbers=False)


def _setting(flat: dict[str, object], key: str) -> object:
    if key not in flat:
        return "-"
    return "null" if flat[key] is None else flat[key]
