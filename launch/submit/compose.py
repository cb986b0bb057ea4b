"""A run in docker on this machine, with docker compose: its directory, data and models are mounted at their own paths.

The compose files are beside this module, so that an installed wheel has them.
"""

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from actors.errors import INTERRUPTED, RunError, UsageError
from launch.submit.paths import Mount, local_paths, mounts, unseen_in_container
from launch.submit.training import Training, existing_directory, refused, started, tell

INSTALL = "install docker with the compose plugin, or print the command with --dry-run"
FILES = Path(__file__).with_name("docker")
IMAGES = {"compose.yaml": "offbeat:cuda", "compose.cpu.yaml": "offbeat:cpu"}
"""The image of each compose file, unless OFFBEAT_IMAGE names another."""


@dataclass(frozen=True)
class ComposeRun:
    """One start of docker compose: the command, the variables of the compose file, and the mounts that must exist."""

    command: list[str]
    variables: dict[str, str]
    mounts: list[Mount]
    image: str
    own_image: bool  # one that only a checkout can build

    def text(self) -> str:
        """Return the whole command as a shell takes it."""
        return f"{shlex.join(f'{name}={value}' for name, value in self.variables.items())} {shlex.join(self.command)}"


def plan_compose(training: Training, working_dir: str | Path, image: str | None = None) -> ComposeRun:
    """Plan the container of one run: the GPU service, or the CPU one if the learner has no GPU.

    Raises UsageError for paths that docker would misread.
    """
    root = existing_directory(working_dir)
    if root == Path("/"):
        raise UsageError("working directory / cannot be mounted into a container; run this in the run's own directory")
    file = "compose.yaml" if training.settings.learner.gpus_per_rank else "compose.cpu.yaml"
    paths = local_paths(training.settings, root)
    config = None if training.preset else training.config
    wanted = mounts(paths, root, config)
    for mount in wanted:
        if ":" in str(mount.path):
            raise UsageError(
                f"{mount.path} has a colon, which docker reads as a separator of volumes; rename or move it"
            )
    words = ["docker", "compose", "-f", str(FILES / file), "run", "--rm"]
    for mount in wanted[1:]:  # the first is the working directory, which the compose file mounts
        words += ["--volume", f"{mount.path}:{mount.path}{':ro' if mount.read_only else ''}"]
    verb = training.command(str(training.config))[3:]  # the image's entry point is `python -m launch`
    variables = {"OFFBEAT_DIRECTORY": str(root), "OFFBEAT_UID": str(os.getuid()), "OFFBEAT_GID": str(os.getgid())}
    named = image or os.environ.get("OFFBEAT_IMAGE")
    if named and len(named.split()) != 1:
        raise UsageError(f"--image {named!r} is not the name of an image; a space is in it: leave that out")
    variables |= {"OFFBEAT_IMAGE": named} if named else {}
    return ComposeRun([*words, "offbeat", *verb], variables, wanted, named or IMAGES[file], named is None)


def submit_compose(training: Training, plan: ComposeRun, *, dry_run: bool) -> int:
    """Run training in a container, and return its exit code. Raises RunError if docker or the image is not there."""
    tell(unseen_in_container(local_paths(training.settings, plan.mounts[0].path)))
    if dry_run:
        print(plan.text())
        return 0
    _require_docker()
    if plan.own_image:
        _require_image(plan.image)
    for mount in plan.mounts:
        if not mount.read_only:
            mount.path.mkdir(parents=True, exist_ok=True)  # otherwise docker creates it, owned by root
    process = started(
        plan.command,
        INSTALL,
        env={**os.environ, **plan.variables},
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        print("\ninterrupted: docker is stopping the container", flush=True)
        process.wait()
        return INTERRUPTED


def _asked(*words: str) -> tuple[int, str]:
    """Return docker's exit code and what it says of an error."""
    silent = subprocess.PIPE
    process = started(["docker", *words], INSTALL, stdout=silent, stderr=silent, text=True)
    _, told = process.communicate()
    return process.returncode, told


def _require_docker() -> None:
    """Raise RunError if docker's service does not answer, or its compose plugin is not there."""
    code, told = _asked("compose", "version")
    if code:
        raise refused("docker has no compose plugin", INSTALL, told)
    code, told = _asked("version")
    if code:
        remedy = "start it (`systemctl start docker`), or let this user into the group docker"
        raise refused("docker's service does not answer this user", remedy, told)


def _require_image(image: str) -> None:
    """Raise RunError if this machine does not have the image: no registry has it."""
    code, told = _asked("image", "inspect", image)
    if code and "no such image" in told.lower():
        kind = image.partition(":")[2]
        raise RunError(
            f"this machine has no image {image}; build it in a checkout of Offbeat with "
            f"`docker build -f docker/Dockerfile.{kind} -t {image} .`, or name another with --image"
        )
