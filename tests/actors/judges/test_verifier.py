"""Exact answers: notation, numbers, the last match, and every published solution of GSM8K."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from actors.config import VerifierJudgeConfig
from actors.errors import UsageError
from actors.judges.verifier import VerifierJudge, same_answer
from tests.fakes import make_group

GSM8K = Path(os.environ.get("OFFBEAT_GSM8K", Path(__file__).parents[4] / "shared" / "data" / "gsm8k"))


def scores(texts: list[str], answer: str | None, pattern: str | None = None) -> tuple[float, ...]:
    config = VerifierJudgeConfig() if pattern is None else VerifierJudgeConfig(answer_pattern=pattern)
    return asyncio.run(VerifierJudge(config).judge([make_group(texts, answer=answer)]))[0].scores


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("72", "72.0"),
        ("72", "72.00"),
        ("72", " 72. "),
        ("1,234", "1234"),
        ("$1,234.50", "1234.5"),
        ("$ 18", "18"),
        ("-5", "-5.0"),
        ("+5", "5"),
        ("007", "7"),
        (".5", "1/2"),
        ("1/3", "2/6"),
        ("blue  whale.", "blue whale"),
        ("-0", "0"),
    ],
)
def test_notation_makes_no_difference(first: str, second: str) -> None:
    assert same_answer(first, second)
    assert same_answer(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("72", "73"),
        ("72", "-72"),
        ("72", "7.2"),
        ("72", "72 apples"),
        ("0.1", "0.10000000000000000001"),
        ("9007199254740993", "9007199254740992"),
        ("1/0", "0"),
        ("", ""),
        ("$", "."),
        ("nan", "nan apples"),
    ],
)
def test_different_answers_stay_different(first: str, second: str) -> None:
    assert not same_answer(first, second)


def test_the_last_match_is_the_final_answer() -> None:
    assert scores(["#### 72\nno, wait\n#### 5", "#### 5\nno, wait\n#### 72"], "72") == (0.0, 1.0)


def test_a_completion_without_a_marked_answer_is_wrong() -> None:
    assert scores(["72", "the answer is 72", "####", ""], "72") == (0.0, 0.0, 0.0, 0.0)


def test_the_gold_answer_may_be_a_whole_solution() -> None:
    assert scores(["so #### 72", "so #### 73"], "48 / 2 = 24\n48 + 24 = 72\n#### 72") == (1.0, 0.0)


def test_a_pattern_of_ones_own_is_used_on_both_sides() -> None:
    assert scores([r"\boxed{12}", "#### 12"], r"thus \boxed{12.0}", r"\\boxed\{([^}]*)\}") == (1.0, 0.0)


@pytest.mark.parametrize("answer", [None, "", "#### $"])
def test_a_prompt_without_an_answer_is_an_error_that_names_it(answer: str | None) -> None:
    with pytest.raises(UsageError, match=r"prompt 'fake:0' has no gold answer.*prompts\.answer_field"):
        scores(["#### 72", "#### 73"], answer)


def test_a_gigantic_number_costs_no_time() -> None:
    started = time.monotonic()
    assert scores(["#### 1e999999999", "#### " + "9" * 100_000], "72") == (0.0, 0.0)
    assert time.monotonic() - started < 1.0


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        VerifierJudge(VerifierJudgeConfig(answer_pattern="####("))


def test_a_pattern_without_a_group_is_refused() -> None:
    with pytest.raises(UsageError, match="has no group"):
        VerifierJudge(VerifierJudgeConfig(answer_pattern="####.*"))


@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_every_published_gsm8k_solution_is_right_and_every_other_answer_wrong(name: str, count: int) -> None:
    file = GSM8K / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"no GSM8K at {file}; set OFFBEAT_GSM8K to a directory with train.jsonl and test.jsonl")
    solutions = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(solutions) == count
    groups = [
        make_group([solution, solution.replace("####", "#### 1"), solution.split("####")[0]], index=i, answer=solution)
        for i, solution in enumerate(solutions)
    ]
    judgements = asyncio.run(VerifierJudge(VerifierJudgeConfig()).judge(groups))
    assert {judgement.scores for judgement in judgements} == {(1.0, 0.0, 0.0)}
