"""A run on Kubernetes, as a RayJob of the KubeRay operator: the manifest, applying it, following it to its end.

kubectl does the talking. Must not import Kubernetes' client or Ray.
"""

import json
import re
import secrets
import shlex
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import sleep
from typing import Any

import yaml

from actors.errors import INTERRUPTED, RunError, UsageError
from actors.foreign.text import WHOLE, shown
from launch.submit.paths import Mount, local_paths, unseen_in_pods
from launch.submit.training import Training, refused, started, tell

CONFIG_FOLDER = "/etc/offbeat"
"""The pods' folder with the configuration and the script that runs it."""
LONGEST_NAME = 47
"""Letters of a RayJob's name: KubeRay appends its own to them."""
PATIENCE = 60
"""Failed questions in a row after which the cluster counts as lost."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_IMAGE = re.compile(r"\S+")
CORES = 16
"""Cores of a pod, if the run does not need more."""
HEAD_CORES = 4
"""Most cores of a head that has only the driver."""
_CORES = re.compile(r"\d{1,6}(\.\d+)?")
_QUANTITY = re.compile(r"(?P<number>\d{1,18}(\.\d+)?)(?P<unit>([kMGTP]|[KMGTP]i)?)")
_VOLUME = re.compile(r"(?P<claim>[a-z0-9]([a-z0-9.-]*[a-z0-9])?):(?P<path>/[^:\s]+?)/?(?P<ro>:ro)?")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim, and where pods have it."""

    claim: str
    mount: Mount

    @classmethod
    def parse(cls, text: str) -> "Volume":
        """Read CLAIM:/PATH, with :ro behind it if it must not be written to. Raises UsageError."""
        match = _VOLUME.fullmatch(text)
        if match is None:
            raise UsageError(f"volume {text!r}; write CLAIM:/PATH or CLAIM:/PATH:ro, CLAIM a PersistentVolumeClaim")
        return cls(match["claim"], Mount(Path(match["path"]), read_only=match["ro"] is not None))


@dataclass(frozen=True)
class KuberayOptions:
    """Parts of the job's cluster. Raises UsageError for values that Kubernetes would refuse."""

    image: str
    namespace: str = "default"
    workers: int = 1  # pods with GPUs; 0: the head has them
    gpus: int = 8  # of each pod that has any
    cpus: str = str(CORES)
    memory: str = "128Gi"
    volumes: tuple[Volume, ...] = ()  # the run starts in the first
    secret: str | None = None  # its keys become environment variables
    retries: int = 2  # new clusters after a failure; each goes on from the last checkpoint

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            raise UsageError(f"--image {self.image!r} is not the name of an image")
        for name, value in (("namespace", self.namespace), ("secret", self.secret)):
            if value is not None and not _NAME.fullmatch(value):
                raise UsageError(f"--{name} {value!r} is not a Kubernetes name; a-z, 0-9 and - are allowed")
        for name, count in (("workers", self.workers), ("gpus-per-worker", self.gpus), ("retries", self.retries)):
            if count < 0:
                raise UsageError(f"--{name} {count}: give 0 or more")
        if not _CORES.fullmatch(self.cpus):
            raise UsageError(f"--cpus {self.cpus!r} is no number of cores; write one, such as 16")
        taken = ["/dev/shm", CONFIG_FOLDER]
        for volume in self.volumes:
            if str(volume.mount.path) in taken:
                raise UsageError(
                    f"--volume {volume.claim}:{volume.mount.path}: something else is there; change the path"
                )
            taken.append(str(volume.mount.path))
        bytes_of(self.memory)


def bytes_of(memory: str) -> int:
    """Read an amount of memory as Kubernetes writes it. Raises UsageError."""
    match = _QUANTITY.fullmatch(memory)
    if match is None:
        raise UsageError(f"--memory {memory!r} is not a quantity of Kubernetes; write one, such as 128Gi")
    letter, binary = match["unit"].upper(), match["unit"].endswith("i")
    return int(float(match["number"]) * (1024 if binary else 1000) ** " KMGTP".index(letter[:1] or " "))


def job_name(run: str, suffix: str) -> str:
    """Return a name for the RayJob of a run: a finished one keeps its name, so that each has a suffix of its own."""
    words = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    return f"offbeat-{words}"[: LONGEST_NAME - len(suffix) - 1].rstrip("-") + f"-{suffix}"


def plan_kuberay(
    training: Training, options: KuberayOptions, *, shared_memory_mib: int, suffix: str | None = None
) -> list[dict[str, Any]]:
    """Plan the manifests of one run: a ConfigMap with its configuration and script, then the RayJob."""
    name = job_name(training.settings.name, suffix or secrets.token_hex(3))
    labels = {"app.kubernetes.io/name": "offbeat", "app.kubernetes.io/instance": name}
    about = {"name": name, "namespace": options.namespace, "labels": labels}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": about,
        "data": {"config.yaml": training.config.read_text(encoding="utf-8"), "run.sh": _script(training, options)},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": about,
        "spec": {
            # The operator joins the words of an entry point without quotes: so it is a file.
            "entrypoint": f"bash {CONFIG_FOLDER}/run.sh",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60,
            "backoffLimit": options.retries,
            "rayClusterSpec": _cluster(options, name, shared_memory_mib, training.settings.cluster.object_store_mib),
        },
    }
    return [config_map, job]


def _script(training: Training, options: KuberayOptions) -> str:
    """Return the script of the head: a new cluster after a failure finds what the last one left, and resumes."""
    lines = ["#!/bin/bash", "set -uo pipefail"]
    lines += [f"cd {shlex.quote(str(options.volumes[0].mount.path))} || exit 1"] if options.volumes else []
    return "\n".join([*lines, training.started_or_resumed(f"{CONFIG_FOLDER}/config.yaml"), ""])


def _cluster(options: KuberayOptions, name: str, shared_memory_mib: int, object_store_mib: int) -> dict[str, Any]:
    start = {"object-store-memory": str(object_store_mib << 20)}
    head_gpus = 0 if options.workers else options.gpus
    head = replace(options, cpus=f"{min(HEAD_CORES, float(options.cpus)):g}") if options.workers else options
    # With workers, the head has only the driver: no actor is placed there.
    head_start = {"dashboard-host": "0.0.0.0", **start, **({"num-cpus": "0"} if options.workers else {})}
    spec: dict[str, Any] = {
        # From KubeRay 1.5.1 on: the operator makes a token, and gives it to all pods of the cluster.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": head_start,
            "template": _pod(head, "ray-head", name, head_gpus, shared_memory_mib),
        },
    }
    if (ray := _ray_version()) is not None:
        spec = {"rayVersion": ray, **spec}
    if options.workers:
        count = options.workers
        group = {"groupName": "workers", "replicas": count, "minReplicas": count, "maxReplicas": count}
        template = _pod(options, "ray-worker", name, options.gpus, shared_memory_mib)
        spec["workerGroupSpecs"] = [{**group, "rayStartParams": start, "template": template}]
    return spec


def _pod(options: KuberayOptions, container: str, name: str, gpus: int, shared_memory_mib: int) -> dict[str, Any]:
    amounts = {"cpu": options.cpus, "memory": options.memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    volumes: list[dict[str, Any]] = [
        # Counted as the pod's memory.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_memory_mib}Mi"}},
        {"name": "config", "configMap": {"name": name}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
    ]
    for number, volume in enumerate(options.volumes):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
        at = {"name": f"volume-{number}", "mountPath": str(volume.mount.path)}
        mounts.append({**at, "readOnly": True} if volume.mount.read_only else at)
    content: dict[str, Any] = {
        "name": container,
        "image": options.image,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": mounts,
    }
    if options.volumes:  # so that relative paths mean the same on all pods
        content["workingDir"] = str(options.volumes[0].mount.path)
    if options.secret is not None:
        content["envFrom"] = [{"secretRef": {"name": options.secret}}]
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}  # of the image
    return {"spec": {"securityContext": user, "containers": [content], "volumes": volumes}}


def _ray_version() -> str | None:
    try:
        return version("ray")
    except PackageNotFoundError:
        return None


def unseen(training: Training, options: KuberayOptions) -> list[str]:
    """Say which paths of the configuration pods do not have, one sentence each."""
    paths = local_paths(training.settings, Path.cwd())
    return list(unseen_in_pods(paths, [volume.mount for volume in options.volumes]))


def submit_kuberay(
    training: Training, options: KuberayOptions, manifests: Sequence[dict[str, Any]], *, dry_run: bool
) -> int:
    """Run training as a RayJob, follow its log, and return the exit code. Raises RunError if kubectl fails."""
    tell(unseen(training, options))
    text = as_yaml(manifests)
    if dry_run:
        print(text, end="")
        return 0
    name = manifests[-1]["metadata"]["name"]
    kubectl = Kubectl(options.namespace)
    kubectl.ask(["apply", "-f", "-"], text)
    print(shown(f"applied RayJob {name} in namespace {options.namespace}"), flush=True)
    try:
        code, told = follow(kubectl, name)
    except KeyboardInterrupt:
        print(shown(f"\ninterrupted: deleting RayJob {name}", lines=True), flush=True)
        kubectl.ask(["delete", f"rayjob/{name}", f"configmap/{name}", "--ignore-not-found"])
        return INTERRUPTED
    print(shown(f"RayJob {name} {told}, exit code {code}"), flush=True)
    return code


class _Dumper(yaml.SafeDumper):
    """Writes scripts line by line, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def as_yaml(manifests: Sequence[dict[str, Any]]) -> str:
    """Return manifests as `kubectl apply` reads them."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=1000)


class Kubectl:
    """The program kubectl in one namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._command = ["kubectl", "--namespace", namespace]

    def ask(self, words: Sequence[str], given: str = "") -> str:
        """Return what kubectl prints. Raises RunError with its own words if it fails."""
        process = self._started(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        answer, problem = process.communicate(given)
        if process.returncode:
            raise refused(
                f"kubectl {words[0]} failed in namespace {self._namespace}",
                "see that `kubectl get rayjobs` works there: it needs the cluster of the current context, this "
                "namespace, and the operator KubeRay; or print the manifest with --dry-run",
                problem,
            )
        return str(answer)

    def log(self, job: str) -> subprocess.Popen[str]:
        """Start to follow the log of the pod that submits a RayJob, which is the log of the run."""
        return self._started(["logs", "--follow", f"job/{job}"], stderr=subprocess.DEVNULL)

    def _started(self, words: Sequence[str], **streams: Any) -> subprocess.Popen[str]:
        remedy = "install it, or print the manifest with --dry-run and apply it elsewhere"
        return started([*self._command, *words], remedy, stdout=subprocess.PIPE, text=True, **streams)


def follow(kubectl: Kubectl, name: str, pause: float = 2.0) -> tuple[int, str]:
    """Print a RayJob's log until it ends; return its exit code, and how it ended.

    Raises RunError if the cluster does not answer for long: the job may still be running.
    """
    log: threading.Thread | None = None
    failures = 0
    while True:
        try:
            status = json.loads(kubectl.ask(["get", f"rayjob/{name}", "--output", "json"])).get("status", {})
            failures = 0
        except (RunError, ValueError) as error:
            failures, status = failures + 1, {}
            if failures > PATIENCE:
                raise RunError(
                    f"lost contact with the Kubernetes cluster ({error}); {name} may still be running: check it with "
                    f"`kubectl get rayjob {name}`, end it with `kubectl delete rayjob {name}`"
                ) from error
        if log is None or not log.is_alive():
            # A retry has a new pod, and so a new log.
            log = _follow_log(kubectl, name) if status.get("jobStatus") == "RUNNING" else None
        if status.get("jobDeploymentStatus") in ("Complete", "Failed"):
            if log is not None:
                log.join(timeout=30.0)
            return _outcome(status)
        sleep(pause)


def _follow_log(kubectl: Kubectl, name: str) -> threading.Thread:
    process = kubectl.log(name)
    assert process.stdout is not None
    lines = process.stdout

    def show() -> None:
        for line in lines:
            print(shown(line, WHOLE, lines=True), end="", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    return thread


def _outcome(status: dict[str, Any]) -> tuple[int, str]:
    """Return the exit code of a RayJob that ended, which its message has, and its status with the reason."""
    state = str(status.get("jobStatus") or status.get("jobDeploymentStatus"))
    if state == "SUCCEEDED":
        return 0, state
    message = " ".join(str(status.get("message") or status.get("reason") or "").split())
    told = re.search(r"exit code (\d+)", message)
    return (int(told[1]) or 1) if told else 1, f"{state} ({message})" if message else state
