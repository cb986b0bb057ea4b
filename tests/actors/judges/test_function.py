"""A user's function as judge: how it is found, called and checked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.judges.config import FunctionJudgeConfig
from actors.judges.factory import make_judge
from actors.judges.function import FunctionJudge
from actors.records import Judgement
from actors.replay_buffer.pairing import game_of
from tests.fakes.generators import make_group

MODULE = """
import asyncio, threading
import numpy, torch

seen = []

def lengths(prompt, completions):
    seen.append((prompt.id, threading.current_thread() is threading.main_thread()))
    return [len(completion.text) for completion in completions]

async def later(prompt, completions):
    await asyncio.sleep(0)
    return numpy.array([float(len(completion.text)) for completion in completions])

class Scorer:
    async def __call__(self, prompt, completions):
        return torch.tensor([1.0, 2.0])

scorer = Scorer()
wrong = {"short": [1.0], "nan": [1.0, float("nan")], "text": ["1", "2"], "string": "12", "number": 3.0, "none": None}

def answer(prompt, completions):
    return wrong[prompt.answer]

def compares(prompt, completions):
    share = 0.75 if prompt.id == "fake:0" else 0.5
    return numpy.array([[0.5, share], [1.0 - share, 0.5]])

tables = {
    "one row": [[0.5, 0.5]],
    "not square": [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]],
    "not a probability": [[0.5, 1.5], [-0.5, 0.5]],
    "does not add up": [[0.5, 0.7], [0.7, 0.5]],
    "nan": [[0.5, float("nan")], [float("nan"), 0.5]],
    "a row too many": [[0.5, 0.5], [0.5, 0.5], "no row"],
    "over 1": [[0.5, 1.000002], [-0.000002, 0.5]],
    "rounded": [[0.5, 1.0000001], [-0.0000001, 0.5]],
    "empty diagonal": [[float("nan"), 0.75], [0.25, float("nan")]],
    "float32": numpy.array([[0.5, 0.9], [0.1, 0.5]], dtype=numpy.float32),
}

def table(prompt, completions):
    return tables[prompt.answer]

def exhausted(prompt, completions):
    return [next(iter([]))]

not_callable = 3
"""
GROUPS = [make_group(["a", "bbb"], index=0), make_group(["cc", ""], index=1)]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_judge_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"broken_{name}.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def scores(path: str, groups: Sequence[Any] = GROUPS) -> list[tuple[float, ...]]:
    judgements = asyncio.run(make_judge(FunctionJudgeConfig(path=path)).judge(groups))
    return [judgement.scores for judgement in judgements]


def test_a_plain_function_is_called_once_per_group_outside_the_event_loops_thread(module: str) -> None:
    assert scores(f"{module}:lengths") == [(1.0, 3.0), (2.0, 0.0)]
    assert sys.modules[module].seen == [("fake:0", False), ("fake:1", False)]


def test_an_async_function_may_answer_with_an_array(module: str) -> None:
    assert scores(f"{module}:later") == [(1.0, 3.0), (2.0, 0.0)]


def test_an_object_with_an_async_call_may_answer_with_a_tensor(module: str) -> None:
    assert scores(f"{module}:scorer") == [(1.0, 2.0), (1.0, 2.0)]


@pytest.mark.parametrize("kind", ["short", "nan", "text", "string", "number", "none"])
def test_an_answer_that_is_not_one_finite_number_per_completion_is_an_error(module: str, kind: str) -> None:
    with pytest.raises(RunError, match=r"for prompt 'fake:0'; it must return 2 finite numbers"):
        scores(f"{module}:answer", [make_group(["a", "b"], answer=kind)])


def test_a_function_that_compares_answers_with_preferences_and_scores_are_mean_wins(module: str) -> None:
    first, second = asyncio.run(make_judge(FunctionJudgeConfig(path=f"{module}:compares")).judge(GROUPS))
    assert first.preferences == ((0.5, 0.75), (0.25, 0.5))
    assert first.scores == (0.75, 0.25)
    assert second.scores == (0.5, 0.5)


@pytest.mark.parametrize(
    "kind", ["one row", "not square", "not a probability", "does not add up", "nan", "a row too many", "over 1"]
)
def test_a_table_that_is_not_of_preferences_is_an_error(module: str, kind: str) -> None:
    with pytest.raises(RunError, match=r"or 2 rows of 2 probabilities, \[i\]\[j\] that i is preferred to j"):
        scores(f"{module}:table", [make_group(["a", "b"], answer=kind)])


@pytest.mark.parametrize(
    ("kind", "first"), [("rounded", 1.0), ("empty diagonal", 0.75), ("float32", pytest.approx(0.9, abs=1e-7))]
)
def test_a_table_is_taken_exactly_where_a_game_can_be_made_of_it(module: str, kind: str, first: float) -> None:
    """What the judge lets through and pairing refuses would end the run instead of being tried again."""
    group = make_group(["a", "b"], answer=kind)
    (judgement,) = asyncio.run(make_judge(FunctionJudgeConfig(path=f"{module}:table")).judge([group]))
    assert judgement.preferences is not None
    assert (judgement.scores[0], judgement.preferences[0][1]) == (first, first)
    game = game_of(replace(group, judgement=judgement), None)
    raw = Judgement((0.0, 0.0), tuple(tuple(map(float, row)) for row in sys.modules[module].tables[kind]))
    assert game.preferences == judgement.preferences == game_of(replace(group, judgement=raw), None).preferences


def test_the_functions_own_errors_pass_through(module: str) -> None:
    with pytest.raises(KeyError, match="unheard of"):
        scores(f"{module}:answer", [make_group(["a", "b"], answer="unheard of")])


def test_a_stop_iteration_is_an_error_and_no_endless_wait(module: str) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        scores(f"{module}:exhausted")


@pytest.mark.parametrize("path", ["module", "module:", ":function", "module.function", "a-b:c", "module:f()"])
def test_a_malformed_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"write it as 'package\.module:function'"):
        FunctionJudge(FunctionJudgeConfig(path=path))


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(module: str) -> None:
    with pytest.raises(UsageError, match=r"module 'not_there_at_all' cannot be imported"):
        FunctionJudge(FunctionJudgeConfig(path="not_there_at_all:f"))
    with pytest.raises(UsageError, match="No module named 'a_module_that_is_not_there'"):
        FunctionJudge(FunctionJudgeConfig(path=f"broken_{module}:f"))


@pytest.mark.parametrize("name", ["length", "not_callable"])
def test_a_name_that_is_no_function_is_refused_with_the_choice(module: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"has no function '{name}'; it has: .*'lengths'"):
        FunctionJudge(FunctionJudgeConfig(path=f"{module}:{name}"))


def test_a_function_that_never_returns_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("import threading\ndef f(prompt, completions): threading.Event().wait()\n")
    script = textwrap.dedent("""
        import asyncio
        from actors.judges.config import JudgingConfig
        from actors.judges.config import FunctionJudgeConfig
        from actors.judges.worker import JudgeWorker
        from actors.records import Completion, Group, Lease, Prompt

        completion = Completion((1,), (-1.0,), (0,), "a", True)
        group = Group(Lease(0, 0, Prompt("p:0", (1,), "p"), 0, 1.0), (completion, completion))
        config = JudgingConfig(judge=FunctionJudgeConfig(path="hanging:f"), timeout_seconds=0.1, retries=0)
        print(asyncio.run(JudgeWorker(config).judge([group]))[0].reason)
    """)
    root = Path(__file__).parents[3]
    paths = f"{root}:{tmp_path}"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout == "the judge did not answer within 0.1 s\n"
