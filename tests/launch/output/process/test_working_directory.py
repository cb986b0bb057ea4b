"""What stands in the working directory, for the console script and for `python -m launch`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.output.process import working_directory

ROOT = Path(__file__).parents[4]
SCRIPT = "import sys\nfrom launch.__main__ import entry\nsys.exit(entry())\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def offbeat(directory: Path, *arguments: str, module: bool) -> subprocess.CompletedProcess[str]:
    """Run the command line in `directory`, as a console script does, or as `python -m launch`."""
    script = directory.parent / "bin" / "offbeat"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, *(["-m", "launch"] if module else [str(script)]), *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["launch", "actors", "learner", "ray", "torch", "yaml", "numpy", "json", "queue"])
def test_a_file_with_the_name_of_what_runs_import_is_named(here, name):
    (here / f"{name}.py").touch()
    said = working_directory.problem()
    assert said is not None
    assert said.startswith(f"{name}.py in {here} has the name of {name}, ")
    assert "rename it, or start from another directory" in said


def test_a_package_with_such_a_name_is_named_and_a_mere_directory_is_not(here):
    (here / "datasets").mkdir()
    (here / "datasets" / "train.jsonl").touch()
    assert working_directory.problem() is None
    (here / "datasets" / "__init__.py").touch()
    assert str(working_directory.problem()).startswith(f"datasets/ in {here}")


def test_files_of_a_user_s_own_are_left_alone(here):
    for name in ("my_judges.py", "tests.py", "test.py", "run.yaml", "torch.txt", "notes-json.py"):
        (here / name).touch()
    assert working_directory.problem() is None


def test_what_else_a_checkout_of_ours_has_is_no_package_that_runs_need(here):
    """A checkout on PYTHONPATH brings its examples and benchmarks along."""
    (here / "examples.py").touch()
    root = here.parent / "checkout"
    (root / "examples").mkdir(parents=True)
    (root / "examples" / "__init__.py").touch()
    assert working_directory.problem([str(root)], root=str(root)) is None
    assert "examples.py" in str(working_directory.problem([str(root)], root=str(here.parent / "site-packages")))


def test_a_checkout_holds_its_own_packages_and_another_one_is_named_with_the_way_to_use_it(here):
    for name in working_directory.OURS:
        (here / name).mkdir()
        (here / name / "__init__.py").touch()
    assert working_directory.problem(root=str(here)) is None
    assert "use `python -m launch`" in str(working_directory.problem())


def test_a_working_directory_that_was_removed_is_no_problem_of_names(here):
    here.rmdir()
    path: list[str] = []
    working_directory.join(path)
    assert (working_directory.problem(), path) == (None, [])


def test_the_working_directory_comes_last_and_once(here):
    path = ["/usr/lib"]
    working_directory.join(path)
    working_directory.join(path)
    assert path == ["/usr/lib", str(here)]
    path = ["", "/usr"]  # as `python` sets it for a session
    working_directory.join(path)
    assert path == ["", "/usr"]


@pytest.mark.parametrize("module", [False, True], ids=["console script", "python -m launch"])
def test_a_file_that_the_command_line_itself_would_import_is_named_before_that(here, module):
    """`python -m launch` finds the working directory first: the file would be imported, and fail in its own words."""
    (here / "yaml.py").write_text("raise SystemExit('the wrong file')")
    done = offbeat(here, "config", "embedded", module=module)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"offbeat: error: yaml.py in {here} has the name of yaml")


def test_the_console_script_finds_a_judge_in_the_working_directory(here):
    """It said that the module could not be imported, and told the user to put it where it was."""
    (here / "my_judges.py").write_text("def brevity(prompt, completions):\n    return [0.0] * len(completions)\n")
    settings = ["judging.judge={kind: function, path: 'my_judges:brevity'}", "evaluation.prompts=1"]
    done = offbeat(here, "doctor", "embedded", *settings, "--json", module=False)
    judges = [each for each in json.loads(done.stdout)["findings"] if each["name"] == "judge"]
    assert [(each["level"], "my_judges:brevity" in each["text"]) for each in judges] == [("ok", True)]
