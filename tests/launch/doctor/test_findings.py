"""Findings as lines, as JSON and as an exit code."""

import io
import json

from rich.console import Console

from actors.errors import RunError, UsageError
from launch.doctor.findings import Finding, from_exception, graded, report, show

GOOD = graded("python", "3.11", "unused")
ODD = graded("disk", "nearly full", "free space", doubtful=True)
BAD = graded("gpus", "none", "buy one", fatal=True, doubtful=True)


def test_the_worst_condition_decides_the_level_and_only_problems_have_a_remedy():
    assert Finding("python", "ok", "3.11", "") == GOOD
    assert Finding("disk", "warning", "nearly full", "free space") == ODD
    assert Finding("gpus", "error", "none", "buy one") == BAD


def test_only_an_error_gives_an_exit_code(capsys):
    assert report([GOOD, ODD]) == 0
    assert report([GOOD, BAD, ODD]) == 1
    assert report([]) == 0


def test_json_counts_and_lists_everything(capsys):
    assert report([GOOD, ODD, BAD], as_json=True) == 1
    read = json.loads(capsys.readouterr().out)
    assert (read["ok"], read["errors"], read["warnings"]) == (False, 1, 1)
    assert read["findings"][1] == {"name": "disk", "level": "warning", "text": "nearly full", "remedy": "free space"}
    assert report([GOOD, ODD], as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_a_line_shows_the_level_the_name_and_below_it_what_to_do():
    written = io.StringIO()
    show(ODD, Console(file=written, width=200))
    first, second = written.getvalue().splitlines()
    assert first.split() == ["warning", "disk", "nearly", "full"]
    assert second.strip() == "free space"
    assert first.index("nearly") == second.index("free")


def test_the_last_line_counts_errors_and_warnings(capsys):
    report([GOOD, GOOD])
    assert capsys.readouterr().out.splitlines()[-1] == "all 2 checks passed"
    report([BAD, BAD, ODD, GOOD])
    assert capsys.readouterr().out.splitlines()[-1] == "2 errors, 1 warning"


def test_an_error_of_another_part_is_split_into_what_and_what_to_do():
    assert from_exception("model", UsageError("a; b is wrong; lower it")) == Finding(
        "model", "error", "a; b is wrong", "lower it"
    )
    assert from_exception("model", RunError("it is wrong")) == Finding("model", "error", "it is wrong", "")
    rows = UsageError("2 rows are malformed:\n  p.jsonl:1: null; no\nCorrect them.")
    assert from_exception("prompts", rows).remedy == "Correct them."
