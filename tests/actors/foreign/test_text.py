"""Text from outside: what a terminal would obey is escaped, keys are masked, lengths and kinds are bounded."""

from collections import Counter

import pytest

from actors.foreign.text import LONGEST, MOST_KINDS, OTHER, count_reason, first_line, kind_of, many, shown
from tests.timing import assert_quick


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("user\u202eexe.txt\u2066\u2069", r"user\u202eexe.txt\u2066\u2069"),
        ("\ud800 alone", r"\ud800 alone"),
        ("\u2028\u2029\ufeff\U000e0041", r"\u2028\u2029\ufeff\U000e0041"),
        ("Grüße, 你好, 🙂, [red]", "Grüße, 你好, 🙂, [red]"),
    ],
)
def test_what_a_terminal_obeys_is_escaped_and_the_rest_is_kept(text: str, safe: str) -> None:
    assert shown(text) == safe
    assert shown(text).isprintable()


def test_line_breaks_and_tabs_are_kept_where_they_are_wanted() -> None:
    assert shown("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


def test_a_text_is_cut_and_says_so() -> None:
    assert shown("x" * 10, 10) == "x" * 10
    assert shown("x" * 11, 10) == "x" * 9 + "…"
    assert len(shown("\x1b" * 200_000)) == LONGEST


def test_no_part_of_a_key_is_left_at_the_cut() -> None:
    assert "a1B2" not in shown("word " * 3 + "hf_" + "a1B2" * 10, 30)


def test_a_key_of_the_environment_is_masked_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "q7w8e9r0t1y2u3")
    monkeypatch.setenv("MODE_TOKEN", "ordinary-words")
    monkeypatch.setenv("PWD", "/home/ann/2026-runs")
    assert shown("key q7w8e9r0t1y2u3, q7w8e9****, ordinary-words in /home/ann/2026-runs") == (
        "key ***, *******, ordinary-words in /home/ann/2026-runs"
    )


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000,
        "://" * 60_000,
        "eyJ-" * 50_000,
        "a=" * 100_000,
        "token=" * 30_000,
        "a:b@" * 50_000,
        "a-" * 100_000,
    ],
)
def test_no_text_takes_long_to_show_or_to_count(text: str) -> None:
    assert_quick(lambda: (shown(text), kind_of(text)), 1.0)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no verdict on prompt 'rows.jsonl:17'", "no verdict on prompt #"),
        ("the judge did not answer within 60 s", "the judge did not answer within # s"),
        ("status 503: overloaded 17", "status 503: overloaded #"),
        ("request 3f2a9c01-aaaa-bbbb-cccc-121212121212 failed", "request # failed"),
        ("at 0x7f12ab34, 1.5e-3", "at #, #"),
        ("KeyError: 'gold_2'", "KeyError: 'gold_2'"),
        ("'str' object has no attribute 'text'", "'str' object has no attribute 'text'"),
        ("name 'scor' is not defined", "name 'scor' is not defined"),
        ("f() got an unexpected keyword argument 'k'", "f() got an unexpected keyword argument 'k'"),
        ("KeyError: 'prompt 17 of many'", "KeyError: #"),
        ("KeyError: '" + "a" * 41 + "'", "KeyError: #"),
        ("the judge's engine isn't there", "the judge's engine isn't there"),
        ("generator died", "generator died"),
        ("a\n  b\x1b", "a b\\x1b"),
    ],
)
def test_a_kind_is_the_reason_without_what_makes_it_unique(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind
    assert kind_of(kind) == kind


def test_a_judge_that_raises_another_text_each_time_makes_a_bounded_ledger() -> None:
    counts: Counter[str] = Counter()
    for number in range(200):
        count_reason(counts, "".join(chr(97 + number // 26**place % 26) for place in range(3)) + "z" * 20_000)
    assert sum(counts.values()) == 200
    assert len(counts) == MOST_KINDS + 1
    assert counts[OTHER] == 200 - MOST_KINDS
    assert max(map(len, counts)) <= 120


def test_a_number_has_its_noun_in_the_right_form() -> None:
    """Messages spoke of 1 files, 1 rows and 1 updates."""
    assert [many(count, "file") for count in (0, 1, 2, 2000)] == ["0 files", "1 file", "2 files", "2,000 files"]
    assert many(2, "copy", "copies") == "2 copies"


def test_a_model_that_brings_code_is_told_as_such_wherever_the_reason_stands():
    """transformers says what it wants in its second line."""
    error = ValueError("The repository m contains custom code.\nPlease pass the argument `trust_remote_code=True`.")
    assert first_line(error) == "it brings code of its own, which Offbeat never runs (trust_remote_code)"
    assert first_line(ValueError("A size is wrong.\nMore of it")) == "A size is wrong"
