"""Final answers: notation that makes no difference, differences that notation must not hide, the last box."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from actors.judges.mathematics import last_boxed, normalise, number, same_answer, without_unit


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
    started = time.monotonic()
    assert last_boxed(text) is None
    assert not same_answer(text, "72")
    assert time.monotonic() - started < 1.0
