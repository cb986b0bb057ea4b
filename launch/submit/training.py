"""The run that a launcher submits, and what all launchers do alike. Imports nothing heavy."""

import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.errors import RunError, UsageError
from actors.foreign.text import shown
from launch.settings.loading import config_file, load_config, preset_names
from launch.settings.run import RunConfig


@dataclass(frozen=True)
class Training:
    """The run to submit; file and overrides were loaded once, so that they are valid."""

    config: Path  # absolute
    settings: RunConfig
    overrides: tuple[str, ...] = ()
    resume: bool | str = False  # or the checkpoint to go on from
    preset: str | None = None  # its name, which stands for the file wherever Offbeat is installed

    @classmethod
    def load(cls, config: str, overrides: Sequence[str] = (), resume: bool | str = False) -> "Training":
        """Load a file or a preset. Raises UsageError that names every mistake."""
        settings = load_config(config, overrides, older=bool(resume))
        preset = config if config in preset_names() else None
        return cls(config_file(config).resolve(), settings, tuple(overrides), resume, preset)

    def command(self, config: str) -> list[str]:
        """Return the words of the command that trains; `config` is the file's path where it runs."""
        resume = f"--resume={self.resume}" if isinstance(self.resume, str) else "--resume"
        words = ["python", "-m", "launch", "train", self.preset or config, *self.overrides]
        return [*words, *([resume] if self.resume else [])]

    def resuming(self, config: str) -> list[str]:
        """Return the words that go on with the run after an end on the way."""
        return replace(self, resume=True).command(config)

    def started_or_resumed(self, config: str) -> str:
        """Return bash that goes on with the run if its directory has one, and starts it otherwise.

        A run's directory has `config.yaml` from the moment that it can be resumed.
        """
        recorded = shlex.quote(str(self.settings.directory / "config.yaml"))
        again, first = shlex.join(self.resuming(config)), shlex.join(self.command(config))
        return f"if [ -e {recorded} ]; then\n    {again}\nelse\n    {first}\nfi"


def existing_directory(path: str | Path) -> Path:
    """Return the working directory, absolute. Raises UsageError if there is none."""
    root = Path(path).resolve()
    if root.is_file():
        raise UsageError(f"working directory {root} is a file; give the folder that the run's paths start from")
    if not root.is_dir():
        raise UsageError(f"working directory {root} does not exist; give the folder that the run's paths start from")
    return root


def tell(notes: Iterable[str]) -> None:
    """Write what the place of a run cannot see to stderr; what is printed stays a script or a command."""
    for note in notes:
        print(shown(f"warning: {note}"), file=sys.stderr, flush=True)


def refused(what: str, remedy: str, said: str) -> RunError:
    """Return the error of a program that a launcher asked: our words, then what the program said itself."""
    cause = shown(" ".join(said.split()), 1000) or "nothing"
    return RunError(f"{what}; {remedy}. It said: {cause}")


def started(command: list[str], remedy: str, **options: Any) -> subprocess.Popen[Any]:
    """Start a process. Raises RunError with `remedy` if the program is not installed."""
    try:
        return subprocess.Popen(command, **options)
    except FileNotFoundError:
        raise RunError(f"{command[0]} is not on PATH; {remedy}") from None
