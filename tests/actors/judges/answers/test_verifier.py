"""Exact answers: the last match or box, notation that makes no difference, and every published solution of GSM8K."""

from __future__ import annotations

import asyncio
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.errors import UsageError
from actors.judges.answers.exact import last_boxed, normalise, number, same_answer, without_unit
from actors.judges.answers.verifier import VerifierJudge
from actors.judges.config import VerifierJudgeConfig
from tests.fakes.generators import make_group
from tests.timing import assert_quick

GSM8K = os.environ.get("OFFBEAT_GSM8K", "")


def scores(texts: list[str], answer: str | None, pattern: str | None = None, **settings: Any) -> tuple[float, ...]:
    config = VerifierJudgeConfig(**settings | ({} if pattern is None else {"answer_pattern": pattern}))
    return asyncio.run(VerifierJudge(config).judge([make_group(texts, answer=answer)]))[0].scores


def test_the_last_match_is_the_final_answer() -> None:
    assert scores(["#### 72\nno, wait\n#### 5", "#### 5\nno, wait\n#### 72"], "72") == (0.0, 1.0)


def test_a_completion_without_a_marked_answer_is_wrong() -> None:
    assert scores(["72", "the answer is 72", "####", ""], "72") == (0.0, 0.0, 0.0, 0.0)


def test_the_gold_answer_may_be_a_whole_solution() -> None:
    assert scores(["so #### 72", "so #### 73"], "48 / 2 = 24\n48 + 24 = 72\n#### 72") == (1.0, 0.0)


def test_a_pattern_of_ones_own_is_used_on_both_sides() -> None:
    assert scores([r"\boxed{12}", "#### 12"], r"thus \boxed{12.0}", r"\\boxed\{([^}]*)\}") == (1.0, 0.0)


def test_in_the_boxed_format_the_last_box_is_the_final_answer() -> None:
    texts = [r"\boxed{5}, no, \boxed{\frac{3}{4}}", r"\boxed{0.75} or \boxed{5}", "#### 0.75", "0.75"]
    assert scores(texts, r"thus \boxed{\tfrac34}", format="boxed") == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("answer", [r"so \boxed{72}", "48 + 24 = 72\n#### 72", "72"])
def test_the_gold_answer_of_a_boxed_completion_may_be_boxed_marked_or_bare(answer: str) -> None:
    assert scores([r"\boxed{72.0}", r"\boxed{73}"], answer, format="boxed") == (1.0, 0.0)


def test_a_wrong_answer_in_the_right_format_has_a_score_of_its_own() -> None:
    texts = ["#### 72", "#### 73", "72", "#### $", "#### "]
    assert scores(texts, "72", format_score=0.1) == (1.0, 0.1, 0.0, 0.0, 0.0)


def test_the_format_may_never_be_worth_as_much_as_the_answer() -> None:
    with pytest.raises(ValidationError, match="format_score"):
        VerifierJudgeConfig(format_score=1.0)


@pytest.mark.parametrize("answer", [None, "", "#### $"])
def test_a_prompt_without_an_answer_is_an_error_that_names_it(answer: str | None) -> None:
    with pytest.raises(UsageError, match=r"prompt 'fake:0' has no gold answer.*prompts\.answer_field"):
        scores(["#### 72", "#### 73"], answer)


def test_a_gigantic_number_costs_no_time() -> None:
    texts = ["#### 1e999999999", "#### " + "9" * 100_000]
    assert scores(texts, "72") == (0.0, 0.0)
    assert_quick(lambda: scores(texts, "72"), 1.0)


def test_a_pattern_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        VerifierJudge(VerifierJudgeConfig(answer_pattern="####("))


def test_a_pattern_without_a_group_is_refused() -> None:
    with pytest.raises(UsageError, match="has no group"):
        VerifierJudge(VerifierJudgeConfig(answer_pattern="####.*"))


def gsm8k_solutions(name: str) -> list[str]:
    if not GSM8K:
        pytest.skip("set OFFBEAT_GSM8K to a directory with GSM8K's train.jsonl and test.jsonl")
    lines = (Path(GSM8K) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines]


each_split = pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])


@each_split
def test_every_published_gsm8k_solution_is_right_and_every_other_answer_wrong(name: str, count: int) -> None:
    solutions = gsm8k_solutions(name)
    assert len(solutions) == count
    groups = [
        make_group([solution, solution.replace("####", "#### 1"), solution.split("####")[0]], index=i, answer=solution)
        for i, solution in enumerate(solutions)
    ]
    judgements = asyncio.run(VerifierJudge(VerifierJudgeConfig()).judge(groups))
    assert {judgement.scores for judgement in judgements} == {(1.0, 0.0, 0.0)}


@each_split
def test_every_gsm8k_answer_is_right_in_a_box_too(name: str, count: int) -> None:
    groups = []
    for index, solution in enumerate(gsm8k_solutions(name)):
        answer = solution.rpartition("####")[2].strip()
        texts = [rf"hence $\boxed{{{answer}}}$", rf"\boxed{{\${answer}.00\text{{ dollars}}}}", rf"\boxed{{1{answer}}}"]
        groups.append(make_group(texts, index=index, answer=solution))
    judgements = asyncio.run(VerifierJudge(VerifierJudgeConfig(format="boxed")).judge(groups))
    assert [judgement.scores for judgement in judgements] == [(1.0, 1.0, 0.0)] * count


# Finding, normalising and comparing answers.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("72", "72.0"),
        ("72", "72.00"),
        ("72", " 72. "),
        ("1,234", "1234"),
        ("1,234,567.0", "1234567"),
        (r"1{,}234", "1234"),
        ("$1,234.50", "1234.5"),
        ("$ 18", "18"),
        (r"\$18", "18"),
        ("-5", "-5.0"),
        ("\N{MINUS SIGN}5", "-5"),
        ("- 5", "-5"),
        ("+5", "5"),
        ("007", "7"),
        (".5", "1/2"),
        ("0.50", "1/2"),
        ("1/3", "2/6"),
        ("1 / 3", "2/6"),
        ("72%", "72"),
        (r"72\%", "72"),
        (r"\frac{1}{2}", ".5"),
        (r"\dfrac{1}{2}", r"\tfrac24"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"1\frac{1}{2}", "3/2"),
        (r"-1\frac{1}{2}", "-1.5"),
        (r"\left( 1, 2 \right)", "( 1, 2 )"),
        (r"\frac{x}{2}", r"\dfrac{x}{2}"),
        (r"90^\circ", "90"),
        (r"x = 5", "5"),
        (r"72\text{ apples}", "72"),
        ("72 apples", "72"),
        ("12 miles per hour", "12.0"),
        ("5 cm", "5 cm"),
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
        ("0.1", "0.10000000000000000001"),
        ("9007199254740993", "9007199254740992"),
        ("1/0", "0"),
        ("1,2", "12"),
        ("(1,2)", "(12)"),
        (r"\frac{x}{2}", r"\frac{x}{3}"),
        ("2x", "2"),
        ("2 x", "2"),
        ("2 pi", "2"),
        ("2 million", "2"),
        ("3 or 4", "3"),
        ("3 and a half", "3"),
        ("5 cm", "5 mm"),
        ("72 apples", "73"),
        ("", ""),
        ("$", "."),
        ("nan", "nan apples"),
    ],
)
def test_different_answers_stay_different(first: str, second: str) -> None:
    assert not same_answer(first, second)
    assert not same_answer(second, first)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{72}", "72"),
        (r"\boxed{1}, no: \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"} \boxed{7}", "7"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{", None),
        ("boxed{7}", None),
        ("72", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_whole_box_is_found_with_the_braces_in_it(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


def test_numbers_are_exact() -> None:
    assert number("0.1") == Fraction(1, 10)
    assert number("-1 3/4") == Fraction(-7, 4)
    assert number("1.5/-2") == Fraction(-3, 4)
    assert [number(text) for text in ("", "1e3", "1/0", "0x10", "1_000", "\N{SUPERSCRIPT TWO}")] == [None] * 6


def test_a_unit_is_words_that_do_not_change_the_value() -> None:
    assert without_unit("72 apples") == ("72", "apples")
    assert without_unit("1/2 of them") == ("1/2", "of them")
    assert [without_unit(text)[1] for text in ("72", "apples", "3 to 4", "2 dozen", "5 minutes 30")] == [""] * 5


def test_normalising_twice_changes_nothing() -> None:
    for text in (r"1\frac{1}{2}", r"$1,234.00$", r"x = \text{ two }", r"\left(1,\ 2\right)."):
        assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 10_000, "1," * 30_000, "a = " * 20_000, "9" * 100_000, "1 " + "ab " * 300, r"\text{" * 5_000]
)
def test_no_text_that_a_policy_could_write_costs_time(text: str) -> None:
    """Following every open box to the end of the text would take minutes for the first one."""
    assert last_boxed(text) is None
    assert not same_answer(text, "72")
    assert_quick(lambda: (last_boxed(text), same_answer(text, "72")), 1.0)
