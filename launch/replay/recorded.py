"""Read and verify a replay's inputs, except the journal, before anything is trained."""

from pathlib import Path

from actors.errors import UsageError
from launch.output.run_directory import RunDirectory, no_run
from launch.output.session import stage_name
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.settings.yaml_text import read_recorded
from learner.backend import checkpoints, manifest


def recorded_config(run: Path) -> RunConfig:
    """Load the configuration of the run in directory `run`. Raises UsageError if there is none."""
    path = RunDirectory(run).config
    if not path.is_file():
        raise no_run(run, "holds no run: it has no config.yaml", "give the output directory of `offbeat train`")
    if "training" in read_recorded(path):
        raise UsageError(f"{run} is a run on a fixed data set; give one of `offbeat train`, which has a journal")
    return load_config(path)


def verify_start(run: RunDirectory, checkpoint: Path | None) -> list[str]:
    """Verify the checkpoint, or the run's own starting policy, that a replay begins with; return notes to print.

    Raises UsageError that names a file that is not as it was written.
    """
    if checkpoint is not None:
        return checkpoints.verify(checkpoint, run.run_id)
    manifest.check(run.start)
    return []


def recorded_weights(run: RunDirectory, updates: int, end: int) -> Path | None:
    """Return the model that a run of `updates` kept after update `end`, None if it kept none.

    Raises UsageError if it is not as it was written.
    """
    saved = run.checkpoints / stage_name(end) / checkpoints.MODEL
    recorded = run.final if end == updates and run.final.is_dir() else saved
    if not recorded.is_dir():
        return None
    manifest.check(recorded)
    return recorded
