"""The command `offbeat init`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer


def add_init(app: Typer) -> None:
    """Add the command to the command line."""

    @app.command()
    def init(
        file: Annotated[Path, Argument(metavar="FILE.yaml", help="configuration to write")],
        model: Annotated[
            str | None,
            Option(metavar="MODEL", help="directory or hub name; unset: the one that `make pretrained` brings"),
        ] = None,
        data: Annotated[
            str | None, Option(metavar="DATA", help="prompts: a file, a directory or a hub name; unset: instructions")
        ] = None,
        judge: Annotated[
            str | None,
            Option(
                metavar="JUDGE",
                help="verifier, FILE.py:FUNCTION, MODULE:FUNCTION, reward:MODEL, preference:MODEL, served:MODEL@URL, "
                "endpoint:MODEL@URL, code or instructions; unset: verifier, if the data have answers",
            ),
        ] = None,
        loss: Annotated[str | None, Option(metavar="KIND", help="learner.loss.kind; unset: dpo")] = None,
        prompt: Annotated[
            str | None, Option(metavar="COLUMN", help="column with the prompts; unset: found by name")
        ] = None,
        answer: Annotated[
            str | None, Option(metavar="COLUMN", help="column with gold answers; unset: found by name")
        ] = None,
        output: Annotated[Path | None, Option(metavar="DIR", help="directory of the run; unset: runs/NAME")] = None,
        gpus: Annotated[
            str | None, Option(metavar="NxGB", help="GPUs of the node that the run is for, such as 8x80; unset: these")
        ] = None,
        force: Annotated[bool, Option("--force", help="replace FILE.yaml if it exists")] = False,
    ) -> int:
        """Write a configuration for your model, data and judge."""
        from launch.begin.writing import Request, write

        return write(Request(file, model, data, judge, loss, prompt, answer, output, force, gpus))
