"""Runs as Ray jobs: what would be submitted, as text. The real thing is in tests/launch/cluster/test_ray_job.py."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from actors.errors import UsageError
from launch.cli import main
from launch.cluster.ray_job import RayJob
from launch.submit.ray_cluster import plan_ray_job, submit_ray, unseen
from tests.house import ROOT
from tests.launch.submit.helpers import training

WAYS = ("ray", "slurm", "compose", "kuberay")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory with a configuration file whose name needs quoting."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "two words.yaml").write_text("model: {path: world}\noutput: /shared/run\n")
    return tmp_path


@pytest.fixture
def config(tree: Path) -> Path:
    return tree / "configs" / "two words.yaml"


def test_a_dry_run_prints_the_ray_command_with_every_word_quoted(tree, config, capsys):
    run = training(config, ("model.path=a b", "x='$(id)'"))
    code = submit_ray(run, plan_ray_job(run, tree), "http://h:8265/", dry_run=True)
    words = shlex.split(capsys.readouterr().out)
    assert code == 0
    assert words[:7] == ["ray", "job", "submit", "--address", "http://h:8265", "--working-dir", str(tree)]
    after = words[words.index("--") + 1 :]
    assert after == ["python", "-m", "launch", "train", "configs/two words.yaml", "model.path=a b", "x='$(id)'"]


def test_the_upload_leaves_out_environments_runs_and_history(tree, config):
    job = plan_ray_job(training(config), tree)
    assert {"/.venv", "/runs", "/.git"} <= set(job.runtime_env()["excludes"])
    assert "pip" not in job.runtime_env()


def test_secret_values_are_not_printed(tree, config, capsys):
    secret = {"HF_TOKEN": "hf_secret", "HF_HOME": "/data"}
    submit_ray(training(config), plan_ray_job(training(config), tree, secret), "http://h:8265", dry_run=True)
    printed = capsys.readouterr().out
    assert "hf_secret" not in printed
    assert '"HF_HOME": "/data"' in printed


def test_a_config_outside_the_working_directory_is_refused(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "c.yaml"
    outside.write_text("model: {path: world}")
    with pytest.raises(UsageError, match="outside the working directory"):
        plan_ray_job(training(outside), tree)


def test_a_config_in_a_folder_that_is_not_uploaded_is_refused(tree):
    (tree / "runs").mkdir()
    (tree / "runs" / "c.yaml").write_text("model: {path: world}")
    with pytest.raises(UsageError, match="runs/, which is not uploaded"):
        plan_ray_job(training(tree / "runs" / "c.yaml"), tree)


def test_the_job_of_a_run_starts_the_uploaded_copy(tree, config):
    job = plan_ray_job(training(config), tree)
    assert job == RayJob("python -m launch train 'configs/two words.yaml'", tree, {})


@pytest.mark.parametrize("way", WAYS)
def test_a_preset_is_submitted_by_its_name_from_any_directory(tmp_path, way, capsys, monkeypatch):
    """Its file was once looked for in the upload, and refused with an internal path."""
    monkeypatch.chdir(tmp_path)
    assert main(["submit", way, "embedded", "updates=3", "--dry-run"]) == 0
    assert "train embedded updates=3" in capsys.readouterr().out


def test_what_git_ignores_is_told(tree, config, capsys):
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    (tree / ".gitignore").write_text("*.jsonl\n")
    (tree / "prompts.jsonl").write_text("{}\n")
    config.write_text("model: {path: world}\noutput: /shared/run\nprompts: {source: prompts.jsonl}\n")
    run = training(config)
    assert unseen(run, plan_ray_job(run, tree)) == [
        "prompts.source: prompts.jsonl is named by .gitignore, and Ray uploads nothing that it names"
    ]
    submit_ray(run, plan_ray_job(run, tree), "http://h:1", dry_run=True)
    assert capsys.readouterr().err.startswith("warning: prompts.source: prompts.jsonl")


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_config_is_refused_by_every_way(tmp_path, way, capsys):
    assert main(["submit", way, str(tmp_path / "no.yaml"), "--dry-run"]) == 2
    assert "no.yaml: 1 mistake\n  no such file" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["updates", "=3", "--updates=3", "a b=3", ""])
@pytest.mark.parametrize("way", WAYS)
def test_an_override_that_is_not_key_value_is_refused_by_every_way(config, way, override, capsys):
    assert main(["submit", way, str(config), override, "--dry-run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    known = ("not an override; write KEY=VALUE", "No such option", "a b: no such setting")
    assert any(text in output.err for text in known)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_can_resume_a_run(tree, config, way, capsys, monkeypatch):
    monkeypatch.chdir(tree)
    assert main(["submit", way, str(config), "updates=5", "--resume", "--dry-run"]) == 0
    assert "updates=5 --resume" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["command", "ray_cluster", "slurm", "compose", "kuberay", "paths", "needs"])
def test_importing_a_launcher_imports_nothing_heavy(module):
    program = f"import sys, launch.submit.{module}; sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'vllm')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_cluster_launcher_s_example_fits_ray_s_own_schema():
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    example = yaml.safe_load((ROOT / "examples" / "cluster-launcher.yaml").read_text())
    jsonschema.validate(example, schema)
    assert example["head_node_type"] in example["available_node_types"]
    starts = " ".join(example["head_start_ray_commands"] + example["worker_start_ray_commands"])
    assert starts.count("RAY_AUTH_MODE=token") == 2
    workers = [kind for name, kind in example["available_node_types"].items() if name != example["head_node_type"]]
    assert all(kind["min_workers"] <= kind["max_workers"] <= example["max_workers"] for kind in workers)
