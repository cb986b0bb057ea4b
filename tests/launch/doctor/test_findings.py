"""Findings as lines, as JSON and as an exit code."""

import io
import json

from rich.console import Console

from actors.errors import RunError, UsageError
from launch.doctor.findings import Finding, as_json, error, exit_code, ok, refusal, show, verdict, warning

GOOD, ODD, BAD = ok("python", "3.11"), warning("disk", "nearly full", "free space"), error("gpus", "none", "buy one")


def test_only_an_error_gives_an_exit_code():
    assert exit_code([GOOD, ODD]) == 0
    assert exit_code([GOOD, BAD, ODD]) == 1
    assert exit_code([]) == 0


def test_json_counts_and_lists_everything():
    read = json.loads(as_json([GOOD, ODD, BAD]))
    assert (read["ok"], read["errors"], read["warnings"]) == (False, 1, 1)
    assert read["findings"][1] == {"name": "disk", "level": "warning", "text": "nearly full", "remedy": "free space"}
    assert json.loads(as_json([GOOD, ODD]))["ok"] is True


def test_a_line_shows_the_level_the_name_and_below_it_what_to_do():
    written = io.StringIO()
    show(ODD, Console(file=written, width=200))
    first, second = written.getvalue().splitlines()
    assert first.split() == ["warning", "disk", "nearly", "full"]
    assert second.strip() == "free space"
    assert first.index("nearly") == second.index("free")


def test_the_verdict_counts_errors_and_warnings():
    assert verdict([GOOD, GOOD]) == "all 2 checks passed"
    assert verdict([BAD, BAD, ODD, GOOD]) == "2 errors, 1 warning"


def test_an_error_of_another_part_is_split_into_what_and_what_to_do():
    assert refusal("model", UsageError("a; b is wrong; lower it")) == Finding(
        "model", "error", "a; b is wrong", "lower it"
    )
    assert refusal("model", RunError("it is wrong")) == Finding("model", "error", "it is wrong", "")
    rows = UsageError("2 rows are malformed:\n  p.jsonl:1: null; no\nCorrect them.")
    assert refusal("prompts", rows).remedy == "Correct them."
