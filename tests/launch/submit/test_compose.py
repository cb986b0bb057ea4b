"""Runs in docker, as text: the command, the mounts, and what `docker compose config` would check of the files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.errors import RunError, UsageError
from launch.cli import main
from launch.submit.compose import FILES, IMAGES, plan_compose, submit_compose
from tests.house import ROOT
from tests.launch.submit.helpers import executable, training

COMPOSE_FILES = sorted(FILES.glob("*.yaml"))
VARIABLE = re.compile(r"\$\{(\w+)(:-|:\?)?([^}]*)\}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory beside a reward model that the run needs too."""
    (tmp_path / "w").mkdir()
    (tmp_path / "reward model").mkdir()
    judge = f"judging: {{judge: {{kind: reward_model, path: {tmp_path / 'reward model'}}}}}\n"
    (tmp_path / "w" / "run.yaml").write_text("model: {path: world}\n" + judge)
    return tmp_path / "w"


def test_a_dry_run_prints_the_whole_command_with_the_user_s_directory_and_models(tree, capsys):
    run = training(tree / "run.yaml", ("updates=5",))
    assert submit_compose(run, plan_compose(run, tree, "me/offbeat:1"), dry_run=True) == 0
    words = shlex.split(capsys.readouterr().out)
    variables, command = words[:4], words[4:]
    assert variables == [
        f"OFFBEAT_DIRECTORY={tree}",
        f"OFFBEAT_UID={os.getuid()}",
        f"OFFBEAT_GID={os.getgid()}",
        "OFFBEAT_IMAGE=me/offbeat:1",
    ]
    reward = tree.parent / "reward model"
    assert command[:6] == ["docker", "compose", "-f", str(FILES / "compose.cpu.yaml"), "run", "--rm"]
    assert command[6:8] == ["--volume", f"{reward}:{reward}:ro"]
    assert command[8:] == ["offbeat", "train", str(tree / "run.yaml"), "updates=5"]


def test_a_learner_on_gpus_takes_the_service_with_gpus(tree):
    assert plan_compose(training(tree / "run.yaml"), tree).image == "offbeat:cpu"
    (tree / "gpu.yaml").write_text("model: {path: world}\nlearner: {gpus_per_rank: 1}\ngenerators: {gpus: 1}\n")
    plan = plan_compose(training(tree / "gpu.yaml"), tree)
    assert (plan.image, str(FILES / "compose.yaml") in plan.command) == ("offbeat:cuda", True)


def test_a_path_that_docker_would_split_is_refused(tmp_path):
    (tmp_path / "w").mkdir()
    config = tmp_path / "a:b.yaml"
    config.write_text("model: {path: world}")
    with pytest.raises(UsageError, match="colon"):
        plan_compose(training(config), tmp_path / "w")
    with pytest.raises(UsageError, match="/ cannot be mounted"):
        plan_compose(training(config), "/")


def test_the_container_s_exit_code_is_the_run_s_and_its_folders_belong_to_the_user(tree, monkeypatch, tmp_path):
    """Docker would make the output directory itself, as root."""
    output = tmp_path / "results" / "run"
    called = tmp_path / "called"
    executable(tmp_path / "docker", f'echo "$OFFBEAT_DIRECTORY $*" >> {called}; [ "$2" != -f ] || exit 5')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tree)
    assert main(["submit", "compose", "run.yaml"]) == 5
    (tree / "run.yaml").write_text(f"model: {{path: world}}\noutput: {output}\n")
    assert main(["submit", "compose", "run.yaml"]) == 5
    assert output.is_dir()
    lines = called.read_text().splitlines()
    assert lines[:3] == [" compose version", " version", " image inspect offbeat:cpu"]
    assert lines[3].startswith(f"{tree} compose -f ")
    assert f"--volume {output}:{output} offbeat train" in lines[7]


def test_an_image_that_no_registry_has_is_missed_before_docker_looks_for_it(tree, monkeypatch, tmp_path):
    executable(tmp_path / "docker", '[ "$1" = image ] || exit 0; echo "Error: No such image: $3" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run = training(tree / "run.yaml")
    with pytest.raises(RunError, match=r"no image offbeat:cpu; build it .*Dockerfile\.cpu -t offbeat:cpu \.`"):
        submit_compose(run, plan_compose(run, tree), dry_run=False)


@pytest.mark.parametrize(
    ("failing", "said", "words"),
    [
        ("compose", "unknown command: docker compose", "docker has no compose plugin; install docker with the compose"),
        ("version", "Cannot connect to the Docker daemon", "docker's service does not answer this user; start it"),
    ],
)
def test_a_docker_that_does_not_work_is_told_in_our_words_with_its_own_as_the_cause(
    failing, said, words, tree, monkeypatch, tmp_path
):
    executable(tmp_path / "docker", f'[ "$1" != {failing} ] || {{ echo "{said}" >&2; exit 1; }}')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run = training(tree / "run.yaml")
    with pytest.raises(RunError) as error:
        submit_compose(run, plan_compose(run, tree), dry_run=False)
    assert str(error.value).startswith(words)
    assert str(error.value).endswith(f"It said: {said}")


def test_docker_that_is_not_installed_is_one_sentence(tree, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    run = training(tree / "run.yaml")
    with pytest.raises(RunError, match="docker is not on PATH; install docker with the compose plugin"):
        submit_compose(run, plan_compose(run, tree), dry_run=False)


# ---------------------------------------------------------------- the files


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_a_compose_file_fits_the_schema(file):
    """The part of the Compose Specification's schema that the files use; a misspelt key fails, as in docker compose."""
    schema = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
    content = yaml.safe_load(file.read_text())
    jsonschema.validate(content, schema)
    for service in content["services"].values():
        named = [volume.partition(":")[0] for volume in service["volumes"] if not volume.startswith("$")]
        assert set(named) <= set(content["volumes"])
        assert set(service.get("secrets", [])) <= set(content.get("secrets", {}))


def test_the_schema_refuses_what_docker_compose_refuses():
    schema = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
    content: dict[str, Any] = {"services": {"a": {"image": "x"}}}
    jsonschema.validate(content, schema)
    for wrong in ({"imge": "x"}, {"healthcheck": {"tests": []}}, {"shm_size": [1]}, {"ports": "80:80"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"services": {"a": wrong}}, schema)


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_every_variable_has_a_default_or_says_what_to_set(file):
    """But one that was asked for before on the same line."""
    for line in file.read_text().splitlines():
        asked = {name for name, how, _ in VARIABLE.findall(line) if how}
        bare = {name for name, how, _ in VARIABLE.findall(line) if not how}
        assert bare <= asked, line
    given = {name for name, _, _ in VARIABLE.findall(file.read_text())}
    assert {"OFFBEAT_DIRECTORY", "OFFBEAT_UID", "OFFBEAT_GID", "OFFBEAT_IMAGE"} <= given


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_each_file_s_image_is_that_of_its_dockerfile(file):
    image = IMAGES[file.name]
    assert f"${{OFFBEAT_IMAGE:-{image}}}" in file.read_text()
    assert (FILES / f"Dockerfile.{image.partition(':')[2]}").is_file()


def test_base_images_have_exact_tags():
    for file in FILES.glob("Dockerfile.*"):
        [base] = re.findall(r"^FROM (\S+)$", file.read_text(), re.MULTILINE)
        assert re.search(r":v?\d+\.\d+\.\d+|@sha256:", base), base


def hadolint() -> str | None:
    import shutil

    return shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="no hadolint on PATH")
@pytest.mark.parametrize("file", sorted(FILES.glob("Dockerfile.*")), ids=lambda file: file.name)
def test_hadolint_finds_nothing(file):
    checked = subprocess.run(["hadolint", "--no-color", str(file)], text=True, capture_output=True)
    assert (checked.returncode, checked.stdout) == (0, "")


def has_compose() -> bool:
    try:
        return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not has_compose(), reason="no docker compose")
@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_docker_compose_reads_the_file(file):
    environ = os.environ | {"OFFBEAT_DIRECTORY": str(ROOT)}
    command = ["docker", "compose", "-f", str(file), "--profile", "*", "config", "--quiet"]
    checked = subprocess.run(command, env=environ, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_an_image_with_a_space_is_refused(tree):
    with pytest.raises(UsageError, match="--image 'a b' is not the name of an image"):
        plan_compose(training(tree / "run.yaml"), tree, "a b")


def test_a_file_as_working_directory_is_told_as_one(tree):
    with pytest.raises(UsageError, match=r"run\.yaml is a file; give the folder"):
        plan_compose(training(tree / "run.yaml"), tree / "run.yaml")
