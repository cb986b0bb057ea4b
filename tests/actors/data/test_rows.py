"""Rows as they are found in files, directories, saved data sets and hubs, and sources that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from actors.data.batches import Row
from actors.data.config import PromptConfig
from actors.data.rows import held_out, read_prompt_rows
from actors.errors import UsageError


def rows_of(path: Path | str, **settings: Any) -> list[Row]:
    return list(read_prompt_rows(PromptConfig(source=str(path), **settings)))


def prompts_of(path: Path | str, **settings: Any) -> list[Any]:
    return [row.columns["prompt"] for row in rows_of(path, **settings)]


def write(path: Path, *prompts: str) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def test_rows_name_file_and_line_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n\n   \n{"prompt": "b"}')
    rows = rows_of(file)
    assert [(row.id, row.place) for row in rows] == [("p.jsonl:1", f"{file}:1"), ("p.jsonl:4", f"{file}:4")]
    assert [row.columns for row in rows] == [{"prompt": "a"}, {"prompt": "b"}]


def test_prompts_that_come_with_offbeat_are_read_by_name_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = rows_of("instructions", prompt_field="messages", answer_field="checks")
    assert [row.id for row in rows] == [f"instructions.jsonl:{line}" for line in range(1, 193)]
    assert not [row.place for row in rows if row.problem]


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert prompts_of(file) == ["a"]


def test_an_unreadable_row_does_not_hide_the_ones_around_it(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": \n\xff\xfe\n[' + b"[" * 100_000 + b'\n3\n{"prompt": "b"}\n')
    problems = [row.problem for row in rows_of(file)]
    assert [problem and problem.split(":")[0] for problem in problems] == [
        None,
        "not JSON",
        "not UTF-8",
        "not JSON",
        "a JSON int; each line must be one JSON object",
        None,
    ]


def test_tables_are_read_with_the_wanted_columns_only(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a", "b", "c"], "answer": [1, 2, 3], "image": [b"x", b"y", b"z"]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    rows = rows_of(tmp_path / "p.parquet", answer_field="answer")
    assert [row.columns for row in rows] == [{"prompt": p, "answer": a} for p, a in (("a", 1), ("b", 2), ("c", 3))]
    assert [row.id for row in rows] == ["p.parquet:0", "p.parquet:1", "p.parquet:2"]


def test_a_directory_is_read_file_by_file_in_name_order(tmp_path: Path) -> None:
    write(tmp_path / "part-1.jsonl", "c")
    write(tmp_path / ".hidden.jsonl", "no")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "other": [1, 2]}), tmp_path / "part-0.parquet")
    (tmp_path / "README.md").write_text("not data")
    assert prompts_of(tmp_path) == ["a", "b", "c"]
    assert [row.id for row in rows_of(tmp_path)] == ["part-0.parquet:0", "part-0.parquet:1", "part-1.jsonl:1"]


def test_a_directory_with_splits_gives_only_the_wanted_one(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", "a")
    write(tmp_path / "train-00001-of-00002.jsonl", "b")
    write(tmp_path / "test.jsonl", "c")
    assert prompts_of(tmp_path) == ["a", "b"]
    assert prompts_of(tmp_path, split="test") == ["c"]
    with pytest.raises(UsageError, match=r"no file of prompts\.split 'validation'.*'test\.jsonl'"):
        rows_of(tmp_path, split="validation")


def test_a_directory_of_test_data_alone_is_not_taken_for_training_data(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", "a")
    with pytest.raises(UsageError, match=r"no file of prompts\.split 'train'"):
        rows_of(tmp_path)


def test_a_saved_data_set_is_read_with_and_without_splits(tmp_path: Path) -> None:
    plain = datasets.Dataset.from_dict({"prompt": ["a", "b"], "n": [1, 2]})
    plain.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(train=plain, test=datasets.Dataset.from_dict({"prompt": ["c"]})).save_to_disk(
        tmp_path / "dict"
    )
    assert prompts_of(tmp_path / "plain") == ["a", "b"]
    assert [(row.id, row.columns) for row in rows_of(tmp_path / "dict", split="test")] == [("dict:0", {"prompt": "c"})]
    with pytest.raises(UsageError, match=r"no prompts\.split 'tset'; did you mean 'test'"):
        rows_of(tmp_path / "dict", split="tset")


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UsageError, match=r"looks written by datasets\.save_to_disk but cannot be loaded"):
        rows_of(tmp_path)


def test_a_hub_name_is_loaded_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"prompt": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert prompts_of("owner/name:main", split="test") == ["a"]
    assert prompts_of("name") == ["a"]
    assert asked == [(("owner/name", "main"), {"split": "test"}), (("name", None), {"split": "train"})]


def test_a_hub_data_set_that_cannot_be_had_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"'owner/name' is not a file or directory.*no route to host"):
        rows_of("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"cannot be loaded: HF_HUB_OFFLINE is set"):
        rows_of("owner/name")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "./missing", "a/b/c", "/nowhere/at/all"])
def test_a_missing_path_is_refused_without_asking_a_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match=r"does not exist"):
        rows_of(name)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.xml").write_text("prompt\na\n")
    with pytest.raises(UsageError, match=r"ends in '\.xml'; allowed are \.jsonl"):
        rows_of(tmp_path / "p.xml")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UsageError, match=r"p\.parquet' is not a readable Parquet file"):
        rows_of(tmp_path / "p.parquet")


def test_a_missing_table_column_suggests_the_nearest_names(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["1"]}), tmp_path / "p.parquet")
    with pytest.raises(
        UsageError, match=r"no column 'questions' .*did you mean 'question'.*it has: 'question', 'answer'"
    ):
        rows_of(tmp_path / "p.parquet", prompt_field="questions")
    with pytest.raises(UsageError, match=r"no column 'anser' \(prompts\.answer_field\); did you mean 'answer'"):
        rows_of(tmp_path / "p.parquet", prompt_field="question", answer_field="anser")


def test_a_key_is_on_the_side_that_its_hash_says_whatever_the_other_rows_are() -> None:
    """Runs of other versions resume with the same split, so the sides below must never change."""
    assert [held_out(bytes([i, 0, 0, 0, 7, 0, 0, 0]), 0.5, "little") for i in range(10)] == [True] * 7 + [False] * 3
    sides = [held_out(f"{i}:1:4".encode(), 0.5) for i in range(10)]
    assert sides == [True, False, True, False, False, False, False, True, True, True]
    assert not any(held_out(bytes([i]), 0.0) for i in range(100))
