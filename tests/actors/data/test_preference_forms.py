"""Public layouts end in the same pairs, and a value that a layout does not allow is a malformed row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from actors.data.preference_forms import Halves, meant_role, pairs_of
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow, parse_preference
from actors.data.preferences import collect_preferences
from actors.errors import UsageError

USER, SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {**said(""), "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "7"}


def arena(winner: str) -> dict[str, Any]:
    return {"conversation_a": [USER, said("a")], "conversation_b": [USER, said("b")], "winner": winner}


CASES: list[tuple[dict[str, Any], list[tuple[Any, str, str, float]]]] = [
    (
        {"conversations": [turn("system", "s"), turn("human", "q")], "chosen": turn("gpt", "a"),
         "rejected": turn("gpt", "b")},
        [([SYSTEM, USER], "a", "b", 1.0)],
    ),
    ({"conversations": [turn("human", "q")], "chosen": "a", "rejected": "b"}, [([USER], "a", "b", 1.0)]),
    (
        {"chosen": [turn("human", "q"), turn("gpt", "a")], "rejected": [turn("human", "q"), turn("gpt", "b")]},
        [([USER], "a", "b", 1.0)],
    ),
    (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        [("q", "b", "a", 1.0)],
    ),
    ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": "0"}, [("q", "a", "b", 1.0)]),
    ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 9}, [("q", "a", "b", 1.0)]),
    ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 1}, [("q", "b", "a", 1.0)]),
    (arena("model_a"), [([USER], "a", "b", 1.0)]),
    (arena("model_b"), [([USER], "b", "a", 1.0)]),
    (arena("tie"), [([USER], "a", "b", 0.5)]),
    (arena("tie (bothbad)"), [([USER], "a", "b", 0.5)]),
    (
        {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        [("q", "b", "a", 1.0), ("q", "b", "c", 1.0)],
    ),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [0.5, 0.25]}, [("q", "a", "b", 1.0)]),
    (
        {"prompt": "q", "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}]},
        [("q", "b", "a", 1.0)],
    ),
    (
        {"instruction": "q", "completions": [{"response": "a", "overall_score": 7.5},
                                             {"response": "b", "overall_score": 4.0}]},
        [("q", "a", "b", 1.0)],
    ),
    ({"prompt": "q", "system": "s", "chosen": "a", "rejected": "b"}, [([SYSTEM, USER], "a", "b", 1.0)]),
    ({"prompt": [SYSTEM, USER], "system": "s", "chosen": "a", "rejected": "b"}, [([SYSTEM, USER], "a", "b", 1.0)]),
    (
        {"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        [([USER], "a", "b", 1.0)],
    ),
    (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "\n\nHuman: q\n\nAssistant: a",
         "rejected": "\n\nHuman: q\n\nAssistant: b"},
        [([USER], "a", "b", 1.0)],
    ),
    (
        {"conversations": [turn("human", "x")], "chosen": "Human: q\n\nAssistant: a",
         "rejected": "Human: q\n\nAssistant: b"},
        [([USER], "a", "b", 1.0)],
    ),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "answers": ["unread"]}, [("q", "a", "b", 1.0)]),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "expected"), CASES)
def test_every_public_layout_is_read_from_lines_and_from_tables(
    columns: dict[str, Any], expected: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(columns) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([columns]), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.parquet"):
        found = collect_preferences(str(tmp_path / name))
        assert (found.rows, found.problems) == ([PreferenceRow(*row) for row in expected], []), name


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 2}, "wrong_type", "allowed are 0"),
        (arena("model_c"), "wrong_type", "'winner' is 'model_c'; allowed are 'model_a', 'model_b', 'tie'"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [1]}, "wrong_type", "not two lists of one length"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]}, "wrong_type", "ranked equally"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "wrong_type", "a value that is no number"),
        ({"conversations": 3, "chosen": "a", "rejected": "b"}, "wrong_type", "'conversations' is of type int"),
        ({"conversations": [turn("alien", "q")], "chosen": "a", "rejected": "b"}, "wrong_type", "is from 'alien'"),
        ({"conversations": [turn("human", "q")], "chosen": 3, "rejected": 4}, "wrong_type", "'chosen' is of type int"),
        ({"conversations": [{"from": "human"}], "chosen": "a", "rejected": "b"}, "wrong_type", "is no turn"),
        ({"prompt": "q", "answers": ["a", "b"]}, "wrong_type", "no list of objects with 'answer' and 'rank'"),
    ],
)
def test_a_value_that_a_layout_does_not_allow_is_a_malformed_row(
    columns: dict[str, Any], reason: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(columns) + "\n")
    found = collect_preferences(str(tmp_path / "p.jsonl"))
    assert found.rows == []
    (problem,) = found.problems
    assert problem.reason == reason
    assert message in problem.message


def test_tool_calls_tools_and_reasoning_are_kept_in_every_layout_of_chats() -> None:
    tools, start = [{"name": "f"}], [USER, CALLING, RESULT]
    bare = {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])}
    thinking = {**said("a"), "reasoning_content": "hm"}
    kept = parse_preference({"prompt": [USER], "chosen": [bare], "rejected": [thinking], "tools": json.dumps(tools)})
    assert kept == PreferenceRow([USER], CALLING, thinking, 1.0, tools)
    whole = {"chosen": [*start, said("a")], "rejected": [*start, said("b")], "tools": tools}
    assert parse_preference(whole) == PreferenceRow(start, "a", "b", 1.0, tools)
    arena = {"conversation_a": whole["chosen"], "conversation_b": whole["rejected"], "winner": "model_b"}
    (columns,) = pairs_of({**arena, "tools": tools})
    assert parse_preference(columns) == PreferenceRow(start, "b", "a", 1.0, tools)
    halves = Halves()
    assert not halves.add({"prompt": start, "completion": "b", "label": False, "tools": tools}, "1")
    assert not halves.add({"prompt": start, "completion": "c", "label": True}, "2")  # without tools: another prompt
    (columns,) = halves.add({"prompt": start, "completion": [CALLING], "label": True, "tools": tools}, "3")
    assert columns["tools"] == tools
    assert columns["chosen"] == [CALLING]


@pytest.mark.parametrize(
    ("columns", "reason", "message"),
    [
        ({"prompt": [USER], "chosen": [{**said("a"), "function_call": {"name": "f"}}], "rejected": [said("b")]},
         "unread_content", "chosen[0] has 'function_call'; write it as 'tool_calls'"),
        ({"prompt": [USER], "chosen": [{**said("a"), "tool_calls": ["f"]}], "rejected": [said("b")]},
         "wrong_type", "chosen[0].tool_calls holds something that is no object"),
        ({"prompt": [USER], "chosen": [{**said("a"), "tool_calls": "{"}], "rejected": [said("b")]},
         "wrong_type", "chosen[0].tool_calls is a string that cannot be read as JSON"),
        ({"prompt": [{**USER, "name": 7}], "chosen": "a", "rejected": "b"},
         "wrong_type", "prompt[0].name is of type int, not a text"),
        ({"prompt": [{"role": "tool", "content": None}], "chosen": "a", "rejected": "b"},
         "wrong_type", "prompt[0] is not a chat message"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"name": "f"}]},
         "unread_content", "'tools' stands beside a text prompt"),
        ({"prompt": [USER], "chosen": "a", "rejected": "b", "tools": {"name": "f"}},
         "wrong_type", "'tools' is of type dict, not a list of tools"),
        ({"prompt": [USER], "chosen": [said(" ")], "rejected": [said("b")]}, "empty_response", "'chosen' is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
         "contrary_scores", "'score_chosen' is below 'score_rejected'"),
        ({"prompt": [SYSTEM, USER], "system": "t", "chosen": "a", "rejected": "b"},
         "bad_conversation", "'system' differs"),
        ({"prompt": "other", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
         "bad_conversation", "'prompt' differs from what comes before"),
    ],
)  # fmt: skip
def test_content_that_cannot_be_kept_is_refused_by_its_reason(
    columns: dict[str, Any], reason: str, message: str
) -> None:
    with pytest.raises(MalformedPreferenceError) as caught:
        parse_preference(columns)
    assert caught.value.reason == reason
    assert message in str(caught.value)


def test_columns_of_any_name_are_read_under_the_names_that_are_told(tmp_path: Path) -> None:
    row = {"question": "q", "good": "a", "bad": "b", "p": 0.75, "prompt": "unread", "chosen": "unread"}
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "probability": "p"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.parquet"):
        found = collect_preferences(str(tmp_path / name), columns=columns)
        assert found.rows == [PreferenceRow("q", "a", "b", 0.75)]
    with pytest.raises(UsageError, match=r"has no column 'gud' \(columns\); did you mean 'good'"):
        collect_preferences(str(tmp_path / "p.parquet"), columns={**columns, "chosen": "gud"})


def test_of_ranked_responses_all_that_differ_make_pairs_or_the_best_and_the_worst(tmp_path: Path) -> None:
    ranked = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [2, 9, 2, 1]}
    (tmp_path / "p.jsonl").write_text(json.dumps(ranked) + "\n")
    every = collect_preferences(str(tmp_path / "p.jsonl")).rows
    pairs = {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")}
    assert {(row.chosen, row.rejected) for row in every} == pairs
    assert len(every) == len(pairs)
    extremes = collect_preferences(str(tmp_path / "p.jsonl"), ranked_pairs="best_worst").rows
    assert extremes == [PreferenceRow("q", "b", "d")]


@pytest.mark.parametrize(
    ("role", "meant"),
    [("usr", "user"), ("User", "user"), ("human", "user"), ("gpt", "assistant"), ("assitant", "assistant")]
    + [("sys", "system"), ("tools", "tool")]
    + [(role, None) for role in ("user", "system", "tool", "developer", "ipython", "narrator", "agent", "critic")],
)
def test_a_misspelt_role_is_told_from_one_that_only_a_template_knows(role, meant):
    assert meant_role(role) == meant


def half(prompt: Any, completion: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_kto_s_rows_make_pairs_with_rows_of_the_same_prompt_and_the_other_label(tmp_path: Path) -> None:
    rows = [half("q", "a", True), half("r", "x", False), half("q", "b", True), half("q", "c", False)]
    rows += [half("q", "d", False), half("r", "y", False), half("r", "z", True), half("q", "e", True)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.parquet"):
        found = collect_preferences(str(tmp_path / name))
        expected = [PreferenceRow("q", "a", "c"), PreferenceRow("q", "b", "d"), PreferenceRow("r", "z", "x")]
        assert found.rows == expected, name
        assert [problem.reason for problem in found.problems] == ["no_pair", "no_pair"]
    assert {
        problem.place.rpartition(":")[2] for problem in collect_preferences(str(tmp_path / "p.jsonl")).problems
    } == {
        "6",
        "8",
    }
    chat = [USER]
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps(half(chat, text, label)) + "\n" for text, label in (("a", 0), ("b", 1)))
    )
    assert collect_preferences(str(tmp_path / "c.jsonl")).rows == [PreferenceRow(chat, "b", "a")]
    (tmp_path / "w.jsonl").write_text(json.dumps(half("q", "a", "yes")) + "\n")
    (problem,) = collect_preferences(str(tmp_path / "w.jsonl")).problems
    assert (problem.reason, "allowed are True, False" in problem.message) == ("wrong_type", True)
