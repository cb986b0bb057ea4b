"""Takes a run elsewhere: to a Ray cluster as a job, to Slurm as a batch script, to this machine's docker.

Each way is a planner and a thin runner. The planner is a pure function from a request to what would be started (a job,
a script, a command line), which is what `dry_run` prints; the runner starts exactly that and passes the exit code on.
Every way ends in the same command, `python -m launch train CONFIG KEY=VALUE...`. This module must not know what a
run does, and imports nothing heavy until a runner needs it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from actors.errors import RunError, UsageError
from launch.cluster.ray_job import EXCLUDED_FOLDERS, INTERRUPTED, RayJob, job_server, ray_command_line, run_ray_job

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
SLURM_TEMPLATE = Path(__file__).with_name("slurm.sbatch")
SLURM_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
SLURM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")


# What every way has in common.


def train_command(config: str, overrides: Sequence[str], resume: bool = False) -> list[str]:
    """The command that trains, as words. Raises UsageError for an override that is not KEY=VALUE."""
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key):
            raise UsageError(f"override {override!r} is not KEY=VALUE; write for example learner.learning_rate=1e-6")
    return ["python", "-m", "launch", "train", config, *overrides, *(["--resume"] if resume else [])]


def existing_config(config_path: str | Path) -> Path:
    """The absolute path of a configuration file. Raises UsageError where there is none."""
    path = Path(config_path).resolve()
    if not path.is_file():
        raise UsageError(f"no configuration file at {path}; give the path of a run's YAML file")
    return path


# Ray: the working directory is uploaded and the job runs from that copy.


def plan_ray_job(
    config_path: str | Path,
    overrides: Sequence[str],
    working_dir: str | Path,
    env_vars: Mapping[str, str] | None = None,
    resume: bool = False,
) -> RayJob:
    """The job for one run. Raises UsageError where the upload would not hold the configuration file."""
    config, root = existing_config(config_path), Path(working_dir).resolve()
    if not root.is_dir():
        raise UsageError(f"working directory {root} does not exist; give the folder that holds launch/ and the config")
    if not config.is_relative_to(root):
        raise UsageError(
            f"{config} is outside the working directory {root}, which is all that the cluster receives; "
            "move the file into it, or name another working directory"
        )
    relative = config.relative_to(root)
    if relative.parts[0] in EXCLUDED_FOLDERS:
        raise UsageError(f"{relative} lies in {relative.parts[0]}/, which is not uploaded; copy the file out of it")
    return RayJob(shlex.join(train_command(relative.as_posix(), overrides, resume)), root, dict(env_vars or {}))


def submit_ray(
    config_path: str | Path,
    overrides: Sequence[str],
    *,
    address: str | None,
    working_dir: str | Path,
    dry_run: bool,
    env_vars: Mapping[str, str] | None = None,
    resume: bool = False,
) -> int:
    """Runs one training as a Ray job, its log followed live. Returns the exit code to end with.

    Raises UsageError for a wrong request before anything is contacted, RunError where the cluster does not answer.
    """
    job = plan_ray_job(config_path, overrides, working_dir, env_vars, resume)
    server = job_server(address, os.environ)
    if dry_run:
        print(ray_command_line(job, server))
        return 0
    return run_ray_job(job, server)


# Slurm: the batch script starts a Ray of its own on the job's nodes.


@dataclass(frozen=True)
class SlurmJob:
    """One batch job. `command` runs on the first node with RAY_ADDRESS set, in `working_dir`, which all nodes share."""

    command: tuple[str, ...]
    working_dir: Path
    python: str
    nodes: int
    gpus_per_node: int
    time: str
    partition: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"nodes={self.nodes}; a job needs at least 1")
        if self.gpus_per_node < 0:
            raise UsageError(f"gpus_per_node={self.gpus_per_node}; give 0 for a job on CPUs alone, or more")
        if not SLURM_TIME.fullmatch(self.time):
            raise UsageError(f"time={self.time!r} is not a Slurm time limit; write minutes, HH:MM:SS or D-HH:MM:SS")
        for name, value in (("partition", self.partition), ("account", self.account)):
            if value is not None and not SLURM_NAME.fullmatch(value):
                raise UsageError(f"{name}={value!r} is not a Slurm name; letters, digits and . _ - , are allowed")

    def directives(self) -> list[str]:
        """The #SBATCH options, in the order they are written."""
        optional = {
            "--gpus-per-node": self.gpus_per_node or None,
            "--partition": self.partition,
            "--account": self.account,
        }
        return [f"--nodes={self.nodes}", f"--time={self.time}"] + [f"{k}={v}" for k, v in optional.items() if v]


def render_sbatch(job: SlurmJob) -> str:
    """The batch script of a job: slurm.sbatch with its placeholders filled in, every word quoted for bash."""
    values = {
        "DIRECTIVES": "\n".join(f"#SBATCH {option}" for option in job.directives()),
        "NODES": str(job.nodes),
        "WORKING_DIR": shlex.quote(str(job.working_dir)),
        "BIN": shlex.quote(str(Path(job.python).parent)),
        "COMMAND": shlex.join(job.command),
    }
    # One pass, so that a value that looks like a placeholder stays what it is.
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], SLURM_TEMPLATE.read_text(encoding="utf-8"))


def run_sbatch(script: str) -> int:
    """Queues a batch script, waits for its end and returns its exit code; Ctrl-C cancels it and returns 130."""
    try:
        process = subprocess.Popen(
            ["sbatch", "--wait", "--parsable"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        raise RunError(
            "sbatch is not on PATH; run this on a Slurm login node, or print the script with --dry-run"
        ) from None
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(script)
    process.stdin.close()
    job_id = process.stdout.readline().strip().partition(";")[0]
    try:
        if job_id:
            print(f"queued Slurm job {job_id}, log offbeat-{job_id}.log; waiting for its end", flush=True)
        code = process.wait()
    except KeyboardInterrupt:
        print(f"\ninterrupted: cancelling Slurm job {job_id}", flush=True)
        subprocess.run(["scancel", job_id], check=False)
        process.wait()
        return INTERRUPTED
    print(f"Slurm job {job_id or '(none was queued)'} ended with exit code {code}", flush=True)
    return code


def submit_slurm(
    config_path: str | Path,
    overrides: Sequence[str],
    *,
    nodes: int,
    gpus_per_node: int,
    time: str,
    partition: str | None,
    account: str | None,
    dry_run: bool,
    resume: bool = False,
) -> int:
    """Runs one training as a Slurm job on a Ray of its own. Returns the job's exit code.

    The current directory, the configuration file and this Python must be on storage that the nodes share.
    Raises UsageError for a wrong request and RunError where Slurm is not there.
    """
    command = train_command(str(existing_config(config_path)), overrides, resume)
    job = SlurmJob(tuple(command), Path.cwd(), sys.executable, nodes, gpus_per_node, time, partition, account)
    script = render_sbatch(job)
    if dry_run:
        print(script)
        return 0
    return run_sbatch(script)


def wait_for_nodes(address: str, nodes: int, seconds: float) -> None:
    """Returns once `nodes` nodes of the Ray at HOST:PORT are alive; the batch script's readiness check.

    Raises RunError after `seconds`.
    """
    import ray

    deadline, alive = monotonic() + seconds, 0
    while monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            alive = sum(node["Alive"] for node in ray.nodes())
        except (OSError, RuntimeError):
            alive = 0
        if alive >= nodes:
            ray.shutdown()
            return
        sleep(0.5)
    raise RunError(
        f"{alive} of {nodes} Ray nodes at {address} after {seconds:.0f} s; read the job's log for the others"
    )


# Docker compose: one container on this machine.


def compose_command(config: Path, overrides: Sequence[str], resume: bool = False) -> list[str]:
    """The `docker compose run` command that trains in a container, the configuration file mounted read-only."""
    if ":" in str(config):
        raise UsageError(f"{config} has a colon, which docker reads as a separator of volumes; rename or move the file")
    inside = f"/configs/{config.name}"
    verb = train_command(inside, overrides, resume)[3:]  # the image's entry point is `python -m launch`
    compose = ["docker", "compose", "-f", str(COMPOSE_FILE), "run", "--rm", "--volume", f"{config}:{inside}:ro"]
    return [*compose, "offbeat", *verb]


def submit_compose(config_path: str | Path, overrides: Sequence[str], *, dry_run: bool, resume: bool = False) -> int:
    """Runs one training in the CUDA image with this machine's GPUs. Returns the container's exit code.

    Raises UsageError for a wrong request and RunError where docker is not there.
    """
    command = compose_command(existing_config(config_path), overrides, resume)
    if dry_run:
        print(shlex.join(command))
        return 0
    if not COMPOSE_FILE.is_file():
        raise UsageError(f"{COMPOSE_FILE} does not exist; submit to docker from a checkout of the repository")
    runs = COMPOSE_FILE.parent.parent / "runs"
    runs.mkdir(exist_ok=True)  # else docker makes it, owned by root
    owner = {"OFFBEAT_UID": str(os.getuid()), "OFFBEAT_GID": str(os.getgid())}
    try:
        process = subprocess.Popen(command, env={**os.environ, **owner})
    except FileNotFoundError:
        raise RunError(
            "docker is not on PATH; install docker with the compose plugin, or print the command with --dry-run"
        ) from None
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\ninterrupted: docker is stopping the container", flush=True)
        process.wait()
        return INTERRUPTED
