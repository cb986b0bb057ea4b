"""What is written is YAML of the same values, whatever texts are in it."""

from __future__ import annotations

import pytest

from launch.begin.lines import WIDTH, Line, scalar, tree_of, written
from launch.settings.yaml_text import parse_yaml


@pytest.mark.parametrize(
    "value",
    ["a: b # c", "on", "2026", "", "<|im_start|>user\n{prompt}\t\x1b", "\u2028", "'", "ü", 3e-05, 2, True, ["a", "b"]],
)
def test_a_value_is_read_back_as_it_was(value):
    assert parse_yaml(written("", [Line("a.b", value, "because # of: it")])) == {"a": {"b": value}}
    assert "\n" not in scalar(value)


def test_sections_are_nested_and_a_later_line_takes_the_place_of_an_earlier_one():
    lines = [Line("a", 1), Line("b.c", 2, "first"), Line("b.d.e", 3), Line("b.c", 4, "second")]
    assert tree_of(lines) == {"a": 1, "b": {"c": 4, "d": {"e": 3}}}
    assert written("head\nof it", lines) == ("# head\n# of it\na: 1\nb:\n  c: 4  # second\n  d:\n    e: 3\n")


def test_a_comment_that_does_not_fit_stands_above_its_setting():
    text = written("", [Line("a.b", "x" * WIDTH, "long")])
    assert text == f"a:\n  # long\n  b: {'x' * WIDTH}\n"


def test_a_reason_of_several_lines_ends_no_comment():
    assert parse_yaml(written("", [Line("a", 1, "columns: x\ny: 2")])) == {"a": 1}
