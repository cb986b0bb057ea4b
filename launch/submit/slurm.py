"""A run as a Slurm job: a batch script that starts Ray on the job's nodes and ends with the run's exit code."""

import contextlib
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from actors.errors import INTERRUPTED, RunError, UsageError
from actors.foreign.text import shown
from launch.submit.paths import Mount, local_paths, mounts, unseen_by_nodes
from launch.submit.training import Training, refused, started, tell

TEMPLATE = Path(__file__).with_name("slurm.sbatch")
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,-]*")
_HOSTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,\[\]-]*")
_IMAGE = re.compile(r"[^\s,=]+")
_MOUNT = re.compile(r"/[^\s,:]*(:/[^\s,:]*){0,1}(:r[ow])?")


def seconds_of(time: str) -> int:
    """Return the seconds of a time limit as Slurm reads it: minutes, M:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    parts = [*parts, 0, 0][:3] if dash or len(parts) == 3 else [0, *parts, 0][:3]
    return int(days or 0) * 86_400 + parts[0] * 3600 + parts[1] * 60 + parts[2]


SHORTEST_NOTICE = 60
"""Slurm may send a signal up to 60 seconds early, and not much later than that."""


@dataclass(frozen=True)
class SlurmOptions:
    """Requests of the job to Slurm. Raises UsageError for values that Slurm would misread."""

    nodes: int
    time: str  # limit: minutes, HH:MM:SS or D-HH:MM:SS
    gpus_per_node: int
    partition: str | None = None
    account: str | None = None
    exclude: str | None = None  # hosts
    notice: int = 120  # seconds before the time limit at which the run gets its signal to end
    requeue: bool = False  # queue the job again at its time limit, and resume
    container: str | None = None  # image for pyxis
    container_mounts: tuple[str, ...] = ()  # besides those that the run's paths need

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise UsageError(f"--nodes {self.nodes}: a job needs at least 1")
        if self.gpus_per_node < 0:
            raise UsageError(f"--gpus-per-node {self.gpus_per_node}: give 0 for a job on CPUs only, or more")
        if not _TIME.fullmatch(self.time):
            raise UsageError(f"--time {self.time!r} is not a Slurm time limit; write minutes, HH:MM:SS or D-HH:MM:SS")
        for name, value, known in (
            ("partition", self.partition, _NAME),
            ("account", self.account, _NAME),
            ("exclude", self.exclude, _HOSTS),
        ):
            if value is not None and not known.fullmatch(value):
                raise UsageError(f"--{name} {value!r} is not a Slurm name; letters, digits and . _ - , are allowed")
        if not SHORTEST_NOTICE <= self.notice <= 65535:
            raise UsageError(f"--notice {self.notice}: Slurm takes {SHORTEST_NOTICE} to 65535 seconds before the limit")
        if self.notice >= seconds_of(self.time):
            raise UsageError(
                f"--notice {self.notice} s before the end leaves nothing of --time {self.time}, which is "
                f"{seconds_of(self.time):,} s; raise --time, or lower --notice"
            )
        if self.container is not None and not _IMAGE.fullmatch(self.container):
            raise UsageError(f"--container {self.container!r} is not an image; give a registry's name or a .sqsh file")
        if self.container is None and self.container_mounts:
            raise UsageError("--container-mounts without a container; name its image with --container")
        for mount in self.container_mounts:
            if not _MOUNT.fullmatch(mount):
                raise UsageError(
                    f"--container-mounts {mount!r}: write /FOLDER or /FROM:/TO, with :ro behind it at most"
                )

    def directives(self) -> list[str]:
        """Return the lines of the batch script that sbatch reads."""
        given = {
            "nodes": self.nodes,
            "time": self.time,
            "gpus-per-node": self.gpus_per_node,
            "partition": self.partition,
            "account": self.account,
            "exclude": self.exclude,
        }
        lines = [f"#SBATCH --{name}={value}" for name, value in given.items() if value]
        # USR1 says that it was the time limit; TERM may as well be scancel, after which nobody wants the job again.
        lines.append(f"#SBATCH --signal=B:{'USR1' if self.requeue else 'TERM'}@{self.notice}")
        return [*lines, *(["#SBATCH --requeue", "#SBATCH --open-mode=append"] if self.requeue else [])]


@dataclass(frozen=True)
class SlurmRun:
    """Command and places of the batch script."""

    first: list[str]  # the command that starts the run
    again: list[str]  # the command that resumes it
    output: str  # the run's directory, absolute or from `working_dir`
    working_dir: Path
    python: str  # of the submitting process; unused in a container
    shared_memory_mib: int = 512
    mounts: tuple[Mount, ...] = ()


def render_sbatch(options: SlurmOptions, run: SlurmRun) -> str:
    """Return the batch script that runs the command on the first node, with RAY_ADDRESS set.

    Every word is quoted for bash. All nodes must share the working directory, and the interpreter or the image.
    """
    values = {
        "DIRECTIVES": "\n".join(options.directives()),
        "NODES": str(options.nodes),
        "GPUS": str(options.gpus_per_node),
        "SHARED_MEMORY_MIB": str(run.shared_memory_mib),
        "WORKING_DIR": shlex.quote(str(run.working_dir)),
        "OUTPUT": shlex.quote(run.output),
        "BIN": shlex.quote(str(Path(run.python).parent)) if options.container is None else "",
        "CONTAINER": shlex.join(_container_options(options, run)),
        "REQUEUE": "yes" if options.requeue else "",
        "FIRST": shlex.join(run.first),
        "AGAIN": shlex.join(run.again),
    }
    # One pass, so that a value that looks like a placeholder stays as it is.
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _container_options(options: SlurmOptions, run: SlurmRun) -> list[str]:
    """Return srun's options for pyxis; none without a container."""
    if options.container is None:
        return []
    # Ray's processes in different containers of a node find each other through /tmp.
    own = [f"{each.path}:{each.path}:{'ro' if each.read_only else 'rw'}" for each in run.mounts]
    given = [mount if ":/" in mount else re.sub(r"^([^:]*)", r"\1:\1", mount) for mount in options.container_mounts]
    return [
        f"--container-image={options.container}",
        f"--container-mounts={','.join(['/tmp:/tmp', *own, *given])}",
        f"--container-workdir={run.working_dir}",
        "--no-container-entrypoint",
    ]


def plan_slurm(training: Training, options: SlurmOptions, working_dir: Path, python: str) -> str:
    """Plan the batch script of one run. Raises UsageError for paths that a list of mounts cannot hold."""
    config, own = str(training.config), training.settings
    wanted: list[Mount] = []
    if options.container is not None:
        wanted = mounts(local_paths(own, working_dir), working_dir, None if training.preset else training.config)
        for mount in wanted:
            if re.search(r"[,:\s]", str(mount.path)):
                raise UsageError(
                    f"{mount.path} cannot be mounted by pyxis; rename it without commas, colons and blanks"
                )
    run = SlurmRun(
        training.command(config),
        training.resuming(config),
        str(own.directory),
        working_dir,
        python,
        own.cluster.object_store_mib,
        tuple(wanted),
    )
    return render_sbatch(options, run)


def submit_slurm(training: Training, script: str, working_dir: Path, *, dry_run: bool) -> int:
    """Run training as a Slurm job on its own Ray cluster, and return the job's exit code.

    The working directory and this Python must be on storage that the nodes share. Raises RunError without Slurm.
    """
    tell(unseen_by_nodes(local_paths(training.settings, working_dir)))
    if dry_run:
        print(script)
        return 0
    return run_sbatch(script)


def run_sbatch(script: str) -> int:
    """Queue a batch script, wait for its end, and return its exit code; Ctrl-C cancels it and returns 130.

    Raises RunError if Slurm does not queue it.
    """
    with tempfile.TemporaryFile("w+") as said:  # a pipe might be full before the job has ended
        return _run_sbatch(script, said)


def _run_sbatch(script: str, said: IO[str]) -> int:
    process = started(
        ["sbatch", "--wait", "--parsable"],
        "run this on a Slurm login node, or print the script with --dry-run",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
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
    said.seek(0)
    if not job_id:
        remedy = "correct --partition, --account, --time, --nodes or --gpus-per-node (`sinfo` lists what there is)"
        raise refused(f"sbatch queued no job (exit code {code})", remedy, said.read())
    print(shown(said.read(), lines=True), end="", file=sys.stderr, flush=True)
    print(f"Slurm job {job_id} ended with exit code {code}", flush=True)
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
