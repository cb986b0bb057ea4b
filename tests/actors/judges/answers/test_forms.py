"""Mathematical answers: a suite of forms, answers that were altered, and inputs that would take for ever."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.judges.answers.config import VerifierJudgeConfig
from actors.judges.answers.forms import same_form
from actors.judges.answers.verifier import VerifierJudge, choice, said_answer
from tests.fakes.generators import make_group
from tests.timing import assert_quick

SUITE = [
    line.split("\t")
    for line in Path(__file__).with_name("math_forms.tsv").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def scores(texts: list[str], answer: Any, **settings: Any) -> tuple[float, ...]:
    group = make_group(texts, answer=str(answer))
    if isinstance(answer, list):
        group.lease.prompt.metadata["answer"] = answer  # type: ignore[index]
    judge = VerifierJudge(VerifierJudgeConfig(**settings))
    return asyncio.run(judge.judge([group]))[0].scores


def test_of_the_suite_nearly_all_right_forms_are_right_and_no_wrong_one_is() -> None:
    assert len(SUITE) >= 150
    refused = [(gold, answer) for gold, answer, verdict in SUITE if verdict == "right" and not same_form(gold, answer)]
    accepted = [(gold, answer) for gold, answer, verdict in SUITE if verdict == "wrong" and same_form(gold, answer)]
    assert accepted == []
    assert len(refused) <= 0.03 * len(SUITE), refused


def test_a_form_is_compared_equally_in_both_directions() -> None:
    assert not [(a, b) for a, b, _ in SUITE if same_form(a, b) != same_form(b, a)]


def altered(gold: str) -> Iterator[str]:
    """Yield answers that differ from `gold` in value: digits, signs, ends of intervals, names."""
    for match in re.finditer(r"\d", gold):
        place = match.start()
        yield gold[:place] + str((int(match[0]) + 1) % 10) + gold[place + 1 :]
        yield gold[: place + 1] + "7" + gold[place + 1 :]
        yield gold[: place + 1] + ".3" + gold[place + 1 :]
    swapped = re.fullmatch(r"\\frac\{?(\w+)\}?\{?(\w+)\}?", gold)
    if swapped:
        yield rf"\frac{{{swapped[2]}}}{{{swapped[1]}}}"
    for old, new in ("[(", "([", "])", ")]", "+-", "-+", "<>", "><", "xy"):
        yield gold.replace(old, new, 1)
    for command in (r"\pi", r"\sqrt", "^"):
        yield gold.replace(command, "")
    yield gold.replace(r"\cup", r"\cap")
    yield from (f"{gold}+1", f"{gold}1", f"-{gold}")


UNCHANGED = {"0", "9^0", r"\pm 1", r"\pm 2", r"\pm 3", r"\binom{5}{2}", r"\lfloor 2.5 \rfloor"}
"""Golds of which some alterations have the same value."""


def test_no_altered_answer_is_accepted() -> None:
    golds = {gold for gold, _, _ in SUITE} - UNCHANGED
    pairs = {(gold, answer) for gold in golds for answer in altered(gold) if answer != gold}
    assert len(pairs) > 1000
    chosen = random.Random(0).sample(sorted(pairs), 400)  # all were tried once, and take ten seconds
    assert [(gold, answer) for gold, answer in chosen if same_form(gold, answer)] == []


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}",
        "9" * 5000,
        r"\binom{99999999}{49999999}",
        r"\exp(\exp(\exp(99)))",
        r"\sin(9^{900})^{9}",
        r"(2^{999})^{999}",
        r"\sqrt{" + "7" * 39 + "}",
        r"2^{9 9 9 9 9}",
        r"2^{(9)(9)(9)(9)(9)}",
        r"2^{\binom{99}{50}}",
        r"2^{\frac{1}{3}}^{999}",
        "2^{1e9}",
        "2**9**9**9**9",
        "{2}^{9}^{9}^{9}^{9}",
        "100000!",
        "(" * 60 + "x" + ")" * 60,
        r"\frac{" * 30 + "1" + "}{2}" * 30,
        "(x+y)^{99999}",
        "((((x+1)^{9})^{9})^{9})^{9}",
        r"\sum_{n=1}^{10^{9}} n",
        r"\sin(\sin(\sin(\sin(x))))" * 4,
        "{" * 400,
        r"\int_0^1 x^x dx",
        ",".join(["x+1"] * 100),
        r"\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(40)) + r"\}",
        r"\begin{pmatrix}" + r"x & y \\" * 60 + r"\end{pmatrix}",
        "1e999999999",
        r"\text{" * 90,
        " " * 100_000,
        "\\frac" * 80,
        "\\pm" * 130,
    ],
)
def test_no_text_takes_half_a_second(text: str) -> None:
    same_form("x+1", "1+x")  # the library is imported
    assert_quick(lambda: [same_form(gold, text) for gold in ("x+2", r"\sqrt{2}", "(1,2)")], 0.5)
    assert not any(same_form(gold, text) for gold in ("x+2", r"\sqrt{2}", "(1,2)"))


def test_a_boxed_answer_in_another_form_is_right() -> None:
    """It never could score: removing notation left a space that then counted as a difference."""
    texts = [r"\boxed{10,\!000}", r"\boxed{10000}", r"\boxed{1000}"]
    assert scores(texts, r"\boxed{10,\!000}", format="boxed") == (1.0, 1.0, 0.0)
    assert scores([r"\boxed{(1, 2)}", r"\boxed{(2, 1)}"], "(1,2)", format="boxed") == (1.0, 0.0)


def test_any_of_several_gold_answers_is_right() -> None:
    assert scores(["#### 5", "#### 7", "#### 6"], ["5", 7]) == (1.0, 1.0, 0.0)


def test_general_mathematics_is_found_in_a_box_or_after_the_answer_is() -> None:
    texts = [r"The answer is $\frac12$.", r"so \boxed{0.5}", "I think 0.5", "The answer is 0.6"]
    assert scores(texts, r"\frac{1}{2}", format="math") == (1.0, 1.0, 0.0, 0.0)


def test_a_choice_is_a_letter_where_answers_are() -> None:
    texts = [
        "(B)",
        "The answer is B.",
        r"\boxed{\text{(B)}}",
        "B) six",
        "**Answer: B**",
        "A",
        "Both A and B",
        "Because",
    ]
    assert scores(texts, "(B)", format="choice") == (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def test_a_sentence_that_starts_with_a_letter_is_no_choice() -> None:
    assert [choice(text) for text in ("A good question", "I am not sure", "Answer: Austria", "")] == [None] * 4


def test_what_follows_the_answer_is_ends_with_its_sentence() -> None:
    assert said_answer("The answer is 5.5. It is not 6.") == "5.5"
    assert said_answer("Answer: $x$, which is it") == "x"
    assert said_answer("**Answer**: 5") == "5"
    assert said_answer("no verdict") is None


@pytest.mark.parametrize("text", ["answer is" + "\n" * 100_000, " " * 100_000, "answer is " * 10_000, "(" * 100_000])
def test_looking_for_an_answer_takes_no_time(text: str) -> None:
    assert_quick(lambda: (said_answer(text), choice(text)), 0.5)
