"""The rows that starts are measured with, and the table of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.data.config import PromptConfig
from actors.data.rows import read_prompt_rows
from benchmarks.prompts import KINDS, memory, peak, table, write_rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_at_every_call_and_can_be_read(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", kind, 3)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = list(read_prompt_rows(PromptConfig(source=str(tmp_path / "a.jsonl"), answer_field="answer")))
    assert [row.columns["answer"] for row in rows] == ["0", "1", "2"]
    assert len({json.dumps(row.columns["prompt"]) for row in rows}) == 3


def test_the_peak_is_what_was_held_for_a_while() -> None:
    before = memory()["RssAnon"]
    with peak() as most:
        held = b"x" * (64 << 20)
        while most["RssAnon"] < before + 60:
            assert held
        del held
    assert before + 60 < most["RssAnon"] < before + 200


def test_a_row_of_the_table_is_a_start() -> None:
    start = {
        "kind": "chats",
        "start": "from the cache",
        "seconds": 1.26,
        "rows_per_second": 793651,
        "tokens_mb": 400,
        "peak_mb": 1052,
        "held_mb": 46,
        "processes_peak_mb": 0,
        "microseconds_per_prompt": 15.1,
    }
    assert table([start]).splitlines()[-1] == "| chats | from the cache | 1.3 | 793,651 | 400 | 1,052, 46 | 0 | 15.1 |"
