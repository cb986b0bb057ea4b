"""Pairs on disk: what was added comes back, and what is written is what the rows themselves would be written as."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from actors.data.preference_filters import split_of
from actors.data.preference_layouts import PreferenceRow, text_of
from actors.data.preferences import read_preferences
from actors.errors import UsageError
from launch.data import store as module
from launch.data.store import PairStore

TEXTS = [PreferenceRow(f"prompt  {n}", "a" * n + "é", f" b\n{n}", n / 10) for n in range(10)]
CHATS = [PreferenceRow([{"role": "user", "content": f"é {n}"}], f"c {n}", "d", 0.5) for n in range(10)]
CALL = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": {"a": [1, None], "é": "2"}}}
CALLED = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "sum"},
]
WITH_CALLS = [
    PreferenceRow(CALLED, "three", "four", 0.5, [{"name": "sum"}]),
    PreferenceRow(CALLED[:1], {**CALLED[1], "reasoning_content": "hm"}, "four"),
    *CHATS,
]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 4)


def filled(rows: list[PreferenceRow]) -> PairStore:
    store = PairStore(0.3, 7)
    for row in rows:
        store.add(row)
    return store


@pytest.mark.parametrize("rows", [TEXTS, CHATS, [*TEXTS, *CHATS], [], WITH_CALLS])
def test_rows_come_back_in_order_with_what_decides_on_them(rows: list[PreferenceRow]) -> None:
    store = filled(rows)
    assert list(store.rows(range(len(rows)))) == rows
    assert list(store.rows([0, 3, 9][: len(rows)])) == [rows[number] for number in [0, 3, 9][: len(rows)]]
    assert store.sides == [split_of(row, 0.3, 7) for row in rows]
    assert len(set(store.keys)) == len(rows)
    prompts = [r.prompt if isinstance(r.prompt, str) else "".join(m["content"] for m in r.prompt) for r in rows]
    lengths = [(len(p), len(text_of(r.chosen)), len(text_of(r.rejected))) for p, r in zip(prompts, rows, strict=True)]
    assert list(store.lengths) == [length for row in lengths for length in row]


@pytest.mark.parametrize("numbers", [[], [0], [3, 4, 9], list(range(10))], ids=str)
@pytest.mark.parametrize("rows", [TEXTS, CHATS, WITH_CALLS], ids=["texts", "chats", "calls"])
def test_chosen_rows_are_written_and_read_back(tmp_path: Path, rows: list[PreferenceRow], numbers: list[int]) -> None:
    wanted = [rows[number] for number in numbers]
    path = tmp_path / "train.parquet"
    filled(rows).write(path, numbers)
    table = pyarrow.parquet.read_table(path)
    columns = ["prompt", "chosen", "rejected", "probability", "id"]
    assert table.column_names == (columns if all(row.is_plain for row in wanted) else [*columns, "tools"])
    assert table.column("id").to_pylist() == [row.id for row in wanted]
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
    if wanted:
        assert read_preferences(str(path)) == wanted


def test_a_call_and_a_tool_tell_rows_apart() -> None:
    (call, row), other = WITH_CALLS[:2], {**CALL, "function": {"name": "sum", "arguments": {"a": [1], "é": "2"}}}
    prompts = [call.prompt, [CALLED[0], {**CALLED[1], "tool_calls": [other]}, CALLED[2]]]
    rows = [PreferenceRow(prompt, "a", "b", tools=tools) for prompt in prompts for tools in (None, [{"name": "sum"}])]
    rows += [row, PreferenceRow(row.prompt, {**CALLED[1], "tool_calls": [other]}, "four")]
    store = filled(rows)
    assert len(set(store.keys)) == len({each.id for each in rows}) == len(rows) == 6


def test_two_kinds_of_prompts_are_refused_if_both_are_kept() -> None:
    store = filled([*TEXTS, *CHATS])
    store.check_one_kind(range(10))
    store.check_one_kind([12, 15])
    with pytest.raises(UsageError, match="its prompts are 2 texts and 1 chat, and one column"):
        store.check_one_kind([0, 9, 10])
