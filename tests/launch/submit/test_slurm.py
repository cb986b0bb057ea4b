"""Runs as Slurm jobs: the batch script as text, and for real on this machine with stand-ins for Slurm's commands."""

from __future__ import annotations

import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import INTERRUPTED, RunError, UsageError
from launch.cli import main
from launch.submit import slurm
from launch.submit.slurm import SlurmOptions, SlurmRun, plan_slurm, seconds_of, submit_slurm
from tests.house import ROOT
from tests.launch.submit.helpers import executable, training


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "two words.yaml"
    path.write_text("model: {path: world}\noutput: /shared/run\n")
    return path


COMMAND = ["python", "-m", "launch", "train", "/c/two words.yaml"]


def options(**changes: Any) -> SlurmOptions:
    return SlurmOptions(**{"nodes": 2, "gpus_per_node": 8, "time": "1-02:00:00"} | changes)


RUN = SlurmRun(COMMAND, [*COMMAND, "--resume"], "runs/run", Path("/w"), "/env/bin/python")


def rendered(asked: SlurmOptions, **changes: Any) -> str:
    return slurm.render_sbatch(asked, replace(RUN, **changes))


def test_the_batch_script_asks_for_what_was_given():
    script = rendered(options(partition="gpu", account="team_a"))
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    wanted = ["--nodes=2", "--time=1-02:00:00", "--gpus-per-node=8", "--partition=gpu", "--account=team_a"]
    assert directives[-6:] == [*wanted, "--signal=B:TERM@120"]
    assert script.splitlines().index("#SBATCH --account=team_a") < script.splitlines().index("set -uo pipefail")


def test_a_job_without_gpus_asks_for_none_and_uses_the_default_partition():
    script = rendered(options(gpus_per_node=0))
    assert "--gpus" not in script
    assert "--partition" not in script
    assert "--account" not in script


def test_the_batch_script_is_bash_and_keeps_odd_words_whole(tmp_path):
    odd = ["/c/$(touch owned) 'x'.yaml", 'a="b;c"', "x=@BIN@"]
    script = rendered(options(), first=["python", *odd], working_dir=tmp_path / "it's here")
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    [line] = [line for line in script.splitlines() if "python '/c/" in line]
    assert shlex.split(line) == ["${inside[@]}", "python", *odd, "&"]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"nodes": 0}, "--nodes 0: "),
        ({"gpus_per_node": -1}, "--gpus-per-node -1: "),
        ({"time": "soon"}, "not a Slurm time limit"),
        ({"time": "1:2"}, "not a Slurm time limit"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "not a Slurm name"),
        ({"account": "--test-only"}, "not a Slurm name"),
        ({"exclude": "n1 n2"}, "not a Slurm name"),
        ({"notice": 10}, "--notice 10: Slurm takes 60 to 65535"),
        ({"notice": 120, "time": "2"}, "--notice 120 s before the end leaves nothing of --time 2, which is 120 s"),
        ({"notice": 900, "time": "0-00:15"}, "leaves nothing of --time 0-00:15, which is 900 s; raise --time"),
        ({"container": "a,b"}, "not an image"),
        ({"container": "img", "container_mounts": ("data",)}, "--container-mounts 'data': write /FOLDER"),
        ({"container_mounts": ("/data",)}, "name its image with --container"),
    ],
)
def test_a_request_that_slurm_would_misread_is_refused(wrong, match):
    with pytest.raises(UsageError, match=match):
        options(**wrong)


def test_a_dry_run_prints_the_script_and_queues_nothing(config, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    run = training(config, ("updates=5",))
    script = plan_slurm(run, SlurmOptions(1, "10", 0), Path("/w"), "/env/bin/python")
    assert submit_slurm(run, script, Path("/w"), dry_run=True) == 0
    printed = capsys.readouterr()
    assert f"python -m launch train '{config}' updates=5 &" in printed.out
    assert printed.err == ""
    with pytest.raises(RunError, match="sbatch is not on PATH"):
        submit_slurm(run, script, Path("/w"), dry_run=False)


def test_a_path_that_only_this_machine_has_is_told(config, capsys, monkeypatch):
    monkeypatch.setattr("launch.submit.paths.OF_ONE_MACHINE", ("/shared",))
    assert main(["submit", "slurm", str(config), "--dry-run"]) == 0
    assert capsys.readouterr().err.endswith(
        "GPUs\nwarning: output: /shared/run is on this machine's own disk or memory, and other nodes do not see it; "
        "put it on shared storage\n"
    )


def test_a_job_that_may_be_queued_again_is_told_by_another_signal_than_scancel_s_and_keeps_its_log():
    script = rendered(options(requeue=True, notice=600, exclude="n[3-4],n9"))
    lines = script.splitlines()
    for wanted in ("--signal=B:USR1@600", "--requeue", "--open-mode=append", "--exclude=n[3-4],n9"):
        assert f"#SBATCH {wanted}" in lines
    assert "requeue=yes" in lines
    assert "requeue=" in rendered(options()).splitlines()


def test_a_container_gets_the_directory_the_config_and_what_else_was_asked_for(config, tmp_path):
    (tmp_path / "w").mkdir()
    asked = options(container="registry#offbeat:1", container_mounts=("/scratch", "/a:/b:ro"))
    with pytest.raises(UsageError, match=r"two words\.yaml cannot be mounted by pyxis"):
        plan_slurm(training(config), asked, tmp_path / "w", "/env/bin/python")
    config = config.rename(tmp_path / "run.yaml")
    script = plan_slurm(training(config), asked, tmp_path / "w", "/env/bin/python")
    [line] = [line for line in script.splitlines() if line.startswith("container=(")]
    image, mounted, *rest = shlex.split(line.removeprefix("container=(").removesuffix(")"))
    assert image == "--container-image=registry#offbeat:1"
    assert rest == [f"--container-workdir={tmp_path / 'w'}", "--no-container-entrypoint"]
    assert mounted.removeprefix("--container-mounts=").split(",") == [
        "/tmp:/tmp",
        f"{tmp_path / 'w'}:{tmp_path / 'w'}:rw",
        "/shared/run:/shared/run:rw",
        f"{config}:{config}:ro",
        "/scratch:/scratch",
        "/a:/b:ro",
    ]
    assert "bin=" in script.splitlines()


def test_the_exit_code_of_the_slurm_job_is_passed_on(tmp_path, monkeypatch, capsys):
    executable(
        tmp_path / "sbatch", f'echo "$*" > {tmp_path}/arguments; cat > {tmp_path}/script; echo "42;cluster"; exit 7'
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert slurm.run_sbatch("the script") == 7
    assert (tmp_path / "script").read_text() == "the script"
    assert (tmp_path / "arguments").read_text() == "--wait --parsable\n"
    assert "Slurm job 42 ended with exit code 7" in capsys.readouterr().out


def test_a_job_that_slurm_does_not_queue_is_told_in_our_words_with_its_own_as_the_cause(tmp_path, monkeypatch):
    executable(tmp_path / "sbatch", 'echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RunError, match=r"queued no job \(exit code 1\); correct --partition.*said: .*specified: gpu$"):
        slurm.run_sbatch("the script" * 100_000)


def test_ctrl_c_cancels_the_slurm_job(tmp_path, monkeypatch, capsys):
    executable(
        tmp_path / "sbatch", f"cat > /dev/null; echo 42; while [ ! -e {tmp_path}/cancelled ]; do sleep 0.05; done"
    )
    executable(tmp_path / "scancel", f'echo "$1" > {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    assert slurm.run_sbatch("the script") == INTERRUPTED
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
    asked = options(nodes=2, gpus_per_node=0)
    run = SlurmRun(["python", "job.py"], [], "out", tmp_path, sys.executable, shared_memory_mib=1)
    script = slurm.render_sbatch(asked, run)
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


# The script with stand-ins for Slurm, Ray and the run: no Ray is started.


@pytest.fixture
def slurm_stand_ins(tmp_path: Path) -> Path:
    """Programs on PATH: srun runs here and notes what was asked, ray waits, python answers at once."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    log = tmp_path / "calls"
    executable(
        bin_dir / "scontrol",
        f'[ "$1" = requeue ] && {{ echo "requeue $2" >> {log}; exit 0; }}\necho localhost',
    )
    executable(
        bin_dir / "srun",
        f'echo "srun $*" >> {log}\nwhile [ "${{1:0:2}}" = "--" ]; do shift; done\nexec "$@"',
    )
    executable(bin_dir / "ray", "exec sleep 60")
    executable(bin_dir / "nvidia-smi", 'echo "GPU 0: a"; echo "GPU 1: b"')
    executable(bin_dir / "python", "exit 0")
    return bin_dir


def batch(script: str, bin_dir: Path, **variables: str) -> subprocess.Popen[str]:
    environ = {"PATH": f"{bin_dir}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    environ |= {"SLURM_CPUS_ON_NODE": "1", **variables}
    return subprocess.Popen(
        ["bash", "-c", script], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def script_of(bin_dir: Path, **changes: Any) -> str:
    """Its run is a program `first`, resumed by `again`, in `tmp_path`."""
    asked = options(nodes=1, gpus_per_node=changes.pop("gpus", 0), requeue=changes.pop("requeue", True))
    asked = replace(asked, container=changes.pop("container", None))
    run = SlurmRun(["first"], ["again"], "out", bin_dir.parent, str(bin_dir / "python"), shared_memory_mib=1)
    return slurm.render_sbatch(asked, replace(run, **changes))


@pytest.mark.parametrize("ended", ["ray", "python"])
def test_a_head_that_does_not_start_ends_the_job_at_once(slurm_stand_ins, ended):
    executable(slurm_stand_ins / ended, "exit 1")
    if ended == "ray":
        executable(slurm_stand_ins / "python", "exec sleep 100")
    process = batch(script_of(slurm_stand_ins), slurm_stand_ins)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "the Ray head on localhost did not start; its log is under /tmp/ray-7" in output


SAVES = "trap 'mkdir -p out/checkpoints/update-0000002; exit 130' TERM\ntouch out/started\nwhile :; do sleep 0.05; done"


def end_at_the_limit(process: subprocess.Popen[str], started: Path, number: signal.Signals = signal.SIGUSR1) -> str:
    for _ in range(400):
        if started.exists():
            break
        time.sleep(0.05)
    process.send_signal(number)
    return process.communicate(timeout=30)[0]


def test_at_the_time_limit_the_run_saves_and_the_job_is_queued_again(slurm_stand_ins, tmp_path):
    executable(slurm_stand_ins / "first", SAVES)
    process = batch(script_of(slurm_stand_ins), slurm_stand_ins)
    output = end_at_the_limit(process, tmp_path / "out" / "started")
    assert process.returncode == 130, output
    assert "Slurm queued the job again, and it goes on from update-0000002" in output
    assert "requeue 7" in (tmp_path / "calls").read_text()


def test_the_job_that_was_queued_again_resumes_and_ends_with_the_run_s_code(slurm_stand_ins, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").touch()
    executable(slurm_stand_ins / "first", "exit 9")
    executable(slurm_stand_ins / "again", "exit 0")
    process = batch(script_of(slurm_stand_ins), slurm_stand_ins, SLURM_RESTART_COUNT="1")
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_a_run_that_saves_nothing_in_the_whole_limit_is_not_queued_for_ever(slurm_stand_ins, tmp_path):
    executable(slurm_stand_ins / "first", SAVES.replace("mkdir -p out/checkpoints/update-0000002; ", ""))
    process = batch(script_of(slurm_stand_ins), slurm_stand_ins)
    output = end_at_the_limit(process, tmp_path / "out" / "started")
    assert process.returncode == 130, output
    assert "no new checkpoint in the whole time limit, so the job is not queued again" in output
    assert "requeue" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(("number", "requeue"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_neither_a_cancelled_job_nor_one_without_requeue_is_queued_again(slurm_stand_ins, tmp_path, number, requeue):
    executable(slurm_stand_ins / "first", SAVES)
    process = batch(script_of(slurm_stand_ins, requeue=requeue), slurm_stand_ins)
    output = end_at_the_limit(process, tmp_path / "out" / "started", number)
    assert process.returncode == 130, output
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_a_run_that_fails_is_not_queued_again(slurm_stand_ins, tmp_path):
    executable(slurm_stand_ins / "first", "exit 1")
    process = batch(script_of(slurm_stand_ins), slurm_stand_ins)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_a_node_that_is_not_fit_is_named_before_ray_starts(slurm_stand_ins, tmp_path):
    (tmp_path / "out").write_text("a file, where the run's directory should be")
    executable(slurm_stand_ins / "hostname", "echo node-17")
    executable(slurm_stand_ins / "ray", f"touch {tmp_path}/ray-started")
    process = batch(script_of(slurm_stand_ins, gpus=8, shared_memory_mib=10**9), slurm_stand_ins)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert "offbeat: node node-17: 2 of 8 GPUs answer nvidia-smi" in output
    assert "MiB free in /dev/shm, and the run needs 1000000000" in output
    assert "offbeat: node node-17: cannot write to out" in output
    assert "leave them out with --exclude" in output.splitlines()[-1]
    assert not (tmp_path / "ray-started").exists()


def test_in_a_container_head_and_run_start_behind_srun_with_its_image(slurm_stand_ins, tmp_path):
    executable(slurm_stand_ins / "first", "exit 0")
    process = batch(script_of(slurm_stand_ins, container="img"), slurm_stand_ins)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 0, output
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--container-image" not in calls[0], "the health check is of the node itself"
    contained = [call for call in calls if "--container-image=img" in call]
    assert [
        call.rpartition("--no-container-entrypoint ")[2].split()[0] for call in contained if "wait_for" not in call
    ] == [
        "env",
        "first",
    ]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on PATH")
@pytest.mark.parametrize("container", [None, "img"])
def test_shellcheck_finds_nothing(container):
    script = rendered(options(container=container, requeue=True))
    checked = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("24:00:00", 86_400), ("1-2", 93_600), ("2-00:30", 174_600), ("1-00:00:05", 86_405)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time, seconds):
    assert seconds_of(time) == seconds
