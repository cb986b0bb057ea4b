"""Preferences in files and back, and as token ids: special tokens, templates, chats, limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from actors import world
from actors.data import preferences as module
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.preferences import (
    PreferenceTokens,
    TokenLimits,
    collect_preferences,
    preference_tokens,
    read_preferences,
    read_samples,
)
from actors.errors import UsageError
from actors.world import BOS, EOS, SEP

CHAT = [{"role": "user", "content": "q"}]


def pair(prompt: Any = "q", chosen: str = "a", rejected: str = "b", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lines_tables_saved_data_sets_and_directories_are_read_alike(tmp_path: Path) -> None:
    rows = [pair(), pair("q2", probability=0.5)]
    expected = [PreferenceRow("q", "a", "b", 1.0), PreferenceRow("q2", "a", "b", 0.5)]
    table = datasets.Dataset.from_list([{"unread": 1, "probability": None, **row} for row in rows])
    table.to_parquet(tmp_path / "p.parquet")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train-0.jsonl", rows[0])
    write(tmp_path / "folder" / "train-1.jsonl", rows[1])
    write(tmp_path / "folder" / "test.jsonl", pair("q3"))
    for source in (write(tmp_path / "p.jsonl", *rows), tmp_path / "p.parquet", tmp_path / "saved", tmp_path / "folder"):
        assert read_preferences(str(source)) == expected, source
    assert read_preferences(str(tmp_path / "saved"), "test") == expected[1:]


def test_each_malformed_row_is_counted_by_its_reason_and_named_by_its_place(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    good = json.dumps(pair()).encode()
    lines = [good, b"{", b'{"prompt": "\xff"}', b"", b"[]", b'{"prompt": "q"}', good.replace(b'"b"', b'"a"'), good]
    file.write_bytes(b"\n".join(lines))
    collected = collect_preferences(str(file))
    assert collected.rows == 2 * [PreferenceRow("q", "a", "b")]
    assert collected.places == [f"{file}:1", f"{file}:8"]
    assert [(problem.place, problem.reason) for problem in collected.problems] == [
        (f"{file}:2", "not_json"),
        (f"{file}:3", "wrong_encoding"),
        (f"{file}:5", "not_json"),
        (f"{file}:6", "missing_column"),
        (f"{file}:7", "identical_pair"),
    ]
    assert read_preferences(str(file), on_malformed="skip") == collected.rows
    with pytest.raises(UsageError) as caught:
        read_preferences(str(file), section="preferences.")
    first, second, *_, last = str(caught.value).splitlines()
    assert first == f"5 of 7 rows of preferences.source '{file}' are malformed; the first 5:"
    assert second.startswith(f"  {file}:2: not JSON")
    assert last == "Correct them, or set preferences.on_malformed to 'skip' to leave them out."


def test_chats_that_cells_hold_as_json_are_chats(tmp_path: Path) -> None:
    asked, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
    )
    row = {"chosen": json.dumps([asked, good]), "rejected": json.dumps([asked, bad])}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "chosen": "[{'role': 'user'}]"}))
    collected = collect_preferences(str(tmp_path / "p.jsonl"))
    assert collected.rows == [PreferenceRow([asked], "a", "b")]
    assert [problem.reason for problem in collected.problems] == ["not_json"]


def test_a_renamed_column_that_is_not_there_makes_a_row_malformed(tmp_path: Path) -> None:
    """A row with a column of the name that it is read under was kept, and the given name ignored."""
    (tmp_path / "p.jsonl").write_text(json.dumps(pair()) + "\n" + json.dumps({**pair(), "q": "other"}) + "\n")
    collected = collect_preferences(str(tmp_path / "p.jsonl"), columns={"prompt": "q"})
    assert [row.prompt for row in collected.rows] == ["other"]
    ((problem),) = collected.problems
    assert (problem.reason, problem.message.partition(";")[0]) == ("missing_column", "no column 'q' (columns)")


def test_a_wrongly_encoded_cell_of_a_table_does_not_hide_the_others(tmp_path: Path) -> None:
    broken = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    texts = pyarrow.array(["x", "y", "z"])
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": texts, "chosen": broken, "rejected": texts}), tmp_path / "p.parquet"
    )
    collected = collect_preferences(str(tmp_path / "p.parquet"))
    assert [row.chosen for row in collected.rows] == ["a", "c"]
    assert [problem.reason for problem in collected.problems] == ["wrong_encoding"]


def test_a_source_of_nothing_but_malformed_rows_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no good row among 1 row of source .*; give one; the first:\n  "):
        read_preferences(str(write(tmp_path / "bad.jsonl", {})), on_malformed="skip")
    with pytest.raises(UsageError, match="holds no rows; give one with at least one"):
        read_preferences(str(write(tmp_path / "none.jsonl")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "preferences.source '.*missing.jsonl' does not exist"),
        ("notes.txt", "preferences.source '.*notes.txt' ends in '.txt'"),
        ("empty", "preferences.source '.*empty' holds no data: allowed are files that end in .jsonl"),
        ("split", "preferences.source '.*split' has no file of preferences.split 'train'"),
        ("broken.parquet", "preferences.source '.*broken.parquet' is not a readable Parquet file"),
        (
            "columns.parquet",
            "has the columns prompt, answer, which form no preference; allowed are {prompt, chosen, rejected}",
        ),
        ("saved", "preferences.source '.*saved' has no preferences.split 'train'"),
    ],
)
def test_a_source_that_cannot_be_read_says_so_in_the_setting_s_own_words(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "split").mkdir()
    write(tmp_path / "split" / "test.jsonl", pair())
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    table = datasets.Dataset.from_list([{"prompt": "q", "answer": "a"}])
    table.to_parquet(tmp_path / "columns.parquet")
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UsageError, match=message):
        read_preferences(str(tmp_path / name), section="preferences.")


def test_a_hub_name_is_loaded_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None, split: str) -> Any:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([pair()])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_preferences("someone/pairs:small", "test") == [PreferenceRow("q", "a", "b")]
    assert asked == [("someone/pairs", "small", "test")]


# Token ids

ROW = PreferenceRow("red north", "stone", "paper page")
CHAT_ROW = PreferenceRow([{"role": "user", "content": "red north"}], "stone", "paper page")
STONE, PAPER, PAGE, RED, NORTH = (world.VOCABULARY.index(word) for word in ("stone", "paper", "page", "red", "north"))
TEMPLATE = (
    "{% for m in messages %}{{ '<bos> ' if m.role == 'user' else '' }}{{ m.content }}"
    "{{ ' <sep> ' if m.role == 'user' else ' <eos> <pad>' }}{% endfor %}"
)


def tokenizer(template: str | None = None) -> Any:
    made = world.tokenizer()
    made.chat_template = template
    return made


def reasons(rows: list[PreferenceRow], **limits: int) -> list[str | None]:
    found = preference_tokens(rows, tokenizer(), limits=TokenLimits(**limits))
    return [each.reason if isinstance(each, MalformedPreferenceError) else None for each in found]


def test_a_text_has_the_tokenizer_s_special_tokens_and_its_responses_only_end_of_sequence() -> None:
    assert preference_tokens([ROW], tokenizer()) == [
        PreferenceTokens([BOS, RED, NORTH, SEP], [STONE, EOS], [PAPER, PAGE, EOS])
    ]


def test_a_text_is_written_in_the_template() -> None:
    (tokens,) = preference_tokens([ROW], tokenizer(), template="gold {prompt} gold")
    gold = world.VOCABULARY.index("gold")
    assert tokens.prompt == [BOS, gold, RED, NORTH, gold, SEP]


def test_a_chat_is_written_in_the_chat_template_and_its_response_ends_at_the_first_end_of_sequence() -> None:
    """The template writes padding after end-of-sequence, as others write a line break."""
    assert preference_tokens([CHAT_ROW], tokenizer(TEMPLATE), template="gold {prompt}") == [
        PreferenceTokens([BOS, RED, NORTH, SEP], [STONE, EOS], [PAPER, PAGE, EOS])
    ]


def test_a_chat_needs_a_chat_template() -> None:
    with pytest.raises(UsageError, match="a preference holds chat messages, but the policy's tokenizer has no chat"):
        preference_tokens([CHAT_ROW], tokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system') }}", "the tokenizer's chat template refuses the messages"),
        ("{{ messages|length }} {{ messages[0].content }}", "renders an answered prompt differently"),
    ],
)
def test_a_chat_that_the_template_refuses_is_malformed(template: str, message: str) -> None:
    found = preference_tokens([ROW, CHAT_ROW, ROW], tokenizer(template))
    assert [type(each) for each in found] == [PreferenceTokens, MalformedPreferenceError, PreferenceTokens]
    assert found[1].reason == "bad_conversation"  # type: ignore[union-attr]
    assert message in str(found[1])


def test_what_is_too_long_says_by_which_limit() -> None:
    assert reasons([ROW], prompt=4, response=3, context=7) == [None]
    assert reasons([ROW], prompt=3) == ["long_prompt"]
    assert reasons([ROW], response=2) == ["long_response"]
    assert reasons([ROW], context=6) == ["long_response"]
    assert reasons([ROW], context=3) == ["long_prompt"]
    (error,) = preference_tokens([ROW], tokenizer(), limits=TokenLimits(prompt=3))
    assert str(error) == "4 prompt tokens, more than max_prompt_tokens 3"


def test_rows_keep_their_order_across_the_tokenizer_s_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_TOKENIZER_CALL", 2)
    rows = [PreferenceRow("red north", word, "red") for word in world.RESPONSE_WORDS[:5]]
    found = preference_tokens(rows, tokenizer())
    assert [each.chosen[0] for each in found if isinstance(each, PreferenceTokens)] == [4, 5, 6, 7, 8]


def test_samples_may_follow_a_text_or_any_chat(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "a"}
    path = write(tmp_path / "s.jsonl", *({"prompt": prompt, "response": "r"} for prompt in ("q", CHAT, [*CHAT, turn])))
    assert read_samples(str(path)) == [("q", "r"), (CHAT, "r"), ([*CHAT, turn], "r")]


def test_numbers_that_no_parser_takes_are_malformed_rows_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    good = '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 0}'
    lines = [
        good,
        good.replace("0}", "9" * 5000 + "}"),
        good.replace("0}", "9" * 400 + "}"),
        good.replace("0}", "NaN}"),
        good.replace("0}", "1e999}"),
        good.replace('"q"', "[" * 100_000),
        good.replace('"q"', '"\\ud800"'),
        good,
    ]
    file.write_text("\n".join(lines))
    found = collect_preferences(str(file), probability_from="margin")
    assert [place.rsplit(":", 1)[1] for place in found.places] == ["1", "8"]
    assert [(p.place.rsplit(":", 1)[1], p.reason) for p in found.problems] == [
        ("2", "not_json"), ("3", "wrong_type"), ("4", "wrong_type"), ("5", "wrong_type"), ("6", "not_json"),
        ("7", "wrong_encoding"),
    ]  # fmt: skip
    assert "an integer of more than 20 digits" in found.problems[1].message


def test_a_table_with_a_column_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    arrays = [pyarrow.array(["x"])] * 4
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="has several columns 'chosen'; keep one of them"):
        collect_preferences(str(tmp_path / "p.parquet"))
