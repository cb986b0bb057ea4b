"""A user's function as judge: how it is found, called and checked. In this process; `test_judge.py` has its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError, UsageError
from actors.judges.functions.child import Function
from actors.records import Judgement
from actors.replay_buffer.pairing import game_of
from actors.user_code import UserCodeError
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

class Mapping(dict):
    shape = (2,)
    def tolist(self): return [1.0, 2.0]

wrong = {"short": [1.0], "nan": [1.0, float("nan")], "text": ["1", "2"], "string": "12", "number": 3.0, "none": None}
wrong |= {"dictionary": {0: 1, 1: 2}, "set": {1.0, 2.0}, "bytes": b"12", "view": memoryview(b"12")}
wrong |= {"huge": [10**400, 1], "frozenset": frozenset((1.0, 2.0)), "values": {1: 1.0, 2: 2.0}.values()}
wrong |= {"masked": numpy.ma.array([1.0, 2.0], mask=[0, 1]), "texts": numpy.array(["1", "2"]), "sets": [{1.0}, {2.0}]}
wrong |= {"complex": [1j, 2j], "row": numpy.array([[1.0, 2.0]]), "iterator": iter([1.0, 2.0]), "mapping": Mapping()}
wrong |= {"generator": (x for x in (1.0, 2.0)), "array": numpy.zeros(3)}

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

class Unreadable(BaseException):
    def __str__(self): raise ValueError

def deeper(n):
    return 1 / 0 if n == 0 else deeper(n - 1)

def leaves(prompt, completions):
    kinds = {"SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt(), "GeneratorExit": GeneratorExit()}
    kinds |= {"CancelledError": asyncio.CancelledError(), "Unreadable": Unreadable(), "Long": ValueError("Long" * 99)}
    if prompt.answer == "Deep":
        deeper(50)
    raise type("Long", (ValueError,), {})("x" * 99999) if prompt.answer == "Long" else kinds[prompt.answer]

async def leaves_later(prompt, completions):
    leaves(prompt, completions)

not_callable = 3

def trl(prompts, completions, **kwargs):
    seen.append((prompts, completions, kwargs))
    return [float(len(text)) for text in completions]

def trl_completions_alone(completions, **kwargs):
    return [len(text) for text in completions]

def trl_by_column(completions, answer, level=0):
    return [float(text == gold) for text, gold in zip(completions, answer)]

async def trl_needs(prompts, completions, solution):
    return [1.0] * len(prompts)

def trl_abstains(completions, **kwargs):
    return [None, *[3.0] * (len(completions) - 1)] if len(completions) > 1 else [None]

def trl_never_answers(completions, **kwargs):
    return [None] * len(completions)

def trl_chat(prompts, completions, **kwargs):
    return [len(done[-1]["content"]) + len(asked) for asked, done in zip(prompts, completions)]

def one(prompt): ...
def three(a, b, c): ...
def keywords(*, prompt, completions): ...
def anything(*arguments): return [0.0] * len(arguments[1])
def with_default(question, answers, weight=2): return [weight] * len(answers)
import functools
partial = functools.partial(with_default, weight=3)
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
    judgements = asyncio.run(Function(path).judge(groups))
    return [judgement.scores for judgement in judgements]


def test_a_plain_function_is_called_once_per_group_outside_the_event_loops_thread(module: str) -> None:
    assert scores(f"{module}:lengths") == [(1.0, 3.0), (2.0, 0.0)]
    assert sys.modules[module].seen == [("fake:0", False), ("fake:1", False)]


def test_an_async_function_may_answer_with_an_array(module: str) -> None:
    assert scores(f"{module}:later") == [(1.0, 3.0), (2.0, 0.0)]


def test_an_object_with_an_async_call_may_answer_with_a_tensor(module: str) -> None:
    assert scores(f"{module}:scorer") == [(1.0, 2.0), (1.0, 2.0)]


SAID = {
    "short": r"list of 1 \(float\)",
    "nan": r"list of 2 \(float, with NaN or infinity\)",
    "text": r"list of 2 \(str\)",
    "string": "one str",
    "number": "one float",
    "none": "None",
    "dictionary": "one dict",
    "set": "one set",
    "bytes": "one bytes",
    "generator": "one generator",
    "view": "one memoryview",
    "array": r"ndarray of shape \[3\]",
    "huge": r"list of 2 \(int, with NaN or infinity\)",
    "frozenset": "one frozenset",
    "values": "one dict_values",
    "masked": r"MaskedArray of shape \[2\]",
    "texts": r"ndarray of shape \[2\]",
    "sets": r"list of 2 \(set\)",
    "complex": r"list of 2 \(complex\)",
    "row": r"ndarray of shape \[1, 2\]",
    "iterator": "one list_iterator",
    "mapping": "one Mapping",
}


@pytest.mark.parametrize("kind", SAID)
def test_an_answer_that_is_not_one_finite_number_per_completion_is_an_error(module: str, kind: str) -> None:
    with pytest.raises(RunError, match=rf"answered {SAID[kind]}; it must .* of 2 finite numbers"):
        scores(f"{module}:answer", [make_group(["a", "b"], answer=kind)])


def test_a_function_that_compares_answers_with_preferences_and_scores_are_mean_wins(module: str) -> None:
    first, second = asyncio.run(Function(f"{module}:compares").judge(GROUPS))
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
    (judgement,) = asyncio.run(Function(f"{module}:table").judge([group]))
    assert judgement.preferences is not None
    assert (judgement.scores[0], judgement.preferences[0][1]) == (first, first)
    game = game_of(replace(group, judgement=judgement), None)
    raw = Judgement((0.0, 0.0), tuple(tuple(map(float, row)) for row in sys.modules[module].tables[kind]))
    assert game.preferences == judgement.preferences == game_of(replace(group, judgement=raw), None).preferences


def test_the_functions_own_errors_pass_through(module: str) -> None:
    """With file and line, and without the prompt: reasons are counted."""
    with pytest.raises(
        UserCodeError, match=r"raised KeyError: 'unheard of' \(.*py:[0-9]+, in answer: return wrong"
    ) as caught:
        scores(f"{module}:answer", [make_group(["a", "b"], answer="unheard of")])
    lines = caught.value.trace.splitlines()
    assert lines[0].startswith(f'  File "{sys.modules[module].__file__}", line ')
    assert lines[-1] == "KeyError: 'unheard of'"


@pytest.mark.parametrize("name", ["leaves", "leaves_later"])
@pytest.mark.parametrize(
    "kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "Unreadable", "Long", "Deep"]
)
def test_whatever_a_function_raises_is_a_failure_of_its_own(module: str, kind: str, name: str) -> None:
    said = {"Unreadable": r"Unreadable: \(its message cannot be read\)", "Deep": "ZeroDivisionError"}.get(kind, kind)
    with pytest.raises(UserCodeError, match=f"judge function '{module}:{name}' raised {said}") as caught:
        scores(f"{module}:{name}", [make_group(["a", "b"], answer=kind)])
    assert len(str(caught.value)) < 700


def test_a_stop_iteration_is_an_error_and_no_endless_wait(module: str) -> None:
    with pytest.raises(UserCodeError, match="raised StopIteration"):
        scores(f"{module}:exhausted")


@pytest.mark.parametrize("path", ["module", "module:", ":function", "module.function", "a-b:c", "module:f()"])
def test_a_malformed_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"write it as 'package\.module:function'"):
        Function(path)


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(module: str) -> None:
    with pytest.raises(UsageError, match=r"module 'not_there_at_all' cannot be imported"):
        Function("not_there_at_all:f")
    with pytest.raises(UsageError, match="No module named 'a_module_that_is_not_there'"):
        Function(f"broken_{module}:f")


@pytest.mark.parametrize("name", ["length", "not_callable"])
def test_a_name_that_is_no_function_is_refused_with_the_choice(module: str, name: str) -> None:
    with pytest.raises(UsageError, match=rf"has no function '{name}'.*; name one that it has: .*lengths"):
        Function(f"{module}:{name}")


# ---------------------------------------------------------------- TRL's signature


def test_a_reward_function_of_trl_gets_lists_with_one_entry_per_completion(module: str) -> None:
    group = make_group(["a", "bbb"], answer="4")
    prompt = replace(group.lease.prompt, metadata={"columns": {"level": 2}})
    assert scores(f"{module}:trl", [replace(group, lease=replace(group.lease, prompt=prompt))]) == [(1.0, 3.0)]
    ((prompts, completions, others),) = sys.modules[module].seen
    assert (prompts, completions) == (["prompt 0", "prompt 0"], ["a", "bbb"])
    assert others == {"answer": ["4", "4"], "level": [2, 2], "completion_ids": [[10, 2], [11, 2]]}


def test_chat_prompts_reach_a_reward_function_of_trl_as_messages(module: str) -> None:
    group = make_group(["a", "bbb"])
    prompt = replace(group.lease.prompt, metadata={"messages": [{"role": "user", "content": "hi"}]})
    assert scores(f"{module}:trl_chat", [replace(group, lease=replace(group.lease, prompt=prompt))]) == [(2.0, 4.0)]


def test_a_function_gets_only_the_columns_that_it_names(module: str) -> None:
    assert scores(f"{module}:trl_completions_alone") == [(1.0, 3.0), (2.0, 0.0)]
    assert scores(f"{module}:trl_by_column", [make_group(["4", "5"], answer="4")]) == [(1.0, 0.0)]


def test_a_column_that_is_not_read_is_named_with_its_setting(module: str) -> None:
    with pytest.raises(UsageError, match=r"needs \['solution'\], .*prompts\.columns=\['solution'\]"):
        scores(f"{module}:trl_needs")


def test_a_completion_without_a_score_gets_the_mean_of_the_others_and_none_at_all_is_refused(module: str) -> None:
    assert scores(f"{module}:trl_abstains") == [(3.0, 3.0), (3.0, 3.0)]
    with pytest.raises(RunError, match=r"answered list of 2 \(NoneType\); it must"):
        scores(f"{module}:trl_never_answers")


@pytest.mark.parametrize("name", ["one", "three", "keywords"])
def test_a_function_of_neither_signature_is_refused_with_both(module: str, name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"{name}\(.*\) cannot judge; write it as f\(prompt, completions\).*\*\*columns"
    ):
        Function(f"{module}:{name}")


@pytest.mark.parametrize(("name", "score"), [("anything", 0.0), ("with_default", 2.0), ("partial", 3.0)])
def test_names_do_not_matter_in_the_documented_signature(module: str, name: str, score: float) -> None:
    assert scores(f"{module}:{name}") == [(score, score)] * 2
