"""Runs on Kubernetes: the manifests against the schema of RayJob, and following a job with a stand-in for kubectl."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.errors import RunError, UsageError
from launch.cli import main
from launch.submit import kuberay
from launch.submit.kuberay import (
    Kubectl,
    KuberayOptions,
    Volume,
    as_yaml,
    bytes_of,
    follow,
    job_name,
    plan_kuberay,
)
from launch.submit.needs import shared_memory_mib
from tests.launch.submit.helpers import executable, training

SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "two words.yaml"
    path.write_text("# A comment stays.\nname: My_Run.1\nmodel: {path: world}\n")
    return path


def manifests(config: Path, *overrides: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    volumes = (Volume.parse("data:/data"), Volume.parse("models:/models:ro"))
    options = KuberayOptions(**{"image": "r/offbeat:1", "volumes": volumes} | changes)
    config_map, job = plan_kuberay(training(config, overrides), options, shared_memory_mib=2048, suffix="abc")
    return config_map, job


@pytest.mark.parametrize("changes", [{}, {"workers": 0}, {"gpus": 0}, {"volumes": ()}, {"secret": "keys"}])
def test_the_manifest_fits_the_schema_of_rayjob(config, changes):
    _, job = manifests(config, **changes)
    jsonschema.validate(job, SCHEMA)


def test_the_schema_refuses_a_misspelt_field_and_a_wrong_type(config):
    _, job = manifests(config)
    for wrong in ({"shutDownAfterJobFinishes": True}, {"backoffLimit": "2"}, {"submissionMode": "Sidecar"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**job, "spec": {**job["spec"], **wrong}}, SCHEMA)


def test_workers_have_the_gpus_and_the_head_only_the_driver(config):
    cluster = manifests(config, workers=2, gpus=4)[1]["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert head["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "4"
    assert group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "16"
    few = manifests(config, workers=1, cpus="2.5")[1]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert few["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "2.5"
    alone = manifests(config, workers=0, gpus=4)[1]["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in alone
    assert alone["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_every_pod_has_shared_memory_the_volumes_and_the_same_directory(config):
    cluster = manifests(config)[1]["spec"]["rayClusterSpec"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        [container] = pod["containers"]
        at = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert container["workingDir"] == "/data"
        assert set(at) == {"/dev/shm", "/etc/offbeat", "/data", "/models"}
        assert [path for path, mount in at.items() if mount.get("readOnly")] == ["/etc/offbeat", "/models"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[at["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2048Mi"}
        assert volumes[at["/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "data"}
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_script_starts_the_run_and_a_retry_resumes_it(config, tmp_path):
    """Run for real, with a stand-in for Python that says what it was asked."""
    config_map, job = manifests(config, "x='$(id)' y", volumes=(Volume.parse(f"data:{tmp_path}/data"),))
    assert config_map["data"]["config.yaml"] == config.read_text()
    assert job["spec"]["entrypoint"] == "bash /etc/offbeat/run.sh"
    run = tmp_path / "data" / "runs" / "My_Run.1"
    run.mkdir(parents=True)
    executable(tmp_path / "python", 'printf "%s\\n" "$PWD" "$@"; exit 7')
    told = []
    for recorded in (False, True):
        (run / "config.yaml").touch() if recorded else None
        environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        command = ["bash", "-c", config_map["data"]["run.sh"]]
        ended = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert ended.returncode == 7
        told.append(ended.stdout.splitlines())
    first = [str(tmp_path / "data"), "-m", "launch", "train", "/etc/offbeat/config.yaml", "x='$(id)' y"]
    assert told == [first, [*first, "--resume"]]


def test_a_name_is_one_that_kubernetes_and_kuberay_take():
    assert job_name("My_Run.1", "abc") == "offbeat-my-run-1-abc"
    long = job_name("x" * 80, "abc")
    assert (len(long), long[-4:]) == (47, "-abc")


def test_a_dry_run_prints_what_kubectl_reads_without_aliases(config, capsys):
    assert main(["submit", "kuberay", str(config), "--image", "r/o:1", "--volume", "data:/data", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    config_map, job = yaml.safe_load_all(printed)
    jsonschema.validate(job, SCHEMA)
    assert "&id" not in printed
    assert "  run.sh: |\n" in printed
    assert config_map["metadata"]["name"] == job["metadata"]["name"]


def test_shared_memory_is_the_object_store_the_published_versions_and_some_room(config):
    run = training(config).settings
    assert run.publication.transport != "nccl"
    assert run.cluster.object_store_mib + 1024 <= shared_memory_mib(run) < run.cluster.object_store_mib + 1200


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"namespace": "My"}, "--namespace 'My' is not a Kubernetes name"),
        ({"workers": -1}, "--workers -1: give 0 or more"),
        ({"memory": "lots"}, "--memory 'lots' is not a quantity"),
        ({"cpus": "4Gi"}, "--cpus '4Gi' is no number of cores"),
        ({"image": "a b"}, "not the name of an image"),
    ],
)
def test_a_request_that_kubernetes_would_refuse_is_refused(wrong, match):
    with pytest.raises(UsageError, match=match):
        KuberayOptions(**{"image": "x"} | wrong)


@pytest.mark.parametrize("volumes", [("a:/data", "b:/data"), ("a:/dev/shm",), ("a:/etc/offbeat",)])
def test_two_things_at_one_path_of_a_pod_are_refused(volumes):
    with pytest.raises(UsageError, match="something else is there; change the path"):
        KuberayOptions("x", volumes=tuple(map(Volume.parse, volumes)))


@pytest.mark.parametrize(
    ("memory", "number"), [("7", 7), ("1.5k", 1500), ("2M", 2 * 10**6), ("3Gi", 3 * 2**30), ("1Ti", 2**40)]
)
def test_an_amount_of_memory_is_read_with_its_unit(memory, number):
    assert bytes_of(memory) == number


@pytest.mark.parametrize("text", ["data", "data:relative", "Data:/x", "data:/x:rw", ":/x"])
def test_a_volume_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="write CLAIM:/PATH"):
        Volume.parse(text)


# ---------------------------------------------------------------- following


@pytest.fixture
def states(tmp_path, monkeypatch) -> Path:
    """A kubectl that answers with one line of a file after the other, and notes what it was asked."""
    path = tmp_path / "states"
    executable(
        tmp_path / "kubectl",
        f"""echo "$*" >> {tmp_path}/calls
case "$3" in
apply) cat > {tmp_path}/applied;;
logs) echo "update 1 of 2"; printf 'a\\033[2Jb\\n';;
get) head -n 1 {path}; [ "$(wc -l < {path})" -eq 1 ] || sed -i 1d {path};;
esac
""",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return path


def state(job: str, deployment: str, message: str = "") -> str:
    status = {"jobStatus": job, "jobDeploymentStatus": deployment, "message": message}
    return json.dumps({"status": status}) + "\n"


def test_a_job_is_followed_to_its_end_and_its_exit_code_comes_back(states, tmp_path, config, capsys, monkeypatch):
    monkeypatch.setattr(kuberay, "sleep", lambda seconds: None)
    states.write_text(
        json.dumps({})
        + "\n"
        + state("PENDING", "Initializing")
        + state("RUNNING", "Running") * 2
        + state("FAILED", "Failed", "Job entrypoint command failed with exit code 3, last logs")
    )
    assert main(["submit", "kuberay", str(config), "--image", "r/o:1", "--volume", "data:/data"]) == 3
    printed = capsys.readouterr().out
    assert "update 1 of 2\na\\x1b[2Jb\n" in printed
    assert "FAILED (Job entrypoint command failed with exit code 3, last logs), exit code 3" in printed
    _, job = yaml.safe_load_all((tmp_path / "applied").read_text())
    assert job["kind"] == "RayJob"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (state("SUCCEEDED", "Complete"), (0, "SUCCEEDED")),
        (state("STOPPED", "Complete"), (1, "STOPPED")),
        (state("", "Failed", "no pods"), (1, "Failed (no pods)")),
    ],
)
def test_only_success_is_exit_code_0(states, last, expected):
    states.write_text(last)
    assert follow(Kubectl("n"), "job", pause=0.0) == expected


def test_a_cluster_that_stays_away_is_an_error_that_says_the_job_may_be_running(tmp_path, monkeypatch):
    executable(tmp_path / "kubectl", 'echo "connection refused" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(kuberay, "PATIENCE", 2)
    with pytest.raises(RunError, match=r"connection refused.*job-7 may still be running"):
        follow(Kubectl("n"), "job-7", pause=0.0)
    with pytest.raises(
        RunError, match=r"kubectl apply failed in namespace n; see that .* It said: connection refused$"
    ):
        Kubectl("n").ask(["apply"])


def test_ctrl_c_deletes_the_job(states, tmp_path, config, capsys):
    states.write_text(state("RUNNING", "Running"))
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    assert main(["submit", "kuberay", str(config), "--image", "r/o:1", "--volume", "data:/data"]) == 130
    assert "interrupted: deleting RayJob offbeat-my-run-1-" in capsys.readouterr().out
    assert "delete rayjob/offbeat-my-run-1-" in (tmp_path / "calls").read_text()


def test_without_kubectl_the_next_step_is_named(config, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["submit", "kuberay", str(config), "--image", "r/o:1"]) == 1
    assert "kubectl is not on PATH; install it, or print the manifest with --dry-run" in capsys.readouterr().err


def test_manifests_survive_yaml(config):
    both = list(manifests(config))
    assert list(yaml.safe_load_all(as_yaml(both))) == both
