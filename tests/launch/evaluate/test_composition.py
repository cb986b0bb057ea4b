"""Compositional problems: which pairs are made, what they say, and how wholes are compared with their parts."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from actors.data.prompts import PromptSource
from actors.errors import UsageError
from launch.evaluate.composition import Problem, compose, composed_prompts, measure, render
from launch.settings.loading import load_config
from tests.actors.data.test_prompts import make_tokenizer

APPLES = Problem("Ann has 4 apples and buys 3 more. How many has she?", "<<4+3=7>>7 #### 7", Fraction(7))
BOXES = Problem("Each of 7 boxes holds 5 pens. How many pens?", "<<7*5=35>>35 #### 35", Fraction(35))
PENS = Problem("Bo has 35 pens and 35 caps and a $1,200 bike. He sells 5 pens. How many pens?", "#### 30", Fraction(30))


def test_x_stands_for_the_first_problem_s_answer_in_the_second_s_text():
    (pair,) = compose([APPLES, BOXES], 10, seed=0)
    assert (pair.first, pair.second) == (APPLES, BOXES)
    assert pair.text == (
        "Let X be the answer to this problem: Ann has 4 apples and buys 3 more. How many has she?\n\n"
        "Use the value of X to solve this problem: Each of X boxes holds 5 pens. How many pens?"
    )


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("35 pens and 35 caps: which one is X?", "#### 70", 35),
        ("Only 1 pen.", "#### 1", 1),
        ("A 35th birthday.", "#### 1", 35),
        ("35/7 of a pie.", "#### 5", 35),
        ("It weighs 3.5 kg.", "#### 1", 5),
        ("It holds 35 pens, which nobody asks for; 4 + 4?", "<<4+4=8>>8 #### 8", 35),
        ("It holds 35 pens.", "many", 35),
    ],
    ids=["twice", "small", "ordinal", "fraction", "decimal", "unused", "no_number_as_answer"],
)
def test_a_number_that_cannot_be_replaced_makes_no_pair(text, answer, value):
    final = answer.rpartition("####")[2].strip()
    second = Problem(text, answer, Fraction(final) if final.isdecimal() else None)
    assert compose([Problem("How many?", "", Fraction(value)), second], 10, seed=0) == []


def test_numbers_with_thousands_separators_are_replaced_whole():
    price = Problem("What does it cost?", "#### 1200", Fraction(1200))
    (pair,) = compose([price, PENS], 10, seed=0)
    assert "35 pens and 35 caps and a $X bike. He sells 5 pens." in pair.text


def test_a_problem_is_second_once_and_a_limit_holds():
    second = [Problem(f"{n} dogs and 7 cats?", "#### 9", Fraction(9)) for n in range(100, 130)]
    made = compose([APPLES, *second], 1000, seed=0)
    assert sorted(pair.second.text for pair in made) == sorted(each.text for each in second)
    assert len(compose([APPLES, *second], 12, seed=0)) == 12
    assert compose([APPLES, *second], 12, seed=0) != compose([APPLES, *second], 12, seed=1)


def test_the_gap_is_the_accuracy_on_wholes_less_the_product_of_the_parts():
    """Four pairs, one answer each: parts .75 and .5, wholes .25.

    Influences: c - (.5 a + .75 b - .375) = .125, -.125, -.5, .0 for (a, b, c) below; their mean is .25 - .375.
    """
    rows = [(1, 1, 1), (1, 0, 0), (1, 1, 0), (0, 0, 0)]
    correct = {f"file:{3 * i + part + 1}": [bool(row[part])] for i, row in enumerate(rows) for part in range(3)}
    found = measure(dict(reversed(correct.items())))
    assert (found.pairs, found.first.value, found.second.value, found.composed.value) == (4, 0.75, 0.5, 0.25)
    assert found.product == pytest.approx(0.375)
    assert found.gap.value == pytest.approx(-0.125)
    influences = [1 - (0.5 + 0.75 - 0.375), -(0.5 - 0.375), -(0.5 + 0.75 - 0.375), 0.375]
    mean = sum(influences) / 4
    half = 3.182446 * (sum((x - mean) ** 2 for x in influences) / 3 / 4) ** 0.5
    assert (found.gap.low, found.gap.high) == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert "composed - product" in render(found)


def test_several_answers_to_a_problem_count_as_their_share():
    found = measure({"p:1": [True, False], "p:2": [True, True], "p:3": [False, True]})
    assert (found.first.value, found.second.value, found.composed.value, found.gap.value) == (0.5, 1.0, 0.5, 0.0)


def config(tmp_path, rows, *overrides):
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = [
        f"prompts.source={tmp_path / 'data.jsonl'}",
        "prompts.prompt_field=question",
        "prompts.answer_field=answer",
    ]
    return load_config("gsm8k", [*given, *overrides])


def final(text):
    return text.rpartition("#### ")[2]


def test_the_prompts_of_a_pair_follow_each_other_with_the_answers_of_the_data(tmp_path):
    rows = [{"question": each.text, "answer": each.answer} for each in (APPLES, BOXES)]
    with composed_prompts(config(tmp_path, rows), 1, final) as (read, pairs):
        written = [json.loads(line) for line in Path(read.prompts.source).read_text().splitlines()]
    assert pairs == 1
    assert [row["answer"] for row in written] == [APPLES.answer, BOXES.answer, BOXES.answer]
    assert [row["question"] for row in written[:2]] == [APPLES.text, BOXES.text]
    assert "Each of X boxes" in written[2]["question"]


def test_too_few_pairs_are_refused_with_how_many_there_are(tmp_path):
    rows = [{"question": each.text, "answer": each.answer} for each in (APPLES, BOXES)]
    with (
        pytest.raises(UsageError, match=r"1 pair among the 2 problems.*fewer than 5.*--prompts 1"),
        composed_prompts(config(tmp_path, rows), 5, final),
    ):
        pass


def test_problems_that_are_no_texts_or_have_several_columns_of_answers_are_refused(tmp_path):
    rows = [{"question": [{"role": "user", "content": "hi"}], "answer": "1"}]
    with pytest.raises(UsageError, match="is no text"), composed_prompts(config(tmp_path, rows), 1, final):
        pass
    several = config(tmp_path, rows, "prompts.answer_field=[answer,question]")
    with pytest.raises(UsageError, match="from one column"), composed_prompts(several, 1, final):
        pass


def test_pairs_that_are_too_long_are_told_with_the_settings_that_make_room(tmp_path):
    """The file that they are read from is gone by then."""
    rows = [{"question": each.text, "answer": each.answer} for each in (APPLES, BOXES)]
    short = config(tmp_path, rows, "prompts.max_prompt_tokens=16")

    def read() -> None:
        with composed_prompts(short, 1, final) as (given, _):
            PromptSource(given.prompts, make_tokenizer())

    # Words of a pair's text in its template, and the token that begins it.
    longest = len(short.prompts.template.format(prompt=compose([APPLES, BOXES], 1, seed=0)[0].text).split()) + 1
    room = short.generators.max_model_len - 16 + 2 * longest
    with pytest.raises(UsageError, match=f"pairs have {longest} tokens and more") as told:
        read()
    assert f"set prompts.max_prompt_tokens={2 * longest} generators.max_model_len={room}" in str(told.value)
    assert "offbeat-composed" not in str(told.value)


def test_another_mistake_of_an_evaluation_of_pairs_stays_as_it_is(tmp_path):
    rows = [{"question": each.text, "answer": each.answer} for each in (APPLES, BOXES)]
    with pytest.raises(UsageError, match=r"^no GPU is free$"), composed_prompts(config(tmp_path, rows), 1, final):
        raise UsageError("no GPU is free")
