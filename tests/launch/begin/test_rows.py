"""Which column is the prompt and which the answer, and what is said if that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.begin import rows
from launch.begin.rows import answer_column, prompt_column, read_sample


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(*values: dict, name: str = "p.jsonl"):
        Path(name).write_text("".join(f"{json.dumps(each)}\n" for each in values))
        return read_sample(name)

    return write


@pytest.mark.parametrize("name", [*rows.PROMPTS, *rows.LIKELY_PROMPTS])
def test_a_prompt_s_column_is_known_by_its_name(data, name):
    assert prompt_column(data({"id": 1, name: "x"}), None) == name


def test_a_likely_name_counts_only_without_a_certain_one(data):
    assert prompt_column(data({"text": "x", "question": "y"}), None) == "question"


def test_answer_stands_before_other_names_of_answers(data):
    assert answer_column(data({"problem": "x", "solution": "long", "answer": "7"}), None) == "answer"


def test_columns_may_be_named(data):
    sample = data({"prompt": "x", "question": "y", "solution": "s", "target": "t"})
    assert (prompt_column(sample, "question"), answer_column(sample, "target")) == ("question", "target")


def test_only_the_first_rows_are_read_and_that_is_known(data, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 2)
    sample = data({"prompt": "1"}, {"prompt": "2"}, {"prompt": "3"})
    assert (len(sample.rows), sample.whole) == (2, False)
    assert data({"prompt": "1"}, {"prompt": "2"}).whole


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        ({"a": "x", "b": "y"}, None, "it has: a, b; pass --prompt COLUMN"),
        ({"prompt": "x", "question": "y"}, None, "could mean: prompt, question; pass --prompt prompt"),
        ({"prompt": "x"}, "ask", "--prompt ask is no column of --data p.jsonl; choose one of: prompt"),
    ],
)
def test_a_column_that_cannot_be_told_is_a_wrong_request(data, row, wanted, message):
    with pytest.raises(UsageError) as refused:
        prompt_column(data(row), wanted)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_several_columns_of_answers_are_a_wrong_request(data):
    with pytest.raises(UsageError, match="could mean: target, solution; pass --answer target"):
        answer_column(data({"prompt": "x", "solution": "s", "target": "t"}), None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothere.jsonl", r"--data source 'nothere.jsonl' does not exist \(looked in .*\); give an existing path"),
        ("sub/nothere", r"'sub/nothere' .*give an existing path"),
        ("prompts", "is not a file or directory"),
        ("notes.txt", "ends in '.txt'; allowed are"),
        ("empty.jsonl", "--data empty.jsonl holds no rows; give a file with at least one"),
        ("wrong.jsonl", r"--data wrong.jsonl: .*wrong.jsonl:1: .*; correct the rows"),
        ("world", "run `offbeat train embedded`"),
    ],
)
def test_data_that_cannot_be_read_are_a_wrong_request(data, source, message):
    Path("sub").mkdir()
    Path("notes.txt").touch()
    Path("empty.jsonl").touch()
    Path("wrong.jsonl").write_text("no json\n")
    with pytest.raises(UsageError, match=message):
        read_sample(source)


def test_a_hub_name_that_cannot_be_loaded_leaves_guesses_and_says_so(data):
    sample = read_sample("owner/of-no-data-set")
    assert (prompt_column(sample, None), prompt_column(sample, "question"), sample.rows) == ("prompt", "question", ())
    assert "cannot be loaded" in sample.notes[0]


def test_a_chat_that_a_cell_holds_as_json_is_a_chat(data):
    chat = json.dumps([{"role": "user", "content": "x"}])
    assert rows.is_chat(data({"prompt": chat}), "prompt")
    assert not rows.is_chat(data({"prompt": "[{'role': 'user'}]"}), "prompt")
