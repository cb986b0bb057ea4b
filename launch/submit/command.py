"""The commands below `offbeat submit`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from launch.settings.options import Config, DryRun, Overrides, Resume, name_and_value, resumed

if TYPE_CHECKING:
    from launch.submit.training import Training

submit_app = typer.Typer(help="Submit a training run to a cluster.", rich_markup_mode=None)
WorkingDir = Annotated[Path, Option(metavar="DIR", help="directory that the run's relative paths start from")]
Image = Annotated[str | None, Option(metavar="NAME", help="unset: OFFBEAT_IMAGE, else offbeat:cuda or offbeat:cpu")]


@submit_app.command(name="ray")
def ray(
    config: Config,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        Option(metavar="URL", help="the cluster's job server; unset: RAY_API_SERVER_ADDRESS, else this host"),
    ] = None,
    working_dir: Annotated[Path, Option(metavar="DIR", help="source tree to upload")] = Path(),
    env: Annotated[
        list[str] | None, Option(metavar="NAME=VALUE", help="environment variable of the job; may be repeated")
    ] = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> int:
    """Run training as a Ray job and follow its log."""
    variables = dict(map(name_and_value, env or []))
    training = _training(config, overrides, resume)
    from launch.submit.ray_cluster import plan_ray_job, submit_ray

    return submit_ray(training, plan_ray_job(training, working_dir, variables), address, dry_run=dry_run)


@submit_app.command(name="slurm")
def slurm(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, Option(help="hosts")] = 1,
    gpus_per_node: Annotated[int | None, Option(metavar="N", help="unset: the GPUs of each host that it needs")] = None,
    time: Annotated[str, Option(metavar="LIMIT", help="minutes, HH:MM:SS or D-HH:MM:SS")] = "24:00:00",
    partition: Annotated[str | None, Option(help="unset: the site's default")] = None,
    account: Annotated[str | None, Option(help="unset: the site's default")] = None,
    exclude: Annotated[str | None, Option(metavar="HOSTS", help="hosts that must not be used")] = None,
    requeue: Annotated[bool, Option("--requeue", help="at the time limit queue the job again, and resume")] = False,
    notice: Annotated[
        int, Option(metavar="SECONDS", help="time before the limit at which Slurm asks the run to save and end")
    ] = 120,
    container: Annotated[str | None, Option(metavar="IMAGE", help="image to run in, with pyxis and enroot")] = None,
    container_mounts: Annotated[
        list[str] | None, Option(metavar="/FROM[:/TO]", help="besides what the run's paths need; may be repeated")
    ] = None,
    working_dir: WorkingDir = Path(),
    resume: Resume = None,
    dry_run: DryRun = False,
) -> int:
    """Run training as a Slurm batch job on its own Ray cluster."""
    training = _training(config, overrides, resume)
    from launch.submit.needs import gpus_per_node as needed
    from launch.submit.slurm import SlurmOptions, plan_slurm, submit_slurm
    from launch.submit.training import existing_directory, tell

    root, mounted = existing_directory(working_dir), tuple(container_mounts or ())
    gpus, notes = needed(training.settings, max(1, nodes), gpus_per_node, "--gpus-per-node")
    tell(notes)
    options = SlurmOptions(nodes, time, gpus, partition, account, exclude, notice, requeue, container, mounted)
    return submit_slurm(training, plan_slurm(training, options, root, sys.executable), root, dry_run=dry_run)


@submit_app.command(name="compose")
def compose(
    config: Config,
    overrides: Overrides = None,
    image: Image = None,
    working_dir: WorkingDir = Path(),
    resume: Resume = None,
    dry_run: DryRun = False,
) -> int:
    """Run training with docker compose on this host."""
    training = _training(config, overrides, resume)
    from launch.submit.compose import plan_compose, submit_compose

    return submit_compose(training, plan_compose(training, working_dir, image), dry_run=dry_run)


@submit_app.command(name="kuberay")
def kuberay(
    config: Config,
    overrides: Overrides = None,
    image: Annotated[str, Option(metavar="NAME", help="image with Offbeat that the cluster can pull")] = "offbeat:cuda",
    namespace: Annotated[str, Option(help="Kubernetes namespace")] = "default",
    workers: Annotated[int, Option(metavar="N", help="pods with GPUs; 0: one pod, the head")] = 1,
    gpus_per_worker: Annotated[int | None, Option(metavar="N", help="GPUs of each; unset: those that it needs")] = None,
    cpus: Annotated[
        str | None,
        Option(metavar="AMOUNT", help="CPU cores of each pod that runs actors; unset: 16, or the more that it needs"),
    ] = None,
    memory: Annotated[str, Option(metavar="AMOUNT", help="memory of each pod, shared memory included")] = "128Gi",
    volume: Annotated[
        list[str] | None,
        Option(metavar="CLAIM:/PATH[:ro]", help="PersistentVolumeClaim; the run starts in the first; may be repeated"),
    ] = None,
    secret: Annotated[str | None, Option(metavar="NAME", help="Secret whose keys become variables of the pods")] = None,
    retries: Annotated[int, Option(metavar="N", help="new clusters after a failure; each resumes")] = 2,
    shared_memory: Annotated[
        int | None,
        Option(metavar="MIB", min=1, help="/dev/shm of each pod (MiB); unset: what the run needs, and 1 GiB"),
    ] = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> int:
    """Run training on Kubernetes, as a RayJob of KubeRay."""
    training = _training(config, overrides, resume)
    from launch.submit.kuberay import CORES, KuberayOptions, Volume, bytes_of, plan_kuberay, submit_kuberay
    from launch.submit.needs import cores_per_node, gpus_per_node, memory_notes, shared_memory_mib
    from launch.submit.training import tell

    volumes = tuple(map(Volume.parse, volume or ()))
    pods = max(1, workers)
    gpus, notes = gpus_per_node(training.settings, pods, gpus_per_worker, "--gpus-per-worker")
    tell(notes)
    asked = float(cpus) if cpus is not None and re.fullmatch(r"\d{1,6}(\.\d+)?", cpus) else None
    needed = cores_per_node(training.settings, pods, gpus, asked, "--cpus")
    cores = cpus or str(max(CORES, needed))
    options = KuberayOptions(image, namespace, workers, gpus, cores, memory, volumes, secret, retries)
    shared = shared_memory or shared_memory_mib(training.settings)
    tell(memory_notes(training.settings, pods, bytes_of(memory), shared, f"--memory {memory}"))
    manifests = plan_kuberay(training, options, shared_memory_mib=shared)
    return submit_kuberay(training, options, manifests, dry_run=dry_run)


def _training(config: str, overrides: Sequence[str] | None, resume: str | None) -> Training:
    """Return the run to submit, with its settings checked before it is queued."""
    from launch.submit.training import Training

    return Training.load(config, tuple(overrides or ()), resumed(resume))
