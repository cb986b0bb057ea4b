"""Submit a training run to a Ray cluster (a job), to Slurm (a batch script) or to this machine's docker.

Each target has a planner, a pure function whose result `dry_run` prints, and a runner that starts exactly that and
passes the exit code on. All end in the same command, `python -m launch train CONFIG KEY=VALUE...`. Must not know what a
run does, and imports nothing heavy until a runner needs it.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from actors.errors import INTERRUPTED, RunError, UsageError
from actors.foreign.text import shown
from launch.cluster.ray_job import EXCLUDED_FOLDERS, RayJob, job_server, ray_command_line, run_ray_job

COMPOSE_FILE = Path(__file__).resolve().parents[2] / "docker" / "compose.yaml"
SLURM_TEMPLATE = Path(__file__).with_name("slurm.sbatch")
SLURM_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
SLURM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")


@dataclass(frozen=True)
class Training:
    """The run to submit; its configuration was loaded once, so that file and overrides are valid."""

    config: Path  # absolute
    overrides: tuple[str, ...] = ()
    resume: bool | str = False  # or the checkpoint to go on from

    def command(self, config: str) -> list[str]:
        """Return the words of the command that trains; `config` is the file's path where it runs."""
        resume = f"--resume={self.resume}" if isinstance(self.resume, str) else "--resume"
        return ["python", "-m", "launch", "train", config, *self.overrides, *([resume] if self.resume else [])]


# ---------------------------------------------------------------- Ray: the job runs from an uploaded copy


def plan_ray_job(training: Training, working_dir: str | Path, env_vars: Mapping[str, str] | None = None) -> RayJob:
    """Plan the job of one run. Raises UsageError if the upload would not hold the configuration file."""
    config, root = training.config, Path(working_dir).resolve()
    if not root.is_dir():
        raise UsageError(f"working directory {root} does not exist; give the folder that holds launch/ and the config")
    if not config.is_relative_to(root):
        raise UsageError(
            f"{config} is outside the working directory {root}, and the cluster receives nothing else; move the file "
            "into it, or name another working directory"
        )
    relative = config.relative_to(root)
    if relative.parts[0] in EXCLUDED_FOLDERS:
        raise UsageError(f"{relative} is in {relative.parts[0]}/, which is not uploaded; copy the file out of it")
    return RayJob(shlex.join(training.command(relative.as_posix())), root, dict(env_vars or {}))


def submit_ray(job: RayJob, address: str | None, *, dry_run: bool) -> int:
    """Run a Ray job, follow its log, and return the exit code. Raises RunError if the cluster does not answer."""
    server = job_server(address, os.environ)
    if dry_run:
        print(ray_command_line(job, server))
        return 0
    return run_ray_job(job, server)


# ---------------------------------------------------------------- Slurm: the batch script starts Ray on the job's nodes


@dataclass(frozen=True)
class SlurmOptions:
    """Options of sbatch by their names there. Raises UsageError for values that Slurm would misread."""

    nodes: int
    time: str  # limit: minutes, HH:MM:SS or D-HH:MM:SS
    gpus_per_node: int
    partition: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"nodes={self.nodes}; a job needs at least 1")
        if self.gpus_per_node < 0:
            raise UsageError(f"gpus_per_node={self.gpus_per_node}; give 0 for a job on CPUs only, or more")
        if not SLURM_TIME.fullmatch(self.time):
            raise UsageError(f"time={self.time!r} is not a Slurm time limit; write minutes, HH:MM:SS or D-HH:MM:SS")
        for name, value in (("partition", self.partition), ("account", self.account)):
            if value is not None and not SLURM_NAME.fullmatch(value):
                raise UsageError(f"{name}={value!r} is not a Slurm name; letters, digits and . _ - , are allowed")


def render_sbatch(options: SlurmOptions, command: list[str], working_dir: Path, python: str) -> str:
    """Return the batch script that runs `command` on the first node, with RAY_ADDRESS set.

    Every word is quoted for bash. All nodes must share `working_dir` and the interpreter `python`.
    """
    directives = {f"--{name.replace('_', '-')}": value for name, value in asdict(options).items() if value}
    values = {
        "DIRECTIVES": "\n".join(f"#SBATCH {name}={value}" for name, value in directives.items()),
        "NODES": str(options.nodes),
        "WORKING_DIR": shlex.quote(str(working_dir)),
        "BIN": shlex.quote(str(Path(python).parent)),
        "COMMAND": shlex.join(command),
    }
    # One pass, so that a value that looks like a placeholder stays as it is.
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], SLURM_TEMPLATE.read_text(encoding="utf-8"))


def submit_slurm(training: Training, options: SlurmOptions, *, dry_run: bool) -> int:
    """Run training as a Slurm job on its own Ray cluster, and return the job's exit code.

    The current directory, the configuration file and this Python must be on storage that the nodes share.
    Raises RunError if Slurm is not installed.
    """
    script = render_sbatch(options, training.command(str(training.config)), Path.cwd(), sys.executable)
    if dry_run:
        print(script)
        return 0
    return run_sbatch(script)


def run_sbatch(script: str) -> int:
    """Queue a batch script, wait for its end, and return its exit code; Ctrl-C cancels it and returns 130."""
    process = _started(
        ["sbatch", "--wait", "--parsable"],
        "run this on a Slurm login node, or print the script with --dry-run",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(script)
    process.stdin.close()
    job_id = shown(process.stdout.readline().strip().partition(";")[0])
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


def wait_for_nodes(address: str, nodes: int, seconds: float) -> None:
    """Return once `nodes` nodes of the Ray at HOST:PORT are alive. Raises RunError after `seconds`."""
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
        f"{alive} of {nodes} Ray nodes at {address} joined within {seconds:.0f} s; see the job's log for the others"
    )


# ---------------------------------------------------------------- docker compose: one container on this machine


def submit_compose(training: Training, *, dry_run: bool) -> int:
    """Run training in the CUDA image with this machine's GPUs, and return the container's exit code.

    The configuration is mounted read-only. Raises UsageError outside a checkout of the repository, RunError if docker
    is not installed.
    """
    config = training.config
    if ":" in str(config):
        raise UsageError(f"{config} has a colon, which docker reads as a separator of volumes; rename or move the file")
    inside = f"/configs/{config.name}"
    verb = training.command(inside)[3:]  # the image's entry point is `python -m launch`
    command = ["docker", "compose", "-f", str(COMPOSE_FILE), "run", "--rm", "--volume", f"{config}:{inside}:ro"]
    command += ["offbeat", *verb]
    if dry_run:
        print(shlex.join(command))
        return 0
    if not COMPOSE_FILE.is_file():
        raise UsageError(f"{COMPOSE_FILE} does not exist; submit to docker from a checkout of the repository")
    runs = COMPOSE_FILE.parent.parent / "runs"
    runs.mkdir(exist_ok=True)  # otherwise docker creates it, owned by root
    owner = {"OFFBEAT_UID": str(os.getuid()), "OFFBEAT_GID": str(os.getgid())}
    process = _started(
        command,
        "install docker with the compose plugin, or print the command with --dry-run",
        env={**os.environ, **owner},
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\ninterrupted: docker is stopping the container", flush=True)
        process.wait()
        return INTERRUPTED


def _started(command: list[str], remedy: str, **options: Any) -> subprocess.Popen[Any]:
    """Start a process. Raises RunError with `remedy` if the program is not installed."""
    try:
        return subprocess.Popen(command, **options)
    except FileNotFoundError:
        raise RunError(f"{command[0]} is not on PATH; {remedy}") from None
