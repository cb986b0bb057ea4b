"""A run as a job of a Ray cluster: it runs from an uploaded copy of the working directory."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.errors import UsageError
from launch.cluster.ray_job import EXCLUDED_FOLDERS, RayJob, job_server, ray_command_line, run_ray_job
from launch.submit.paths import LocalPath, local_paths, unseen_by_upload
from launch.submit.training import Training, existing_directory, tell


def plan_ray_job(training: Training, working_dir: str | Path, env_vars: Mapping[str, str] | None = None) -> RayJob:
    """Plan the job of one run. Raises UsageError if the upload would not hold the configuration file."""
    root = existing_directory(working_dir)
    config = "" if training.preset else _within(training.config, root).as_posix()
    return RayJob(shlex.join(training.command(config)), root, dict(env_vars or {}))


def _within(config: Path, root: Path) -> Path:
    if not config.is_relative_to(root):
        raise UsageError(
            f"{config} is outside the working directory {root}, and the cluster receives nothing else; move the file "
            "into it, or name another working directory"
        )
    relative = config.relative_to(root)
    if relative.parts[0] in EXCLUDED_FOLDERS:
        raise UsageError(f"{relative} is in {relative.parts[0]}/, which is not uploaded; copy the file out of it")
    return relative


def unseen(training: Training, job: RayJob) -> list[str]:
    """Say which paths of the configuration the job does not have, one sentence each."""
    paths = local_paths(training.settings, job.working_dir)
    return list(unseen_by_upload(paths, job.working_dir, EXCLUDED_FOLDERS, _ignored(paths, job.working_dir)))


def _ignored(paths: Sequence[LocalPath], root: Path) -> set[Path]:
    """Return the paths that `.gitignore` names; none outside a git repository, or without git."""
    inputs = [each.path for each in paths if each.kind != "output" and each.path.is_relative_to(root)]
    command = ["git", "-C", str(root), "check-ignore", "-z", "--stdin"]
    given = b"".join(os.fsencode(path) + b"\0" for path in inputs)
    try:
        answer = subprocess.run(command, input=given, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {Path(os.fsdecode(name)) for name in answer.stdout.split(b"\0") if name}


def submit_ray(training: Training, job: RayJob, address: str | None, *, dry_run: bool) -> int:
    """Run a Ray job, follow its log, and return the exit code. Raises RunError if the cluster does not answer."""
    server = job_server(address, os.environ)
    tell(unseen(training, job))
    if dry_run:
        print(ray_command_line(job, server))
        return 0
    return run_ray_job(job, server)
