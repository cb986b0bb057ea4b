"""Patterns of users: the last match holds the answer, and no search takes long."""

import pytest

from actors.errors import RunError, UsageError
from actors.judges.patterns import AnswerPattern
from tests.timing import assert_quick


def pattern(text: str) -> AnswerPattern:
    return AnswerPattern("judging.judge.answer_pattern", text, r"####\s*([^\n]+)")


def test_the_last_match_holds_the_answer_and_names_its_groups() -> None:
    found = pattern(r"(\d+)(?:/(?P<of>\d+))?")
    assert found.answer("3, no: 4/5") == "4"
    assert found.last("3, no: 4/5") == ("4", {"of": "5"})
    assert found.last("3") == ("3", {"of": None})
    assert found.last("none") is None
    assert found.answer("none") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [("####(", "is not a regular expression: "), ("####.*", "has no group; put the answer in parentheses")],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_its_setting(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        pattern(text)
    assert f"judging.judge.answer_pattern '{text}' {why}" in str(refused.value)


def test_a_search_that_backtracks_ends_in_a_sentence_that_names_setting_and_remedy() -> None:
    """Written by a policy, 60 characters would hold up the judge for ever."""
    nested = pattern(r"^((?:a|aa)+)$")

    def searched() -> None:
        with pytest.raises(
            RunError, match=r"answer_pattern '.*' searched an answer of 61 characters for more than 0.5 s"
        ):
            nested.answer("a" * 60 + "b")

    assert_quick(searched, 10.0)
    assert nested.answer("aaa") == "aaa"
