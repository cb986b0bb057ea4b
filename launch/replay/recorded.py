"""What a replay reads of its run beside the journal, verified before anything is trained."""

from pathlib import Path

from launch.output.run_directory import RunDirectory
from launch.output.session import stage_name
from learner.backend import checkpoints, manifest


def verify_start(run: RunDirectory, checkpoint: Path | None) -> list[str]:
    """Verify the checkpoint, or the run's own starting policy, that a replay begins with; return what should be told.

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
