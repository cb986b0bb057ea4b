"""Submission: what would be started, as text, and the batch script for real on this machine."""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from launch.cli import main
from launch.cluster import submit
from launch.cluster.submit import RayJob, SlurmOptions, Training, submit_compose, submit_ray, submit_slurm

ROOT = Path(submit.__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory with a configuration file whose name needs quoting."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "two words.yaml").write_text("model: {path: world}\n")
    return tmp_path


# Ray.


def test_a_dry_run_prints_the_ray_command_with_every_word_quoted(tree, capsys):
    config = tree / "configs" / "two words.yaml"
    training = Training(config, ("model.path=a b", "x='$(id)'"))
    code = submit_ray(submit.plan_ray_job(training, tree), "http://h:8265/", dry_run=True)
    words = shlex.split(capsys.readouterr().out)
    assert code == 0
    assert words[:7] == ["ray", "job", "submit", "--address", "http://h:8265", "--working-dir", str(tree)]
    after = words[words.index("--") + 1 :]
    assert after == ["python", "-m", "launch", "train", "configs/two words.yaml", "model.path=a b", "x='$(id)'"]


def test_the_upload_leaves_out_environments_runs_and_history(tree):
    job = submit.plan_ray_job(Training(tree / "configs" / "two words.yaml"), tree)
    assert {"/.venv", "/runs", "/.git"} <= set(job.runtime_env()["excludes"])
    assert "pip" not in job.runtime_env()


def test_secret_values_are_not_printed(tree, capsys):
    config = tree / "configs" / "two words.yaml"
    secret = {"HF_TOKEN": "hf_secret", "HF_HOME": "/data"}
    submit_ray(submit.plan_ray_job(Training(config), tree, secret), "http://h:8265", dry_run=True)
    printed = capsys.readouterr().out
    assert "hf_secret" not in printed
    assert '"HF_HOME": "/data"' in printed


def test_a_config_outside_the_working_directory_is_refused(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "c.yaml"
    outside.write_text("")
    with pytest.raises(UsageError, match="outside the working directory"):
        submit.plan_ray_job(Training(outside), tree)


def test_a_config_in_a_folder_that_is_not_uploaded_is_refused(tree):
    (tree / "runs").mkdir()
    (tree / "runs" / "c.yaml").write_text("")
    with pytest.raises(UsageError, match="runs/, which is not uploaded"):
        submit.plan_ray_job(Training(tree / "runs" / "c.yaml"), tree)


WAYS = ("ray", "slurm", "compose")


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_config_is_refused_by_every_way(tmp_path, way, capsys):
    assert main(["submit", way, str(tmp_path / "no.yaml"), "--dry-run"]) == 2
    assert re.search(r"no\.yaml: 1 mistake\n  no such file", capsys.readouterr().err)


@pytest.mark.parametrize("override", ["updates", "=3", "--updates=3", "a b=3", ""])
@pytest.mark.parametrize("way", WAYS)
def test_an_override_that_is_not_key_value_is_refused_by_every_way(tree, way, override, capsys):
    config = str(tree / "configs" / "two words.yaml")
    assert main(["submit", way, config, override, "--dry-run"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.search("not an override; write KEY=VALUE|No such option|a b: no such setting", output.err)


def test_every_way_can_resume_a_run(tree, capsys):
    training = Training(tree / "configs" / "two words.yaml", ("updates=5",), resume=True)
    submit_ray(submit.plan_ray_job(training, tree), "http://h:1", dry_run=True)
    submit_slurm(training, SlurmOptions(1, "10", 0), dry_run=True)
    submit_compose(training, dry_run=True)
    assert capsys.readouterr().out.count("updates=5 --resume") == 3


# Slurm.


COMMAND = ["python", "-m", "launch", "train", "/c/two words.yaml"]


def options(**changes: Any) -> SlurmOptions:
    return SlurmOptions(**{"nodes": 2, "gpus_per_node": 8, "time": "1-02:00:00"} | changes)


def rendered(slurm: SlurmOptions, command: list[str] = COMMAND, working_dir: Path = Path("/w")) -> str:
    return submit.render_sbatch(slurm, command, working_dir, "/env/bin/python")


def test_the_batch_script_asks_for_what_was_given():
    script = rendered(options(partition="gpu", account="team_a"))
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    wanted = ["--nodes=2", "--time=1-02:00:00", "--gpus-per-node=8", "--partition=gpu", "--account=team_a"]
    assert directives[-5:] == wanted
    assert script.splitlines().index("#SBATCH --account=team_a") < script.splitlines().index("set -uo pipefail")


def test_a_job_without_gpus_asks_for_none_and_uses_the_default_partition():
    script = rendered(options(gpus_per_node=0))
    assert "--gpus" not in script
    assert "--partition" not in script
    assert "--account" not in script


def test_the_batch_script_is_bash_and_keeps_odd_words_whole(tmp_path):
    odd = ["/c/$(touch owned) 'x'.yaml", 'a="b;c"', "x=@BIN@"]
    script = rendered(options(), ["python", *odd], tmp_path / "it's here")
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    line = next(line for line in script.splitlines() if line.startswith("python '/c/"))
    assert shlex.split(line) == ["python", *odd, "&"]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"gpus_per_node": -1}, "gpus_per_node=-1"),
        ({"time": "soon"}, "not a Slurm time limit"),
        ({"time": "1:2"}, "not a Slurm time limit"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "not a Slurm name"),
        ({"account": "--test-only"}, "not a Slurm name"),
    ],
)
def test_a_request_that_slurm_would_misread_is_refused(wrong, match):
    with pytest.raises(UsageError, match=match):
        options(**wrong)


def test_a_dry_run_prints_the_script_and_queues_nothing(tree, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    config = tree / "configs" / "two words.yaml"
    assert submit_slurm(Training(config, ("updates=5",)), SlurmOptions(1, "10", 0), dry_run=True) == 0
    assert f"python -m launch train '{config}' updates=5 &" in capsys.readouterr().out
    with pytest.raises(RunError, match="sbatch is not on PATH"):
        submit_slurm(Training(config), SlurmOptions(1, "10", 0), dry_run=False)


def executable(path: Path, text: str) -> Path:
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


def test_the_exit_code_of_the_slurm_job_is_passed_on(tmp_path, monkeypatch, capsys):
    executable(
        tmp_path / "sbatch", f'echo "$*" > {tmp_path}/arguments; cat > {tmp_path}/script; echo "42;cluster"; exit 7'
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert submit.run_sbatch("the script") == 7
    assert (tmp_path / "script").read_text() == "the script"
    assert (tmp_path / "arguments").read_text() == "--wait --parsable\n"
    assert "Slurm job 42 ended with exit code 7" in capsys.readouterr().out


def test_ctrl_c_cancels_the_slurm_job(tmp_path, monkeypatch, capsys):
    executable(
        tmp_path / "sbatch", f"cat > /dev/null; echo 42; while [ ! -e {tmp_path}/cancelled ]; do sleep 0.05; done"
    )
    executable(tmp_path / "scancel", f'echo "$1" > {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    assert submit.run_sbatch("the script") == submit.INTERRUPTED
    assert (tmp_path / "cancelled").read_text() == "42\n"
    assert "cancelling Slurm job 42" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_the_batch_script_joins_its_nodes_runs_the_command_and_ends_everything(tmp_path, short_dir, marked):
    """The script for two nodes, with stand-ins for Slurm's commands that run the second node on this machine too."""
    executable(short_dir / "scontrol", "echo 127.0.0.1; echo 127.0.0.1")
    executable(short_dir / "srun", 'while [ "${1:0:2}" = "--" ]; do shift; done; exec "$@"')
    (tmp_path / "job.py").write_text(
        "import os, ray, sys\n"
        "ray.init(address=os.environ['RAY_ADDRESS'], logging_level='ERROR')\n"
        "print('alive nodes:', sum(n['Alive'] for n in ray.nodes()), ray.cluster_resources()['CPU'])\nsys.exit(3)\n"
    )
    script = submit.render_sbatch(options(nodes=2), ["python", "job.py"], tmp_path, sys.executable)
    number = str(secrets.randbelow(10_000_000))  # Slurm's own; the script takes its port and its folder in /tmp from it
    environ = marked.environ | {"SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_ON_NODE": "1"}
    environ |= {"PATH": f"{short_dir}:{environ['PATH']}", "PYTHONPATH": str(ROOT), "OFFBEAT_READY_SECONDS": "60"}
    with (short_dir / "log").open("w+") as log:
        ended = subprocess.run(
            ["bash", "-s"], input=script, env=environ, text=True, stdout=log, stderr=log, timeout=200
        )
        left = marked.running()
        log.seek(0)
        output = log.read()
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)
    assert ended.returncode == 3, output
    assert "alive nodes: 2 2.0" in output
    assert left == []


# Docker compose.


def test_a_dry_run_prints_the_compose_command(tree, capsys):
    config = tree / "configs" / "two words.yaml"
    assert submit_compose(Training(config, ("updates=5",)), dry_run=True) == 0
    words = shlex.split(capsys.readouterr().out)
    compose, volume = ROOT / "docker" / "compose.yaml", f"{config}:/configs/two words.yaml:ro"
    assert words[:8] == ["docker", "compose", "-f", str(compose), "run", "--rm", "--volume", volume]
    assert words[8:] == ["offbeat", "train", "/configs/two words.yaml", "updates=5"]


def test_a_path_that_docker_would_split_is_refused(tmp_path):
    config = tmp_path / "a:b.yaml"
    config.write_text("")
    with pytest.raises(UsageError, match="colon"):
        submit_compose(Training(config), dry_run=True)


def test_importing_the_module_imports_nothing_heavy():
    program = "import sys, launch.cluster.submit; sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'vllm')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_job_of_a_run_starts_the_uploaded_copy(tree):
    job = submit.plan_ray_job(Training(tree / "configs" / "two words.yaml"), tree)
    assert job == RayJob("python -m launch train 'configs/two words.yaml'", tree, {})
