"""docs/extending.md, done: its files and lines are written into a copy of the package, and used there by settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT, TOPS

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```(python|diff)\n(?:# |\+\+\+ )(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    [text] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return text


def changed(source: str, difference: str) -> str:
    """`source` with a difference put in, whose lines without `+` must stand there once."""
    lines = [(line[:1] or " ", line[1:]) for line in difference.splitlines()]
    old = [text for sign, text in lines if sign != "+"]
    if not old:
        raise AssertionError("a difference without a line to find its place by")
    assert source.count("\n".join(old) + "\n") == 1, f"not once in the file: {old}"
    return source.replace("\n".join(old) + "\n", "\n".join(text for sign, text in lines if sign != "-") + "\n")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for top in TOPS:
        # With its bytecode, which is as old as its sources; not with what another process is just writing.
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("*.pyc.*"), symlinks=False)
    return tmp_path


def follow(heading: str, root: Path) -> list[str]:
    """Write the files and lines of a section of the page; return what was touched."""
    touched = []
    for language, path, body in BLOCK.findall(section(heading)):
        file = root / path
        if language == "python":
            assert not file.exists()
            file.write_text(body)
        else:
            file.write_text(changed(file.read_text(), body))
        touched.append(path)
    return touched


def run(script: str, root: Path) -> list[str]:
    """The lines that a script prints which imports the copy."""
    whole = f"import sys\nsys.path.insert(0, {str(root)!r})\n{script}"
    done = subprocess.run([sys.executable, "-c", whole], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


LOAD = """
from pathlib import Path
from launch.settings.loading import load_config
import launch
assert Path(launch.__file__).is_relative_to(Path.cwd()), launch.__file__
def loaded(*overrides):
    return load_config("embedded-nash-md", ["model.path=.", "prompts.source=p.jsonl", *overrides])
"""


def test_a_difference_finds_its_place_once_or_fails() -> None:
    assert changed("a\nb\nc\n", " a\n+x\n-b\n") == "a\nx\nc\n"
    for source in ("a\na\n", "b\n"):
        with pytest.raises(AssertionError, match="not once"):
            changed(source, " a\n+x\n")


def test_every_block_of_the_page_names_its_file() -> None:
    assert len(BLOCK.findall(PAGE.read_text())) == PAGE.read_text().count("\n```") // 2


def test_a_judge_is_a_function_in_a_file(tmp_path: Path) -> None:
    """In the directory of the run, named by settings, and called in its own process as in a run."""
    [(_, path, body)] = BLOCK.findall(section("A judge"))
    (tmp_path / path).write_text(body)
    overrides = re.findall(r"judging\.judge\S+", section("A judge"))[:2]
    script = f"""
import asyncio
from actors.judges.factory import make_judge
from actors.judges.protocol import closing
from actors.records import Completion, Group, Lease, Prompt
from launch.settings.loading import load_config
config = load_config("chat", {overrides})
prompt = Prompt("p:0", (1,), "Rain?")
texts = [Completion((5, 2), (-0.1, -0.2), (0, 0), text, finished=True) for text in ("drops", "water from the sky")]
with closing(make_judge(config.judging.judge)) as judge:
    async def once():
        await judge.prepare()
        return await judge.judge([Group(Lease(0, 0, prompt, 0, 0.0), tuple(texts))])
    print([answer.scores for answer in asyncio.run(once())])
"""
    assert run(script, tmp_path)[-1] == "[(-5.0, -18.0)]"


def test_a_loss_is_a_file_its_settings_and_a_line_in_a_table(copy: Path) -> None:
    """Two completions of two tokens, by hand: A = (1, -1), log pi = (-1, -3), so that the mean of -2 A log pi is -2,
    and a token's derivative -1 or 1."""
    assert follow("A loss", copy)[0] == "learner/losses/above_mean.py"
    script = """
import torch
from actors.records import Completion, Game
from learner.training.objectives import objective_of
from learner.training.policies import TokenLogProbs
from learner.records import UpdateStats
learner = loaded("learner.loss={kind: above_mean, weight: 2.0}").learner
objective = objective_of(learner)
players = tuple(Completion((5, 2), (-0.5, -0.5), (0, 0), "", finished=True) for _ in range(2))
game = Game(0, (1,), players, (), ((0.5, 1.0), (0.0, 0.5)), (2.0, 1.0))
objective.check([game])
policy = torch.tensor([-0.5, -0.5, -1.0, -2.0], requires_grad=True)
reference = torch.tensor([-0.5, -0.5, -1.0, -2.0])
losses = objective.losses([game], [TokenLogProbs(policy, reference)])
losses.loss.sum().backward()
assert set(losses.metrics) == set(objective.metrics) <= set(UpdateStats.__dataclass_fields__)
print(float(losses.loss), policy.grad.tolist())
"""
    assert run(LOAD + script, copy)[-1] == "-2.0 [-1.0, -1.0, 1.0, 1.0]"


def test_an_opponent_is_its_weights_of_the_reference(copy: Path) -> None:
    assert set(follow("An opponent", copy)) == {"actors/generation/config.py"}
    script = """
opponent = loaded("learner.loss.opponent.kind=middle").learner.loss.opponent
print(opponent.target_beta, opponent.engine_beta, opponent.sampled)
fixed = loaded("learner.loss.opponent.kind=reference", "model.reference=DIR")
print(fixed.model.reference, fixed.learner.loss.opponent.engine_beta)
"""
    assert run(LOAD + script, copy)[-2:] == ["0.5 None False", "DIR 1.0"]


def test_a_transport_is_a_sender_a_receiver_and_its_line_in_each_table(copy: Path) -> None:
    """A version goes from the learner's publisher to a receiver, which checks every tensor."""
    assert follow("A transport", copy)[0] == "learner/publication/shared_files.py"
    script = """
import os, torch
os.environ["OFFBEAT_WEIGHTS"] = str(Path.cwd() / "mounted")
from actors.generation.receivers import read
from actors.records import TRANSPORTS, Canary
from learner.publication.publisher import Publisher
config = loaded("publication.transport=shared_files").publication
publisher = Publisher(config, Path("elsewhere"))
weights = {"w": torch.arange(6.0).view(2, 3)}
manifest = publisher.publish(1, weights, Canary((1, 2), (-0.5,)))
same = torch.equal(read(manifest, ())["w"], weights["w"])
print(same, Path(manifest.location).is_relative_to("mounted") or Path(manifest.location).parents[1].name)
publisher.close()
print(list(Path("mounted").iterdir()), TRANSPORTS[config.transport].one_host)
"""
    assert run(LOAD + script, copy)[-2:] == ["True mounted", "[] False"]
