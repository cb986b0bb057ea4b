"""The command `offbeat report`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def report(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="directory of a run; several are compared")],
    output: Annotated[
        Path | None, Option(metavar="FILE", help="unset: RUN/report.html; of several runs report.html here")
    ] = None,
) -> int:
    """Show a run, or compare several, in one HTML file."""
    from launch.report.report import run_report

    return run_report(runs, output)
