"""The command `offbeat sweep`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from launch.settings.options import Help, Output, Overrides
from launch.settings.verbs import SWEEP

PRESETS = ("staleness", "anchor", "anchor-cost", "robustness", "chat-staleness")
_RUNS_ONLY = "print the runs and what they change, then exit"


def sweep(
    file: Annotated[str, Argument(metavar="FILE", help=f"a YAML file or a preset: {', '.join(PRESETS)}")],
    overrides: Overrides = None,
    output: Output = None,
    parallel: Annotated[
        int | None, Option(metavar="N", min=1, help="runs at a time; unset: as many as this machine has room for")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help=_RUNS_ONLY)] = False,
    help_: Help = False,
) -> int:
    """Train with several settings and seeds, and compare the runs."""
    from launch.sweep.config import as_override, load_sweep

    given = [] if output is None else [as_override("output", str(output))]
    config = load_sweep(file, [*(overrides or []), *given])
    return SWEEP.run(config, parallel=parallel, dry_run=dry_run)
