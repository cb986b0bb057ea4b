"""The commands of README and of the tutorials, run in order in a directory that is no checkout.

README is run as it stands, but for what `SKIPPED` leaves out and `SHORTER` makes short. Of a tutorial, files are
written, scripts and `init` run, and the configurations of longer commands checked.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.house import ROOT
from tests.integration.runs import leaving_nothing
from tests.pages import Step, Written, steps
from tests.processes import Marked

MODEL = ROOT / "models" / "smollm2-135m-instruct"
TUTORIALS = sorted((ROOT / "docs").glob("tutorial_*.md"))
SKIPPED = {
    r"make \w+": "works on the checkout; continuous integration runs `make test`, and with it the set-up",
    r"git clone .*|cd \S+|\. \S+/activate": "enters a checkout and its environment, in which this test already is",
    r"pip install .*|python\S* -m (venv|pip) .*": "installs",
    r"offbeat submit .*|ray .*|docker .*|vllm .*": "needs a cluster, a container or a server",
    r"offbeat demo": "four minutes; `tests/launch/demo` runs it",
    r"tensorboard .*": "serves until it is stopped",
}
"""Commands that are not run, by pattern, and why."""
SHORTER = {
    "train": "updates=2 replay.prompts_per_update=2 evaluation.prompts=2 sampling.max_new_tokens=16 "
    "cluster.address=local cluster.num_cpus=2 cluster.object_store_mib=128",
}
"""Settings that make a run of this verb short."""
LONG = ("train", "sft", "dpo", "preference")
OF_A_RUN = ("report", "samples", "compare", "evaluate", "chat", "verify", "replay", "plan")
"""Verbs that need a finished run; `tests/test_texts.py` parses their arguments."""

needs_model = pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="`make pretrained` brings the model")


def parts(command: str) -> list[str]:
    """The commands of one line, which `&&` joins."""
    return [part.strip() for part in command.split("&&")]


def reason_to_skip(command: str) -> str | None:
    return next((reason for pattern, reason in SKIPPED.items() if re.fullmatch(pattern, command)), None)


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that stand before a command, and its words."""
    words, variables = shlex.split(command), {}
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    return variables, words


def verb_of(command: str) -> str | None:
    _, words = split(command)
    return words[1] if words[0] == "offbeat" and len(words) > 1 else None


def shortened(command: str) -> str:
    """`command` with the settings of `SHORTER` after its own, which they overrule."""
    return f"{command} {SHORTER.get(verb_of(command) or '', '')}".strip()


def checked_only(command: str) -> str | None:
    """The command of which a tutorial's is checked: `offbeat config` for a run; None if it needs a finished run."""
    verb = verb_of(command)
    if verb in OF_A_RUN or verb == "doctor":
        return None
    if verb in LONG:
        _, _, *arguments = split(command)[1]
        return shlex.join(["offbeat", "config", "--verb", str(verb), *arguments])
    return command


def shell(command: str, directory: Path) -> str:
    """What a command prints. `offbeat` and `python` are those of this environment and checkout."""
    variables, words = split(command)
    started = {"offbeat": [sys.executable, "-m", "launch"], "python": [sys.executable]}.get(words[0])
    assert started is not None, f"`{command}` begins with no program of ours; add it to SKIPPED with its reason"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = (
        {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | variables | {"PYTHONPATH": path}
    )
    done = subprocess.run(
        [*started, *words[1:]], cwd=directory, capture_output=True, text=True, env=environ, timeout=500
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def directory(short_dir: Path) -> Path:
    """Fresh, but for what `make pretrained` brings."""
    (short_dir / "models").symlink_to(MODEL.parent)
    return short_dir


def of(page: Path) -> list[Step]:
    return steps(page.read_text("utf-8"))


def test_the_steps_of_a_page_are_its_files_and_commands() -> None:
    page = """
Text

```python
# mine.py
x = 1
```

    offbeat init run.yaml \\
        --model M    # yours

    $ python mine.py

Prints

    done: 3

```sh
OMP_NUM_THREADS=1 offbeat report RUN
# a remark
```

```
offbeat: no command but a message
```

```yaml config
model: {path: x}
```
"""
    assert steps(page) == [
        Written("mine.py", "# mine.py\nx = 1\n"),
        "offbeat init run.yaml --model M",
        "python mine.py",
        "OMP_NUM_THREADS=1 offbeat report RUN",
    ]


def test_a_command_is_skipped_for_a_reason_or_run_short_and_a_tutorials_run_is_checked() -> None:
    assert reason_to_skip("make pretrained")
    assert reason_to_skip("offbeat train run.yaml") is None
    assert shortened("offbeat train run.yaml updates=5").startswith("offbeat train run.yaml updates=5 updates=2 ")
    assert shortened("offbeat report runs/run") == "offbeat report runs/run"
    assert checked_only("offbeat sft gsm8k data.source=x") == "offbeat config --verb sft gsm8k data.source=x"
    assert checked_only("offbeat report runs/run") is None


def test_the_pages_have_commands() -> None:
    assert "train" in {
        verb_of(part) for step in of(ROOT / "README.md") if isinstance(step, str) for part in parts(step)
    }
    for page in TUTORIALS:
        assert any(isinstance(step, str) and verb_of(step) == "train" for step in of(page)), page.name


@needs_model
@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_s_files_and_configurations_hold(
    page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what a command of the page prints that does not differ from run to run: the text after `You see`.

    In this process, but for scripts: a start takes seconds. README's commands have processes of their own.
    """
    monkeypatch.chdir(directory)
    printed = ""
    for step in of(page):
        if isinstance(step, Written):
            (directory / step.name).write_text(step.text)
        else:
            for part in parts(step):
                if reason_to_skip(part) is None and (command := checked_only(part)) is not None:
                    command = command.replace("MODEL", "models/smollm2-135m-instruct")
                    variables, (program, *arguments) = split(command)
                    if program == "offbeat" and not variables:
                        assert main(arguments) == 0, command
                        printed += capsys.readouterr().out
                    else:
                        printed += shell(command, directory)
    for promised in re.findall(r"^You see `([^`]+)`", page.read_text(), re.MULTILINE):
        assert promised in printed


@needs_model
@pytest.mark.pretrained
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_readme_s_commands_work_in_order_outside_of_a_checkout(directory: Path, marked: Marked) -> None:
    """As a new user types them: nothing but the model is there, and one command needs what another wrote."""
    ran = []
    with leaving_nothing(marked):
        for step in of(ROOT / "README.md"):
            if isinstance(step, Written):
                (directory / step.name).write_text(step.text)
                continue
            for part in parts(step):
                if reason_to_skip(part) is None:
                    shell(shortened(part), directory)
                    ran.append(verb_of(part))
    assert {"init", "train", "report"} <= set(ran)
    assert list(directory.glob("runs/*/report.html"))
