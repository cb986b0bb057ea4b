"""Arguments and options that several verbs of the command line share. Imports nothing heavy."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from launch.settings.verbs import VERBS


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"offbeat {version('offbeat')}")
        except PackageNotFoundError:
            print("offbeat (run from a source tree, not installed)")
        raise typer.Exit


def _print_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from launch.settings.fields import print_settings

        print(ctx.get_help())
        print_settings(VERBS[str(ctx.info_name)].model)
        raise typer.Exit


_PRESETS = "embedded, embedded-nash-md, embedded-bradley-terry, gsm8k, node-8gpu, cluster-2node"
Config = Annotated[str, Argument(metavar="CONFIG", help=f"a YAML file or a preset: {_PRESETS}")]
StageConfig = Annotated[str, Argument(metavar="CONFIG", help="a YAML file or a preset")]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="override settings, for example replay.max_staleness=2")
]
Output = Annotated[Path | None, Option(metavar="DIR", help="directory of the run; unset: runs/NAME")]
Resume = Annotated[bool, Option("--resume", help="continue from the run's last checkpoint")]
DryRun = Annotated[bool, Option("--dry-run", help="print what would be submitted, then exit")]
Help = Annotated[
    bool, Option("--help", callback=_print_help, is_eager=True, help="show this and every setting, then exit")
]
Debug = Annotated[bool, Option("--debug", help="show the full traceback of an error")]
Version = Annotated[
    bool, Option("--version", callback=_print_version, is_eager=True, help="print the version, then exit")
]
