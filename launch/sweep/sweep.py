"""`offbeat sweep`: plan the runs, start those that are not completed, and compare what all of them show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from actors.errors import INTERRUPTED, RunError, writing
from actors.files import atomic_write
from actors.foreign.text import many, shown
from actors.settings import STARTS
from launch.settings.fields import WIDTH_WITHOUT_TERMINAL
from launch.sweep import render
from launch.sweep.config import SweepConfig, as_override
from launch.sweep.directory import check_directory, held
from launch.sweep.plan import PlannedRun, plan_rows, plan_runs
from launch.sweep.results import read_outcome
from launch.sweep.room import measure_room, slots
from launch.sweep.runs import Command, Ended, run_all, status_of, train_command
from launch.sweep.table import Results, make_rows, quality_of, with_areas

GO_ON = "the same command goes on"


def run_sweep(
    sweep: SweepConfig, *, parallel: int | None = None, dry_run: bool = False, command: Command = train_command
) -> int:
    """Run a sweep, or go on with it; write and print its table.

    Returns 0, or 130 after an interrupt. Raises UsageError before anything starts, RunError if a run failed.
    """
    rows = plan_rows(sweep)
    directory = sweep.directory.absolute()
    check_directory(directory, rows)
    places = slots([row.config for row in rows], parallel, measure_room())
    runs = plan_runs(sweep, rows, directory)
    if dry_run:
        _show_plan(sweep, runs, directory, len(places))
        return 0
    say = partial(_say, Console(stderr=True, highlight=False))
    say(f"{many(len(runs), 'run')} in {directory}, {min(len(places), len(runs))} at a time")
    starts = {STARTS: str(directory / "starts")}
    with held(directory, sweep, rows):
        ended = run_all(runs, [{**starts, **place} for place in places], say, command)
        results = collect(sweep, runs, directory, ended)
        notes = render.notes(results)
        write(results, notes, directory)
        notes += draw(results, directory / "figures")
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    console.print(render.terminal_table(results))
    for note in [*notes, f"table, figures and results.json are in {directory}"]:
        console.print(Text(shown(note)), soft_wrap=True)
    completed = sum(row.runs for row in results.rows)
    if ended.interrupted:
        say(f"interrupted: {completed} of {many(len(runs), 'run')} completed, {GO_ON}")
        return INTERRUPTED
    if ended.failed:
        name, error = next(iter(ended.failed.items()))
        raise RunError(
            f"{len(ended.failed)} of {many(len(runs), 'run')} failed, the first {name}: {error}; their logs are in "
            f"{directory / 'runs'}; remove the cause, then {GO_ON}"
        )
    return 0


def collect(sweep: SweepConfig, runs: Sequence[PlannedRun], directory: Path, ended: Ended) -> Results:
    """Read what all runs have left."""
    in_rows = sorted(runs, key=lambda run: _place(sweep, run))
    outcomes = [read_outcome(run, directory, ended.failed.get(run.name)) for run in in_rows]
    quality = quality_of(outcomes)
    outcomes = with_areas(outcomes, quality)
    axes = {axis: list(labels) for axis, labels in sweep.axes.items()}
    rows = make_rows(outcomes, sweep.compared_with)
    return Results(sweep.name, axes, sweep.x_axis, quality, rows, outcomes)


def write(results: Results, notes: list[str], directory: Path) -> None:
    """Write `results.json`, `table.md` and `table.csv`. Raises RunError."""
    texts = {"results.json": render.as_json(results), "table.csv": render.as_csv(results)}
    texts["table.md"] = render.markdown(results, notes)
    for name, text in texts.items():
        with writing(directory / name, f"then {GO_ON}"):
            atomic_write(directory / name, text)


def draw(results: Results, folder: Path) -> list[str]:
    """Draw the figures; return what to say if they cannot be drawn."""
    try:
        from launch.sweep.figures import draw_figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return ["no figures: matplotlib is not installed; `pip install matplotlib`, then give the same command again"]
    return [] if draw_figures(results, folder) else ["no figures: no completed run was evaluated"]


def _place(sweep: SweepConfig, run: PlannedRun) -> tuple[int, ...]:
    """Sort key: rows as in the file, then seeds."""
    labels = [list(sweep.axes[axis]).index(label) for axis, label in run.row.labels.items()]
    return (*labels, sweep.seeds.index(run.seed))


def _show_plan(sweep: SweepConfig, runs: Sequence[PlannedRun], directory: Path, parallel: int) -> None:
    """Print what would be run: what all runs change, then each row with its own changes and its runs."""
    common = [as_override(key, value) for key, value in sweep.set.items()]
    print(shown(f"all runs: {' '.join([sweep.base, *common])}"))
    for row in dict.fromkeys(run.row.name for run in runs):
        of_row = [run for run in runs if run.row.name == row]
        own = " ".join(each for each in of_row[0].row.overrides if each not in common) or "no changes"
        seeds = ", ".join(f"seed {run.seed} {status_of(run)}" for run in of_row)
        print(shown(f"{row}: {own}; {seeds}"))
    print(shown(f"{many(len(runs), 'run')}, {min(parallel, len(runs))} at a time, in {directory}; nothing was started"))


def _say(console: Console, text: str) -> None:
    console.print(Text(shown(f"offbeat: {text}")), soft_wrap=True)
