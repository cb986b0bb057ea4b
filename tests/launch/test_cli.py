"""The command line through its real entry point: exit codes, errors on stderr, and a help that answers at once."""

import asyncio
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest

from actors.errors import RunError, UsageError
from launch.cli import main
from launch.settings.fields import settings
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.submit import ray_cluster, slurm

HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "pyarrow", "numpy", "tensorboard")


@pytest.fixture
def verb(monkeypatch):
    """Replaces what `train` and `demo` call by `run`; records the calls."""

    def install(run):
        calls = []

        def run_training(config, *, resume=False):
            calls.append((config, resume))
            return run(config)

        train = types.ModuleType("launch.train")
        train.run_training = run_training
        monkeypatch.setitem(sys.modules, "launch.train", train)
        return calls

    return install


def raising(error):
    def run(_config):
        raise error

    return run


def test_train_passes_the_configuration_and_resume_and_returns_the_run_s_code(verb, tmp_path):
    calls = verb(lambda config: 0)
    assert main(["train", "embedded", "updates=3", "--resume", "--output", f"{tmp_path}/it's"]) == 0
    assert main(["train", "embedded", "updates=3"]) == 0
    assert main(["train", "embedded", "--generators", "3"]) == 0
    assert calls == [
        (load_config("embedded", ["updates=3", f"output={tmp_path}/it's"]), True),
        (load_config("embedded", ["updates=3"]), False),
        (load_config("embedded", ["generators.count=3"]), False),
    ]


@pytest.mark.parametrize(
    ("given", "resume"),
    [
        (["--resume", "embedded", "updates=3"], True),
        (["embedded", "--resume", "updates=3"], True),
        (["embedded", "updates=3", "--resume=last-good"], "last-good"),
        (["embedded", "--resume", "last-good", "updates=3"], "last-good"),
        (
            ["--resume", "runs/a/checkpoints/update-0000010/", "embedded", "updates=3"],
            "runs/a/checkpoints/update-0000010/",
        ),
        (["embedded", "updates=3", "--resume", "update-0000010"], "update-0000010"),
    ],
)
def test_resume_takes_a_checkpoint_and_no_setting_or_configuration_that_follows_it(verb, given, resume):
    calls = verb(lambda config: 0)
    assert main(["train", *given]) == 0
    assert calls == [(load_config("embedded", ["updates=3"]), resume)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "embedded", "--output", "A", "--output=B"], "--output is given twice, as A and B"),
        (["train", "embedded", "generators.count=2", "--generators", "3"], "generators.count is given twice"),
        (["sft", "embedded", "output=a", "--output", "b"], "output is given twice, as b and a"),
        (["evaluate", "embedded", "model.path=x", "--model", "y"], "model.path is given twice, as y and x"),
        (["replay", "x", "--loss", "dpo", "--set", "learner.loss.kind=ipo"], "learner.loss.kind is given twice"),
        (["submit", "slurm", "embedded", "--nodes", "1", "--nodes", "2"], "--nodes is given twice, as 1 and 2"),
        (["train", "embedded", "--resume=update-1", "--resume=update-2"], "--resume is given twice"),
    ],
)
def test_an_option_that_is_given_twice_with_different_values_is_refused(arguments, told, capsys):
    """The last one counted, and the first was dropped without a word."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"offbeat: error: {told}")


def test_the_last_value_of_a_setting_counts_and_it_is_said(verb, capsys):
    """As a script's own settings stand before those that it passes on."""
    calls = verb(lambda config: 0)
    assert main(["train", "embedded", "updates=3", "seed=1", "updates=4"]) == 0
    assert [config.updates for config, _ in calls] == [4]
    assert capsys.readouterr().err == "note: updates is given as 3, then 4; the last counts\n"
    assert main(["submit", "ray", "embedded", "--env", "A=1", "--env", "A=2", "--dry-run"]) == 0
    assert "note: A is given as 1, then 2; the last counts\n" in capsys.readouterr().err


def test_what_is_given_twice_with_one_value_or_may_be_repeated_is_taken(verb, tmp_path):
    calls = verb(lambda config: 0)
    same = ["--output", str(tmp_path), f"--output={tmp_path}", f"output={tmp_path}", "updates=3", "updates=3"]
    assert main(["train", "embedded", *same, "--resume", "--resume"]) == 0
    assert [config.updates for config, _ in calls] == [3]
    section = ["learner.loss={kind: ipo}", "learner.loss.beta=0.3"]
    assert main(["config", "embedded", *section]) == 0


def test_a_secret_that_is_given_twice_is_not_shown(capsys):
    main(["train", "embedded", "judging.judge.api_key=sk-one", "judging.judge.api_key=sk-two"])
    assert "sk-one" not in capsys.readouterr().err


def test_the_run_s_own_code_is_the_command_s(verb):
    verb(lambda config: 130)
    assert main(["train", "embedded"]) == 130


@pytest.fixture
def demo(monkeypatch):
    """Replaces the demo by one that runs a single route; records what it was given."""
    calls = []

    def run_demo(overrides, output, train):
        calls.append((overrides, output))
        return train(load_config("embedded-nash-md", [*overrides, f"output={output}"]))

    module = types.ModuleType("launch.demo.demo")
    module.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "launch.demo.demo", module)
    return calls


def test_demo_passes_overrides_and_output_and_trains_its_routes_as_runs(verb, demo, tmp_path):
    runs = verb(lambda config: 130)
    assert main(["demo", "updates=3", "seed=1", "--output", str(tmp_path)]) == 130
    assert main(["demo"]) == 130
    assert demo == [(["updates=3", "seed=1"], tmp_path), ([], None)]
    assert runs[0] == (load_config("embedded-nash-md", ["updates=3", "seed=1", f"output={tmp_path}"]), False)


def test_a_route_of_the_demo_that_fails_ends_with_1_and_its_traceback_in_its_directory(verb, demo, tmp_path, capsys):
    verb(raising(RunError("no generator is left")))
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"offbeat: error: no generator is left\nfull traceback in {tmp_path}/error.txt\n"
    )
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_a_demo_of_the_other_task_ends_with_2_before_anything_starts(verb, tmp_path, capsys):
    runs = verb(lambda config: 0)
    assert main(["demo", "world.task=transitive", "--output", str(tmp_path / "demo")]) == 2
    assert "world.task is set to transitive" in capsys.readouterr().err
    assert runs == []
    assert not (tmp_path / "demo").exists()


def test_a_wrong_configuration_ends_with_2_before_anything_starts(verb, capsys):
    calls = verb(lambda config: 0)
    assert main(["train", "embedded", "updates=0", "replay.max_stalenes=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("offbeat: error: configuration embedded: 2 mistakes\n")
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["train", "embedded", "--resum"], "No such option: --resum"),
        (["tran"], "No such command 'tran'"),
        (["submit"], "Missing command"),
        (["submit", "slurm", "embedded", "--nodes", "many"], "Invalid value for '--nodes'"),
        (["submit", "ray", "embedded", "--env", "X"], "--env X: given 'X'; allowed: NAME=VALUE"),
        (["submit", "ray", "embedded", "updates=0"], "updates: given 0; allowed: integer >= 1"),
    ],
)
def test_a_wrong_command_ends_with_2(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("offbeat: error: ")
    assert message in err


def test_an_error_in_the_request_found_by_the_run_ends_with_2_and_leaves_no_traceback(verb, tmp_path, capsys):
    verb(raising(UsageError("prompts.source /p holds no rows; give another")))
    assert main(["train", "embedded", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "offbeat: error: prompts.source /p holds no rows; give another\n"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_ends_with_1_one_message_and_its_traceback_in_the_run_s_directory(verb, tmp_path, capsys):
    verb(raising(RunError("no generator is left; go on with --resume")))
    assert main(["train", "embedded", "--output", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err == f"offbeat: error: no generator is left; go on with --resume\nfull traceback in {tmp_path}/error.txt\n"
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_an_unexpected_error_is_one_line_with_its_type(verb, tmp_path, capsys):
    verb(raising(KeyError("lost\nsecond line")))
    assert main(["train", "embedded", "--output", str(tmp_path / "never-made")]) == 1
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("offbeat: error: KeyError: ")
    assert "--debug" in hint


def test_debug_shows_the_traceback(verb, capsys):
    verb(raising(ZeroDivisionError("oops")))
    assert main(["--debug", "train", "embedded", "--output", "/nonexistent/run"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("offbeat: error: ZeroDivisionError: oops\n")


def test_an_error_that_came_from_a_remote_task_is_told_in_its_own_words(verb, capsys):
    """Ray wraps it, with both tracebacks as the message and the error itself as `cause`."""
    wrapped = RuntimeError("ray::Learner.update() (pid=7)\n  File ...\nRunError: out of memory")
    wrapped.cause = RunError("out of memory; lower learner.micro_batch_tokens")
    verb(raising(wrapped))
    assert main(["train", "embedded", "--output", "/nonexistent/run"]) == 1
    assert capsys.readouterr().err == "offbeat: error: out of memory; lower learner.micro_batch_tokens\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_ctrl_c_ends_with_130(verb, error, capsys):
    verb(raising(error))
    assert main(["train", "embedded", "--output", "/nonexistent/run"]) == 130
    assert capsys.readouterr().err == "offbeat: interrupted\n"


def test_config_prints_yaml_that_loads_to_the_same_configuration(tmp_path, capsys):
    assert main(["config", "embedded", "updates=3"]) == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "run.yaml") == load_config("embedded", ["updates=3"])


def test_submit_hands_over_the_preset_and_every_option(monkeypatch):
    calls = []
    monkeypatch.setattr(ray_cluster, "submit_ray", lambda *job, dry_run: calls.append((*job, dry_run)) or 0)
    monkeypatch.setattr(ray_cluster, "plan_ray_job", lambda *given: given)
    monkeypatch.setattr(slurm, "submit_slurm", lambda training, plan, root, **_: calls.append((training, plan)) or 3)
    monkeypatch.setattr(slurm, "plan_slurm", lambda training, options, *_: options)
    options = ["--address", "http://h:1", "--env", "A=b=c", "--working-dir", "/tmp", "--resume", "--dry-run"]
    assert main(["submit", "ray", "embedded", "updates=3", *options]) == 0
    options = ["--nodes", "2", "--time", "60", "--partition", "gpu", "--requeue", "--notice", "300"]
    assert main(["submit", "slurm", "embedded", *options, "--container", "i", "--container-mounts", "/a:/b"]) == 3
    (on_ray, plan, address, dry_run), (on_slurm, asked) = calls
    assert on_ray.config == on_slurm.config
    assert (on_ray.preset, on_ray.config.name) == ("embedded", "embedded.yaml")
    assert on_ray.config.is_file()
    assert (on_ray.overrides, on_ray.resume, on_slurm.resume) == (("updates=3",), True, False)
    assert (plan, address, dry_run) == ((on_ray, Path("/tmp"), {"A": "b=c"}), "http://h:1", True)
    assert (asked.nodes, asked.time, asked.partition, asked.account) == (2, "60", "gpu", None)
    assert (asked.requeue, asked.notice, asked.container, asked.container_mounts) == (True, 300, "i", ("/a:/b",))


def test_submit_options_fit_what_launch_submit_takes(capsys):
    """The real function, in its dry run: nothing is contacted."""
    assert main(["submit", "slurm", "embedded", "--nodes", "2", "--dry-run"]) == 0
    assert "#SBATCH --nodes=2" in capsys.readouterr().out


def test_train_help_shows_every_setting_with_its_bounds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["train", "--help"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert not {setting.key for setting in settings(RunConfig)} - {row[0] for row in rows}
    (published,) = [row for row in rows if row[0] == "replay.updates_per_publish"]
    assert published[1:6] == ["integer", ">=", "1", "1", "optimizer"]


@pytest.mark.parametrize("group", [[], ["submit"]])
def test_no_verb_s_summary_is_cut_off_on_a_terminal_of_80_columns(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group, "--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert commands
    assert [line for line in commands if not line.endswith(".") or line.endswith("...")] == []


def test_help_answers_at_once_and_imports_nothing_heavy():
    """Compare processor time with the import of pydantic, in turns, because a slow machine slows both."""
    script = (
        "import sys\nfrom launch.cli import main\ncode = main(['train', '--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    settings = "from pydantic import BaseModel"
    rounds = [(_processor_seconds(settings), _processor_seconds(script, "[]\n")) for _ in range(3)]
    imported, helped = (min(each) for each in zip(*rounds, strict=True))
    assert helped < 12.0 * imported


def _processor_seconds(script: str, stderr: str = "") -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_python_m_launch_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("offbeat: error: configuration nope: 1 mistake\n")


def test_no_verb_shows_the_verbs(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name in ("train", "demo", "config", "submit", "--version"):
        assert name in out


def test_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("offbeat")
