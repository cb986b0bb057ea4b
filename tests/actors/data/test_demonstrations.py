"""Rows in, prompt and response tokens out: what is imitated, what is held out, and every way data can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from actors.data.config import DemonstrationConfig
from actors.data.demonstrations import Demonstrations, demonstration_rows, load_demonstrations, texts_of
from actors.errors import UsageError
from learner.stages.scratch import train_tokenizer
from tests.actors.data.test_prompts import ASSISTANT, BOS, EOS, TEMPLATE, USER, W0, make_tokenizer, source, write

ALL = {"validation_fraction": 0.0}


def load(path: Path, tokenizer: Any = None, **settings: Any) -> Demonstrations:
    return load_demonstrations(DemonstrationConfig(source=str(path), **settings), tokenizer or make_tokenizer())


def chat(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def byte_tokenizer() -> Any:
    """One token per byte; its template writes end-of-sequence and a line break after every message."""
    tokenizer = train_tokenizer([], 300)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


# What is imitated


def test_a_text_prompt_gets_what_the_tokenizer_puts_around_texts_and_the_response_one_end(tmp_path: Path) -> None:
    rows = [{"prompt": "w1 w2", "response": "w3"}, {"prompt": "w4", "response": "w5 <eos> <eos>"}]
    found = load(write(tmp_path / "d.jsonl", rows), **ALL)
    assert found.train == [((BOS, W0 + 1, W0 + 2), (W0 + 3, EOS)), ((BOS, W0 + 4), (W0 + 5, EOS))]
    assert (found.validation, found.skipped) == ([], [])


def test_the_template_surrounds_text_prompts_and_leaves_other_braces_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [{"q": "w1 {prompt}", "a": "w2"}])
    found = load(file, prompt_field="q", response_field="a", template="w7 {prompt} {} w8", **ALL)
    # `{prompt}` of the data and `{}` of the template are no words: unknown, and left as they are.
    assert found.train == [((BOS, W0 + 7, W0 + 1, 0, 0, W0 + 8), (W0 + 2, EOS))]


def test_a_template_without_its_place_or_with_two_is_refused() -> None:
    for template in ("no place", "{prompt} {prompt}"):
        with pytest.raises(ValueError, match=r"must hold \{prompt\} once"):
            DemonstrationConfig(source="d.jsonl", template=template)


def test_a_chat_prompt_is_written_in_the_chat_template_and_answered_to_its_end(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [{"prompt": chat("w1"), "response": "w2"}])
    found = load(file, make_tokenizer(chat_template=TEMPLATE), template="w9 {prompt}", **ALL)
    assert found.train == [((USER, W0 + 1, EOS, ASSISTANT), (W0 + 2, EOS))]


def test_every_assistant_message_of_a_conversation_is_one_demonstration_of_all_before_it(tmp_path: Path) -> None:
    rows = [{"messages": chat("hi", "yo", "more", "no")}, {"messages": [chat("", "me first")[1], *chat("ok", "so")]}]
    tokenizer = byte_tokenizer()
    found = load(write(tmp_path / "d.jsonl", rows), tokenizer, messages_field="messages", **ALL)
    assert [tuple(map(tokenizer.decode, pair)) for pair in found.train] == [
        ("user: hi<|end|>\nassistant: ", "yo<|end|>"),
        ("user: hi<|end|>\nassistant: yo<|end|>\nuser: more<|end|>\nassistant: ", "no<|end|>"),
        ("assistant: me first<|end|>\nuser: ok<|end|>\nassistant: ", "so<|end|>"),
    ]
    assert all(response.count(tokenizer.eos_token_id) == 1 for _, response in found.train)


def test_turns_of_sharegpt_are_chat_messages(tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("human", "hi"), ("gpt", "yo"), ("tool", "4"), ("assistant", "no")]
    rows = [{"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}]
    tokenizer = byte_tokenizer()
    found = load(write(tmp_path / "d.jsonl", rows), tokenizer, messages_field="conversations", **ALL)
    before = "system: be kind<|end|>\nuser: hi<|end|>\nassistant: "
    assert [tuple(map(tokenizer.decode, pair)) for pair in found.train] == [
        (before, "yo<|end|>"),
        (f"{before}yo<|end|>\ntool: 4<|end|>\nassistant: ", "no<|end|>"),
    ]
    rows[0]["conversations"][1]["from"] = "alien"
    with pytest.raises(UsageError, match=r"conversations\[1\] is from 'alien'; allowed are human, user"):
        load(write(tmp_path / "d.jsonl", rows), tokenizer, messages_field="conversations", **ALL)


@pytest.mark.parametrize("template", ["{prompt}", "w7 {prompt} w8"])
def test_prompts_are_tokenised_as_a_training_run_does(tmp_path: Path, template: str) -> None:
    prompts = ["w1 w2", " w3 ", "w4 <eos>", chat("w5"), chat("w6", "w7", "w8"), "unknown w9"]
    file = write(tmp_path / "d.jsonl", [{"prompt": prompt, "response": "w1"} for prompt in prompts])
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    trained = source(file, tokenizer, shuffle=False, template=template)
    expected = [trained.prompt(position).token_ids for position in range(len(prompts))]
    assert [prompt for prompt, _ in load(file, tokenizer, template=template, **ALL).train] == expected


def test_tables_are_read_with_the_wanted_columns_only(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["w1"], "response": ["w2"], "other": ["w3"]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    config = DemonstrationConfig(source=str(tmp_path / "d.parquet"), **ALL)
    assert [row.columns for row in demonstration_rows(config)] == [{"prompt": "w1", "response": "w2"}]
    assert load_demonstrations(config, make_tokenizer()).train == [((BOS, W0 + 1), (W0 + 2, EOS))]


def test_a_tokenizer_learns_from_what_is_read_and_from_nothing_else(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "id": "c"}, "{", {"prompt": 3, "response": "\ud800"}, {"response": "d"}]
    file = write(tmp_path / "d.jsonl", [*rows, {"prompt": chat("e"), "response": "f"}])
    config = DemonstrationConfig(source=str(file), template="<{prompt}>")
    assert list(texts_of(config)) == ["<a>", "b", "d", "f"]


# What is held out


def test_a_prompt_is_on_one_side_only_and_rows_added_later_move_nobody(tmp_path: Path) -> None:
    rows = [{"prompt": f"w{i % 100}", "response": f"w{i}"} for i in range(150)]
    few = load(write(tmp_path / "few.jsonl", rows[:120]), validation_fraction=0.3)
    many = load(write(tmp_path / "many.jsonl", rows), validation_fraction=0.3)
    train, held_out = ({prompt for prompt, _ in side} for side in (many.train, many.validation))
    assert not train & held_out
    assert len(train | held_out) == 100
    assert {prompt for prompt, _ in few.train} == train
    assert {prompt for prompt, _ in few.validation} == held_out


def test_saved_runs_find_their_demonstrations_on_the_same_sides(tmp_path: Path) -> None:
    """A resumed run compares its examples with the saved ones, so these sides must never change."""
    rows = [{"prompt": f"w{i} w{i % 3}", "response": "w1"} for i in range(12)]
    found = load(write(tmp_path / "d.jsonl", rows), validation_fraction=0.5)
    assert [prompt[1] - W0 for prompt, _ in found.validation] == [0, 4, 6, 11]


def test_about_the_wanted_share_is_held_out_and_more_where_more_is_wanted(tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.jsonl", [{"prompt": f"w{i} w{j}", "response": "w1"} for i in range(40) for j in range(50)]
    )
    held_out = [set(load(file, validation_fraction=share).validation) for share in (0.0, 0.1, 0.5)]
    # Binomial: 200 and 1000 of 2000 within five standard deviations.
    assert len(held_out[0]) == 0
    assert abs(len(held_out[1]) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(len(held_out[2]) - 1000) < 5 * (2000 * 0.25) ** 0.5
    assert held_out[1] < held_out[2]


# What is wrong

PAIR = {"prompt": "w1", "response": "w2"}
MALFORMED = {
    "{": "not JSON",
    "[1]": "each line must be one JSON object",
    '{"prompt": "w1"}': "no field 'response'; it has: 'prompt'",
    '{"response": "w1"}': "no field 'prompt'",
    '{"prompt": null, "response": "w1"}': "field 'prompt' is null",
    '{"prompt": "w1", "response": null}': "field 'response' is null",
    '{"prompt": 3, "response": "w1"}': "field 'prompt' is of type int; allowed are a string or a list of chat messages",
    '{"prompt": "w1", "response": 3}': "field 'response' is of type int, not a string",
    '{"prompt": " ", "response": "w1"}': "field 'prompt' is empty",
    '{"prompt": "w1", "response": ""}': "field 'response' is empty",
    '{"prompt": "w1", "response": "\\ud800"}': "field 'response' is not valid Unicode",
    '{"prompt": "<eos>", "response": "w1"}': "the prompt has no tokens",
    '{"prompt": "w1 w2 w3", "response": "w4 w5"}': "3 prompt and 3 response tokens, more than data.max_tokens 5",
    '{"prompt": [], "response": "w1"}': "field 'prompt' is an empty list",
    '{"prompt": ["w1"], "response": "w1"}': "prompt[0] is of type str; a chat message is an object",
    json.dumps({"prompt": chat("w1", "w2"), "response": "w1"}): "prompt ends with an assistant message",
    json.dumps({"prompt": [{"role": "system", "content": "w1"}], "response": "w1"}): "no system messages",
}


@pytest.mark.parametrize("row", MALFORMED, ids=lambda row: MALFORMED[row][:30])
def test_a_malformed_row_is_named_with_its_place_or_skipped_and_counted(tmp_path: Path, row: str) -> None:
    file = write(tmp_path / "d.jsonl", [PAIR, row, {"prompt": "w3", "response": "w4"}])
    tokenizer = make_tokenizer(single="$A", chat_template=TEMPLATE)
    with pytest.raises(UsageError) as error:
        load(file, tokenizer, max_tokens=5, **ALL)
    assert f"1 of 3 rows of data.source '{file}' is malformed; the first:\n  {file}:2: " in str(error.value)
    assert MALFORMED[row] in str(error.value)
    assert "set data.on_malformed to 'skip'" in str(error.value)

    found = load(file, tokenizer, max_tokens=5, on_malformed="skip", **ALL)
    assert found.train == [((W0 + 1,), (W0 + 2, EOS)), ((W0 + 3,), (W0 + 4, EOS))]
    [skipped] = found.skipped
    assert skipped.startswith(f"{file}:2: ")
    assert MALFORMED[row] in skipped


def test_conversations_that_a_csv_file_holds_as_json_are_read(tmp_path: Path) -> None:
    messages = json.dumps(chat("w1", "w2")).replace('"', '""')
    (tmp_path / "d.csv").write_text(f'messages\n"{messages}"\n')
    rows = write(tmp_path / "d.jsonl", [{"messages": chat("w1", "w2")}])
    tokenizer = make_tokenizer(single="$A", chat_template=TEMPLATE)
    of_csv, of_lines = (
        load(file, tokenizer, messages_field="messages", **ALL).train for file in (tmp_path / "d.csv", rows)
    )
    assert of_csv == of_lines != []


def test_a_wrongly_encoded_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'\xff\xfe\n{"prompt": "w1", "response": "w2"}\n')
    found = load(file, on_malformed="skip", **ALL)
    assert found.skipped == [f"{file}:1: not UTF-8: invalid start byte at byte 0 of the line; save it as UTF-8"]
    assert len(found.train) == 1


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("w1", "field 'messages' is of type str, not a list of chat messages"),
        (chat("w1"), "has no assistant message after another message: nothing to imitate"),
        (chat("", "w1")[1:], "has no assistant message after another message: nothing to imitate"),
        ([{"role": "user"}], "messages[0] has no string 'content'"),
        (chat("w1", " "), "field 'messages[1].content' is empty"),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path: Path, value: Any, problem: str) -> None:
    file = write(tmp_path / "d.jsonl", [{"messages": value}, {"messages": chat("w1", "w2")}])
    found = load(file, make_tokenizer(chat_template=TEMPLATE), messages_field="messages", on_malformed="skip", **ALL)
    assert len(found.train) == 1
    assert found.skipped[0].startswith(f"{file}:1: ")
    assert problem in found.skipped[0]


def test_a_template_that_writes_answered_prompts_otherwise_cannot_be_imitated(tmp_path: Path) -> None:
    """Some templates drop earlier reasoning once an answer stands: the policy would never see such a prompt."""
    tokenizer = make_tokenizer(
        chat_template="{% if not add_generation_prompt %}<bos> {% endif %}"
        "{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    with pytest.raises(UsageError, match="chat template renders an answered prompt differently"):
        load(write(tmp_path / "d.jsonl", [{"prompt": chat("w1"), "response": "w2"}]), tokenizer)


def test_chats_without_a_chat_template_are_refused_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [{"messages": chat("w1", "w2")}])
    with pytest.raises(
        UsageError, match=r"'messages' of data.source '.*' holds chat messages, but .* no chat template"
    ):
        load(file, messages_field="messages", on_malformed="skip")


def test_only_the_first_problems_are_shown_of_many(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", ["{", "["] * 3 + ["{"])
    with pytest.raises(UsageError) as error:
        load(file)
    assert "7 of 7 rows" in str(error.value)
    assert f"{file}:5: " in str(error.value)
    assert f"{file}:6: " not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ([], {}, "holds no rows; give one with at least one"),
        (["{"], {"on_malformed": "skip"}, "no good row among 1 row of data.source"),
        ([PAIR], {"validation_fraction": 0.999999}, "leaves nothing to train on: what it has, 1 example, is held out"),
        ([PAIR, "{"], {"validation_fraction": 0.999999, "on_malformed": "skip"}, "0.999999, 1 row malformed; give"),
    ],
)
def test_nothing_left_to_train_on_is_refused(tmp_path: Path, rows: list, settings: dict, told: str) -> None:
    with pytest.raises(UsageError) as error:
        load(write(tmp_path / "d.jsonl", rows), **settings)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.jsonl", "data.source '{path}' does not exist"),
        ("data.xml", "data.source '{path}' ends in '.xml'"),
        ("empty", "data.source '{path}' holds no data: allowed are files that end in .jsonl"),
        ("test", "data.source '{path}' has no file of data.split 'train'"),
        ("other.parquet", "data.source '{path}' has no column 'response' (data.response_field)"),
        ("broken.parquet", "data.source '{path}' is not a readable Parquet file"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_the_words_of_its_section(
    tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "data.xml").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "test.jsonl", [PAIR])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["w1"]}), tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").write_text("PAR1")
    with pytest.raises(UsageError) as error:
        load(tmp_path / name)
    assert told.format(path=tmp_path / name) in str(error.value)
    assert "prompts." not in str(error.value)


def test_an_assistant_turn_of_weight_0_is_context_and_not_imitated(tmp_path: Path) -> None:
    first, answer, second, last = chat("w1", "w2", "w3", "w4")
    rows = [{"messages": [first, {**answer, "weight": 0}, second, {**last, "weight": 1}]}]
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    found = load(write(tmp_path / "d.jsonl", rows), tokenizer, messages_field="messages", **ALL)
    whole = load(write(tmp_path / "e.jsonl", [{"messages": [first, answer, second, last]}]), tokenizer,
                 messages_field="messages", **ALL)  # fmt: skip
    assert len(whole.train) == 2
    assert found.train == whole.train[1:]
