"""Rows in, prompts out: order, positions, tokens, and every way in which data can be wrong."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from actors.data.config import PromptConfig
from actors.data.prompts import PromptSource
from actors.errors import UsageError

WORDS = ["<unk>", "<bos>", "<eos>", "<user>", "<assistant>", *(f"w{i}" for i in range(200))]
UNK, BOS, EOS, USER, ASSISTANT, W0 = range(6)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} <eos> {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(single: str = "<bos> $A <eos>", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word; `single` is what it writes around plain text."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=chat_template,
    )


def write(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; a row that is text already is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def source(path: Path, tokenizer: Any = None, **settings: Any) -> PromptSource:
    return PromptSource(PromptConfig(source=str(path), **settings), tokenizer or make_tokenizer())


def numbered(path: Path, count: int) -> Path:
    return write(path, [{"prompt": f"w{i}"} for i in range(count)])


def texts(prompts: PromptSource, positions: range) -> list[str]:
    return [prompts.prompt(position).text for position in positions]


# Order


def test_every_epoch_offers_every_prompt_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    prompts = source(numbered(tmp_path / "p.jsonl", 50))
    epochs = [texts(prompts, range(50 * epoch, 50 * (epoch + 1))) for epoch in range(4)]
    assert all(sorted(epoch) == sorted(f"w{i}" for i in range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_prompt_at_a_position_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    file = numbered(tmp_path / "p.jsonl", 20)
    in_order = texts(source(file), range(100))
    backwards = source(file)
    assert [backwards.prompt(position).text for position in reversed(range(100))] == in_order[::-1]
    assert source(file).prompt(73).text == in_order[73]


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    file = numbered(tmp_path / "p.jsonl", 30)
    assert texts(source(file, seed=4), range(60)) == texts(source(file, seed=4), range(60))
    assert texts(source(file, seed=4), range(60)) != texts(source(file, seed=5), range(60))


def test_without_shuffling_file_order_repeats(tmp_path: Path) -> None:
    assert texts(source(numbered(tmp_path / "p.jsonl", 3), shuffle=False), range(7)) == [
        "w0",
        "w1",
        "w2",
        "w0",
        "w1",
        "w2",
        "w0",
    ]


def test_a_negative_position_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="position -1 is negative"):
        source(numbered(tmp_path / "p.jsonl", 3)).prompt(-1)


def test_evaluation_prompts_are_fixed_and_different_while_the_data_lasts(tmp_path: Path) -> None:
    file = numbered(tmp_path / "p.jsonl", 40)
    prompts = source(file)
    before = [prompt.id for prompt in prompts.evaluation_prompts(25)]
    texts(prompts, range(90))
    assert [prompt.id for prompt in prompts.evaluation_prompts(25)] == before
    assert [prompt.id for prompt in source(file, shuffle=False).evaluation_prompts(25)] == before
    assert len(set(before)) == 25
    assert before != sorted(before, key=lambda name: int(name.split(":")[1]))


def test_evaluation_prompts_repeat_evenly_when_more_are_wanted_than_there_are(tmp_path: Path) -> None:
    chosen = source(numbered(tmp_path / "p.jsonl", 3)).evaluation_prompts(7)
    assert sorted(Counter(prompt.text for prompt in chosen).values()) == [2, 2, 3]


def test_a_pickled_source_goes_on_as_the_original(tmp_path: Path) -> None:
    prompts = source(numbered(tmp_path / "p.jsonl", 12))
    copy = pickle.loads(pickle.dumps(prompts))
    assert texts(copy, range(30)) == texts(prompts, range(30))
    assert copy.fingerprint() == prompts.fingerprint()


# Tokens


def test_text_gets_the_tokenizers_special_tokens_but_no_end_of_sequence(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w3 w1"}, {"prompt": "w2 <eos>"}])
    prompts = source(file, shuffle=False)
    assert prompts.prompt(0).token_ids == (BOS, W0 + 3, W0 + 1)
    assert prompts.prompt(1).token_ids == (BOS, W0 + 2)
    assert prompts.prompt(0).text == "w3 w1"


def test_chat_messages_go_through_the_template_exactly_once(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    file = write(tmp_path / "p.jsonl", [{"prompt": messages}, {"prompt": "w4"}])
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    prompts = source(file, tokenizer, shuffle=False)
    expected = (USER, W0 + 1, EOS, ASSISTANT, W0 + 2, EOS, USER, W0 + 3, EOS, ASSISTANT)
    assert prompts.prompt(0).token_ids == expected
    assert list(expected) == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompts.prompt(0).text == "<user> w1 <eos> <assistant> w2 <eos> <user> w3 <eos> <assistant>"
    assert prompts.prompt(0).metadata == {"messages": messages}
    assert prompts.prompt(1).token_ids == (BOS, W0 + 4)
    assert prompts.prompt(1).metadata == {}


def test_more_rows_than_one_tokenizer_call_keep_their_own_tokens(tmp_path: Path) -> None:
    rows = [{"prompt": " ".join(f"w{(i + j) % 200}" for j in range(1 + i % 3))} for i in range(2500)]
    prompts = source(write(tmp_path / "p.jsonl", rows), shuffle=False)
    for i in (0, 1, 2, 1023, 1024, 1025, 2047, 2048, 2499):
        assert prompts.prompt(i).token_ids == (BOS, *(W0 + (i + j) % 200 for j in range(1 + i % 3)))


def test_the_answer_column_fills_the_answer_verbatim(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"q": "w1", "a": " so #### 72 "}, {"q": "w2", "a": 72}])
    prompts = source(file, shuffle=False, prompt_field="q", answer_field="a")
    assert [prompts.prompt(i).answer for i in range(2)] == [" so #### 72 ", "72"]
    assert source(file, shuffle=False, prompt_field="q").prompt(0).answer is None


# Sources


def test_columns_that_are_named_reach_judges_and_make_the_data_another(tmp_path: Path) -> None:
    rows = [{"prompt": "w5", "level": 2, "tags": ["a"], "other": 1}, {"prompt": "w6", "level": None, "tags": []}]
    path = write(tmp_path / "p.jsonl", rows)
    plain = source(path, shuffle=False)
    prompts = source(path, shuffle=False, columns=("level", "tags"))
    assert prompts.prompt(0).metadata == {"columns": {"level": 2, "tags": ["a"]}}
    assert prompts.prompt(1).metadata == {"columns": {"level": None, "tags": []}}
    assert plain.prompt(0).metadata == {}
    assert prompts.fingerprint() != plain.fingerprint()
    with pytest.raises(UsageError, match=r"no field 'levle'; did you mean 'level'"):
        source(path, columns=("levle",))


def test_parquet_gives_the_prompts_that_jsonl_gives(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"w{i}"}], "answer": str(i)} for i in range(5)]
    write(tmp_path / "p.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=2)
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    lines, table = (source(tmp_path / f"p.{kind}", tokenizer, answer_field="answer") for kind in ("jsonl", "parquet"))
    assert lines.fingerprint() == table.fingerprint()
    assert [table.prompt(i).token_ids for i in range(15)] == [lines.prompt(i).token_ids for i in range(15)]
    assert {table.prompt(i).id for i in range(5)} == {f"p.parquet:{i}" for i in range(5)}


def test_the_embedded_world_offers_its_own_prompts() -> None:
    from actors.world import prompt_rows, tokenizer

    prompts = PromptSource(PromptConfig(source="world", shuffle=False), tokenizer())
    assert texts(prompts, range(len(prompts))) == [row["prompt"] for row in prompt_rows()]
    assert prompts.prompt(2).id == "world:2"


# Fingerprint


def test_the_fingerprint_is_that_of_the_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "w1", "answer": "1"}, {"prompt": "w2", "answer": "2"}]
    original = write(tmp_path / "a.jsonl", rows)
    variants = {
        "order": write(tmp_path / "b.jsonl", rows[::-1]),
        "text": write(tmp_path / "c.jsonl", [rows[0], {"prompt": "w3", "answer": "2"}]),
        "answer": write(tmp_path / "d.jsonl", [rows[0], {"prompt": "w2", "answer": "3"}]),
        "count": write(tmp_path / "e.jsonl", [*rows, rows[0]]),
    }
    fingerprint = source(original, answer_field="answer").fingerprint()
    assert source(write(tmp_path / "moved.jsonl", rows), answer_field="answer").fingerprint() == fingerprint
    for change, file in variants.items():
        assert source(file, answer_field="answer").fingerprint() != fingerprint, change
    other_tokens = source(original, make_tokenizer("$A"), answer_field="answer")
    assert other_tokens.fingerprint() != fingerprint


# Malformed rows

LONE_SURROGATE = '{"prompt": "w1 \\ud800"}'
MALFORMED = {
    "bad json": ('{"prompt": "w1"', "not JSON"),
    "key twice": ('{"prompt": "w1", "prompt": "w2"}', "key 'prompt' is written twice in one object"),
    "chat as Python prints it": (
        {"prompt": "[{'role': 'user', 'content': 'w1'}]"},
        "field 'prompt' looks like a chat and cannot be read as JSON",
    ),
    "no object": ('["w1"]', "a JSON list; each line must be one JSON object"),
    "missing field": ({"promt": "w1"}, "no field 'prompt'; did you mean 'promt'"),
    "null": ({"prompt": None}, "'prompt' is null"),
    "number": ({"prompt": 3}, "of type int; allowed are a string or a list of chat messages"),
    "empty": ({"prompt": ""}, "'prompt' is empty"),
    "blank": ({"prompt": " \n"}, "'prompt' is empty"),
    "lone surrogate": (LONE_SURROGATE, "not valid Unicode"),
    "too long": ({"prompt": "w1 " * 8}, r"9 tokens, more than prompts.max_prompt_tokens 8"),
    "no messages": ({"prompt": []}, "empty list"),
    "message is text": ({"prompt": ["w1"]}, r"prompt[0] is of type str"),
    "message without role": ({"prompt": [{"content": "w1"}]}, "prompt[0] has no string 'role'"),
    "misspelt role": ({"prompt": [{"role": "usr", "content": "w1"}]}, "prompt[0].role is 'usr'; write 'user'"),
    "content is a list": ({"prompt": [{"role": "user", "content": ["w1"]}]}, "prompt[0] has no string 'content'"),
    "content is empty": ({"prompt": [{"role": "user", "content": ""}]}, "'prompt[0].content' is empty"),
    "ends with assistant": ({"prompt": [{"role": "assistant", "content": "w1"}]}, "ends with an assistant message"),
    "refused by the template": ({"prompt": [{"role": "system", "content": "w1"}]}, "no system messages"),
}


@pytest.mark.parametrize(("row", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_row_is_named_with_its_line_and_what_is_allowed(tmp_path: Path, row: Any, reason: str) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1"}, row, {"prompt": "w2"}])
    tokenizer = make_tokenizer(chat_template=TEMPLATE)
    with pytest.raises(UsageError) as raised:
        source(file, tokenizer, max_prompt_tokens=8)
    assert f"1 of 3 rows of prompts.source '{file}' is malformed" in str(raised.value)
    assert f"{file}:2: " in str(raised.value)
    assert reason in str(raised.value)
    kept = source(file, tokenizer, max_prompt_tokens=8, on_malformed="skip", shuffle=False)
    assert texts(kept, range(2)) == ["w1", "w2"]
    assert len(kept.skipped) == 1
    assert kept.skipped[0].startswith(f"{file}:2: ")


def test_rows_that_are_all_malformed_alike_are_told_once_without_the_advice_to_skip_them(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"question": "w1"}] * 7)
    with pytest.raises(UsageError) as raised:
        source(file)
    assert str(raised.value) == (
        f"7 of 7 rows of prompts.source '{file}' are malformed; all alike, the first:\n"
        f"  {file}:1: no field 'prompt'; it has: 'question'\n"
        "Name columns that are there with prompts.prompt_field, or correct the rows."
    )


def test_a_missing_answer_of_pandas_is_a_malformed_row(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1", "answer": 3}, '{"prompt": "w2", "answer": NaN}'])
    with pytest.raises(UsageError, match=r"p\.jsonl:2: field 'answer' is NaN, as pandas writes a missing value"):
        source(file, answer_field="answer")


def test_prompts_that_are_all_too_long_are_told_with_the_limit_that_would_hold_them(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1 " * 8}, {"prompt": "w1"}, {"prompt": "w1 " * 11}])
    with pytest.raises(UsageError, match=r"Raise prompts\.max_prompt_tokens to 12, or shorten them, or set"):
        source(file, max_prompt_tokens=8)


def test_a_prompt_of_exactly_the_limit_is_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1 w2 w3"}])
    assert len(source(file, max_prompt_tokens=4).prompt(0).token_ids) == 4


def test_a_prompt_that_is_nothing_but_an_end_of_sequence_is_malformed(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "<eos>"}])
    with pytest.raises(UsageError, match=r"p\.jsonl:1: no tokens"):
        source(file, make_tokenizer("$A <eos>"))


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "w1"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UsageError, match=r"p\.jsonl:2: not UTF-8: .* at byte 15 of the line"):
        source(file)


def test_the_first_five_problems_and_their_number_are_reported_in_file_order(tmp_path: Path) -> None:
    long, bad = {"prompt": "w1 " * 9}, {"prompt": 1}
    file = write(tmp_path / "p.jsonl", [long, bad, {"prompt": "w1"}, long, bad, long, bad, long])
    with pytest.raises(UsageError) as raised:
        source(file, max_prompt_tokens=8)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("7 of 8 rows")
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines[1:6]] == ["1", "2", "4", "5", "6"]
    assert "skip" in lines[6]
    assert len(lines) == 7


@pytest.mark.parametrize("answer", [None, "", True, ["\ud800"]])
def test_a_bad_answer_makes_a_row_malformed(tmp_path: Path, answer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1", "answer": answer}])
    with pytest.raises(UsageError, match=r"p\.jsonl:1: field 'answer'"):
        source(file, answer_field="answer")


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["w1", "w2", None]}), file, row_group_size=2)
    with pytest.raises(UsageError, match=r"p\.parquet row 2: field 'prompt' is null"):
        source(file)


def test_a_parquet_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    raw = pyarrow.array([b"w1", b"caf\xe9"], type=pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": strings}), tmp_path / "p.parquet")
    with pytest.raises(UsageError, match=r"p\.parquet row 1: not UTF-8"):
        source(tmp_path / "p.parquet")


def test_chat_rows_need_a_tokenizer_with_a_template_even_when_skipping(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(UsageError, match="no chat template"):
        source(file, on_malformed="skip")


# Sources that cannot be used


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no rows"):
        source(write(tmp_path / "p.jsonl", []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no data: allowed are files that end in"):
        source(tmp_path / "empty")


def test_skipping_every_row_is_an_error_that_shows_why(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": "w1"}] * 3)
    with pytest.raises(UsageError, match=r"(?s)no good row among 3 rows .*no field 'prompt'.*it has: 'text'"):
        source(file, on_malformed="skip")


# Template


def test_text_prompts_are_put_into_the_template_and_tokenised_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1"}, {"prompt": "w2 {prompt}"}])
    prompts = source(file, shuffle=False, template="w7 {prompt} {} w8")
    assert texts(prompts, range(2)) == ["w7 w1 {} w8", "w7 w2 {prompt} {} w8"]
    assert prompts.prompt(0).token_ids == (BOS, W0 + 7, W0 + 1, UNK, W0 + 8)


def test_chats_have_the_tokenizers_template_and_no_other(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "w1"}]}])
    plain, templated = (
        source(file, make_tokenizer(chat_template=TEMPLATE), template=template).prompt(0)
        for template in ("{prompt}", "w7 {prompt}")
    )
    assert plain == templated


def test_an_empty_prompt_is_malformed_whatever_the_template_adds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="field 'prompt' is empty"):
        source(write(tmp_path / "p.jsonl", [{"prompt": " "}]), template="w7 {prompt}")


def test_another_template_is_other_data(tmp_path: Path) -> None:
    file = numbered(tmp_path / "p.jsonl", 3)
    assert source(file).fingerprint() != source(file, template="w7 {prompt}").fingerprint()


@pytest.mark.parametrize("template", ["", "Question: ", "{prompt}{prompt}"])
def test_a_template_holds_its_place_once(template: str) -> None:
    with pytest.raises(ValueError, match=r"must hold \{prompt\} once"):
        PromptConfig(template=template)


def test_an_answer_may_be_a_list_or_several_columns_and_judges_get_its_structure(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1", "answer": ["7", 8], "kwargs": [{}]}])
    listed = source(file, answer_field="answer").evaluation_prompts(1)[0]
    assert (listed.answer, listed.metadata["answer"]) == ('["7", 8]', ["7", 8])
    columns = source(file, answer_field=["answer", "kwargs"]).evaluation_prompts(1)[0]
    assert columns.metadata["answer"] == {"answer": ["7", 8], "kwargs": [{}]}


# ---------------------------------------------------------------- prompts for evaluations


def test_a_share_of_the_prompts_is_held_out_for_evaluations_and_never_trained_on(tmp_path):
    """Which ones is decided prompt by prompt, so that new rows move no old one."""
    prompts = source(numbered(tmp_path / "a.jsonl", 100), validation_fraction=0.25, seed=3)
    trained = {prompts.prompt(position).text for position in range(3 * len(prompts))}
    evaluated = {prompt.text for prompt in prompts.evaluation_prompts(prompts.evaluation_size)}
    assert trained | evaluated == {f"w{i}" for i in range(100)}
    assert not trained & evaluated
    assert (len(trained), len(evaluated)) == (len(prompts), prompts.evaluation_size)
    assert 10 <= len(evaluated) <= 40  # 25 of 100, within 3.5 standard deviations

    more = source(numbered(tmp_path / "b.jsonl", 150), validation_fraction=0.25, seed=3)
    again = {prompt.text for prompt in more.evaluation_prompts(more.evaluation_size)}
    assert evaluated == {text for text in again if int(text[1:]) < 100}


def test_repeats_of_a_prompt_are_on_one_side(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": f"w{i % 20}"} for i in range(60)])
    prompts = source(file, validation_fraction=0.3)
    trained = {prompts.prompt(position).text for position in range(len(prompts))}
    assert not trained & {prompt.text for prompt in prompts.evaluation_prompts(prompts.evaluation_size)}


@pytest.mark.parametrize(
    ("fraction", "found"), [(0.001, "holds none of them out; raise"), (0.999, "to train on; lower")]
)
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path, fraction, found):
    with pytest.raises(UsageError, match=rf"validation_fraction {fraction} of the 5 prompts.*{found}"):
        source(numbered(tmp_path / "a.jsonl", 5), validation_fraction=fraction)


def test_evaluations_draw_from_another_file_if_one_is_named(tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": f"w{i}"} for i in range(50, 54)])
    prompts = source(numbered(tmp_path / "a.jsonl", 10), validation_source=str(other))
    assert sorted(prompt.text for prompt in prompts.evaluation_prompts(4)) == ["w50", "w51", "w52", "w53"]
    assert {prompts.prompt(position).text for position in range(20)} == {f"w{i}" for i in range(10)}
    assert (len(prompts), prompts.evaluation_size) == (10, 4)


def test_a_split_of_its_own_can_be_evaluated(tmp_path):
    numbered(tmp_path / "train.jsonl", 3)
    write(tmp_path / "test.jsonl", [{"prompt": "w9"}])
    prompts = source(tmp_path, validation_split="test")
    assert [prompt.text for prompt in prompts.evaluation_prompts(1)] == ["w9"]
    assert len(prompts) == 3


def test_what_is_wrong_with_prompts_for_evaluations_names_their_setting(tmp_path):
    file = numbered(tmp_path / "a.jsonl", 3)
    with pytest.raises(UsageError, match=r"^prompts.validation_source: .*none.jsonl' does not exist"):
        source(file, validation_source=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match=r"^prompts.validation_source: .*b.jsonl.*malformed"):
        source(file, validation_source=str(write(tmp_path / "b.jsonl", [{"prompt": 3}])))


def test_holding_out_in_two_ways_is_refused():
    with pytest.raises(ValueError, match="leave out one of the two settings"):
        PromptConfig(source="a.jsonl", validation_fraction=0.1, validation_source="b.jsonl")


def test_the_fingerprint_covers_what_is_held_out(tmp_path):
    file, other = numbered(tmp_path / "a.jsonl", 40), numbered(tmp_path / "b.jsonl", 5)
    plain, share, elsewhere = (
        source(file, **settings).fingerprint()
        for settings in ({}, {"validation_fraction": 0.2}, {"validation_source": str(other)})
    )
    assert len({plain, share, elsewhere}) == 3
    numbered(tmp_path / "b.jsonl", 6)
    assert source(file, validation_source=str(other)).fingerprint() != elsewhere
