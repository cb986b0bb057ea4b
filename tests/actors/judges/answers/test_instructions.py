"""IFEval's instructions: each check with an answer that follows it and one that does not, judged by hand."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from actors.judges.answers.checks import CHECKS, UNSUPPORTED, sentences
from actors.judges.answers.config import InstructionsJudgeConfig
from actors.judges.answers.instructions import InstructionsJudge, follows, read_checks
from tests.fakes.generators import make_group
from tests.timing import assert_quick

IFEVAL = os.environ.get("OFFBEAT_IFEVAL", "")
AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["dog", "day"]}, "A Dog today.", "A dog tonight."),
    ("keywords:forbidden_words", {"forbidden_words": ["damn"]}, "The damnation.", "Damn it."),
    ("keywords:frequency", {"keyword": "knot", "frequency": 2} | AT_LEAST, "Knot a knot.", "A knot."),
    ("keywords:frequency", {"keyword": "knot", "frequency": 2} | LESS, "A knot.", "Knot a knot."),
    ("keywords:letter_frequency", {"letter": "j", "let_frequency": 2, "let_relation": "at least"}, "Jejune jam", "jam"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"}, "# a", "## a"),
    ("length_constraints:number_words", {"num_words": 3} | AT_LEAST, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3} | LESS, "one two", "one two three"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3} | AT_LEAST,
        "A b. C d? E f!",
        "Dr. A. Bee has 1.5 cats. Yes.",
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2} | LESS, "Dr. Smith came", "He came. She left"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one *** two ***", "one *** *** two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
        "One.\n\nIt's two.".replace("It's", "It, is"),
        "It is one.\n\nTwo.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "it"},
        '"It is" one.\n\nTwo.',
        "It is one.\n\nTwo.\n\nThree.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name] of place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. Hello", "Bye.\nPS Hello"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S Hello", "Bye.\nP.S. Hello"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n- two\n* three"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* one", "**bold** one"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    ("detectable_format:title", {}, "<<Joy>>\ntext", "<< >>\ntext"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": [1]'),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "WHAT A day",
        "WHAT a day",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "WHAT a day",
        "A WELL-MADE day",
    ),
    ("change_case:english_capital", {}, "ALL OF IT, 1.", "ALL OF it"),
    ("change_case:english_lowercase", {}, "all of it, 1.", "All of it"),
    ("punctuation:no_comma", {}, "no; comma", "one, comma"),
    ("startend:end_checker", {"end_phrase": "So what is next?"}, '"Well. so what is next?"', "So what is next? Well."),
    ("startend:quotation", {}, ' "all of it" ', '"part" of it'),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "write a poem. Roses", "Roses. Write a poem."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
]


def judge(texts: list[str], names: list[str], arguments: list[Any], **settings: Any) -> tuple[float, ...]:
    group = make_group(texts, answer="-")
    columns = {"instruction_id_list": names, "kwargs": arguments}
    group.lease.prompt.metadata["answer"] = columns  # type: ignore[index]
    return asyncio.run(InstructionsJudge(InstructionsJudgeConfig(**settings)).judge([group]))[0].scores


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_an_answer_that_follows_passes_and_one_that_does_not_fails(
    name: str, arguments: dict[str, Any], right: str, wrong: str
) -> None:
    check = CHECKS[name](**arguments)
    assert follows(right, check, loose=False)
    assert not follows(wrong, check, loose=False)


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_an_empty_answer_follows_nothing() -> None:
    assert judge(["", " \n"], ["punctuation:no_comma"], [{}], strictness="loose") == (0.0, 0.0)


def test_the_score_is_the_share_that_is_followed_or_one_if_all_are() -> None:
    names, texts = ["punctuation:no_comma", "change_case:english_lowercase"], ["abc", "Abc", "A, c"]
    assert judge(texts, names, [{}, None]) == (1.0, 0.5, 0.0)
    assert judge(texts, names, [{}, None], score="all") == (1.0, 0.0, 0.0)


def test_loose_forgives_a_first_line_a_last_line_and_asterisks() -> None:
    texts = ["Sure, here:\nabc", "abc\nHope, it helps", "Sure,\nabc\n,", '**"abc"**', "a,\nb, c\nd,"]
    assert judge(texts[:3] + texts[4:], ["punctuation:no_comma"], [{}], strictness="loose") == (1.0, 1.0, 1.0, 0.0)
    assert judge(texts[:3], ["punctuation:no_comma"], [{}]) == (0.0, 0.0, 0.0)
    assert judge([texts[3]], ["startend:quotation"], [{}], strictness="loose") == (1.0,)
    assert judge([texts[3]], ["startend:quotation"], [{}]) == (0.0,)


def test_arguments_that_are_null_are_absent_as_parquet_gives_every_row_every_key() -> None:
    arguments = [{"keywords": None, "num_words": 2, "relation": "at least"}]
    assert judge(["a b", "a"], ["length_constraints:number_words"], arguments) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["language:response_language"], [{"language": "bn"}], "cannot be checked: telling languages apart"),
        (["punctuation:no_dash"], [{}], "'punctuation:no_dash' is unknown; known are change_case:"),
        (["keywords:existence"], [{}], "'keywords:existence' with {} cannot be read"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "neither 'at least' nor"),
        (["punctuation:no_comma"], [], "has no instructions that can be read"),
        ([], [], "has no instructions that can be read"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_by_name(names: Any, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"prompt 'fake:0'.*{message}"):
        judge(["a"], names, arguments)


def test_abbreviations_initials_and_numbers_end_no_sentence() -> None:
    assert [sentences(text) for text in ("Dr. A. B. Cee paid 1.50. Yes!", "Is it?! It is...", "")] == [2, 2, 0]


@pytest.mark.parametrize("unit", [".", "\n", "<<", "*", "[", "*** ", "a.", '"', "P. ", "SECTION ", "- "])
def test_no_answer_takes_half_a_second(unit: str) -> None:
    text = unit * (50_000 // len(unit))
    checks = [CHECKS[name](**arguments) for name, arguments, _, _ in CASES]
    assert_quick(lambda: [follows(text, check, loose=False) for check in checks], 0.5)


def test_every_instruction_of_the_published_data_is_read_or_refused_by_name() -> None:
    if not IFEVAL:
        pytest.skip("set OFFBEAT_IFEVAL to IFEval's input_data.jsonl")
    rows = [json.loads(line) for line in Path(IFEVAL).read_text(encoding="utf-8").splitlines()]
    unsupported = 0
    for row in rows:
        prompt = make_group([""], answer="-").lease.prompt
        prompt.metadata["answer"] = row  # type: ignore[index]
        if UNSUPPORTED.keys() & set(row["instruction_id_list"]):
            unsupported += 1
        else:
            assert len(read_checks(prompt)) == len(row["instruction_id_list"])
    assert len(rows) >= 540
    assert unsupported == 31
