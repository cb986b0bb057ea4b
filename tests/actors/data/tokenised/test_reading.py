"""However prompts are had - in this process, in several, from the cache - they are what one row after another gives."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data import batches
from actors.data.config import PromptConfig
from actors.data.prompts import PromptSource
from actors.data.tokenised import cache, processes, reading
from actors.errors import UsageError
from actors.records import Prompt
from tests.actors.data.test_prompts import ASSISTANT, BOS, EOS, TEMPLATE, USER, W0, make_tokenizer

LIMIT = 6
TOKENIZER = make_tokenizer(chat_template=TEMPLATE)


class Expected:
    """Lines of JSONL, and by hand what they give."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: list[str] = []
        self.prompts: list[Prompt] = []
        self.problems: list[str] = []

    def text(self, words: list[int], answer: str, level: Any) -> None:
        text = " ".join(f"w{word}" for word in words)
        self.lines.append(json.dumps({"prompt": text, "answer": answer, "level": level, "unread": [1] * 9}))
        self._take((BOS, *(W0 + word for word in words)), text, answer, {"columns": {"level": level}})

    def chat(self, words: list[int], answer: str, level: Any) -> None:
        said = " ".join(f"w{word}" for word in words)
        messages = [{"role": "user", "content": said, "name": level}]
        self.lines.append(json.dumps({"prompt": messages, "answer": answer, "level": level}))
        token_ids = (USER, *(W0 + word for word in words), EOS, ASSISTANT)
        metadata = {"messages": messages, "columns": {"level": level}}
        self._take(token_ids, f"<user> {said} <eos> <assistant>", answer, metadata)

    def bad(self, line: str, message: str) -> None:
        self.lines.append(line)
        self.problems.append(f"{self.file}:{len(self.lines)}: {message}")

    def blank(self) -> None:
        self.lines.append(" ")

    def fingerprint(self) -> str:
        """Of older versions, whose runs are to be resumed."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(repr((prompt.text, prompt.answer)).encode())
            digest.update(repr(sorted(prompt.metadata["columns"].items())).encode())
        digest.update(b"".join(token.to_bytes(4, "little") for prompt in self.prompts for token in prompt.token_ids))
        end = 0
        for prompt in self.prompts:
            end += len(prompt.token_ids)
            digest.update(end.to_bytes(8, "little"))
        return digest.hexdigest()

    def _take(self, token_ids: tuple[int, ...], text: str, answer: str, metadata: dict[str, Any]) -> None:
        place = f"{self.file}:{len(self.lines)}"
        if len(token_ids) > LIMIT:
            self.problems.append(f"{place}: {len(token_ids)} tokens, more than prompts.max_prompt_tokens {LIMIT}")
        else:
            name = f"{self.file.name}:{len(self.lines)}"
            self.prompts.append(Prompt(name, token_ids, text, answer, metadata))


WORDS_OF_A_ROW = st.lists(st.integers(0, 199), min_size=1, max_size=7)
ANSWERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
LEVELS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(), below, max_size=2),
    max_leaves=4,
)
ROWS = st.one_of(
    st.tuples(st.sampled_from(["text", "chat"]), WORDS_OF_A_ROW, ANSWERS, LEVELS),
    st.sampled_from(
        [
            ("bad", '{"prompt": "", "answer": "1", "level": 1}', "field 'prompt' is empty"),
            ("bad", '{"prompt": "w1", "answer": null, "level": 1}', "field 'answer' is null"),
            ("bad", "[]", "a JSON list; each line must be one JSON object"),
            ("blank",),
        ]
    ),
)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take three rows for many, in this process alone. Returns the cache's folder."""
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 3)
    monkeypatch.setattr(reading, "LITTLE_WORK", 1)
    monkeypatch.setattr(reading, "MUCH_WORK", 1)
    monkeypatch.setattr(processes, "count", lambda tokenizer: 1)
    monkeypatch.setenv("OFFBEAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(file: Path, **changes: Any) -> PromptConfig:
    given = {"answer_field": "answer", "columns": ("level",), "max_prompt_tokens": LIMIT, "on_malformed": "skip"}
    return PromptConfig(source=str(file), shuffle=False, **{**given, **changes})


def numbered(file: Path, count: int) -> Expected:
    expected = Expected(file)
    for number in range(count):
        (expected.text, expected.chat)[number % 2]([number % 200, number % 7], f"{number}", number)
        if number % 50 == 0:
            expected.bad("{}", "no field 'prompt'; it has: nothing")
    file.write_text("\n".join(expected.lines))
    return expected


def assert_same(found: PromptSource, expected: Expected) -> None:
    assert [found.prompt(number) for number in range(len(found))] == expected.prompts
    assert found.skipped == expected.problems
    assert found.fingerprint() == expected.fingerprint()
    assert found.largest_token_id == max(max(prompt.token_ids) for prompt in expected.prompts)


def no_tokenising() -> Any:
    return mock.patch.object(processes, "tokenise", side_effect=AssertionError("tokenised again"))


@given(st.lists(ROWS, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_in_memory_written_and_read_back_prompts_are_those_of_one_row_after_another(rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as patches:
        expected = Expected(Path(name, "p.jsonl"))
        for kind, *values in rows:
            getattr(expected, kind)(*values)
        expected.file.write_text("\n".join(expected.lines), encoding="utf-8")
        if not expected.prompts:
            return
        config = config_of(expected.file)
        patches.enter_context(mock.patch.object(batches, "ROWS_PER_BATCH", 3))
        assert_same(PromptSource(config, TOKENIZER), expected)
        patches.enter_context(mock.patch.dict("os.environ", {"OFFBEAT_CACHE": str(Path(name, "cache"))}))
        patches.enter_context(mock.patch.multiple(reading, LITTLE_WORK=0, MUCH_WORK=len(rows) + 1))
        written = PromptSource(config, TOKENIZER)
        assert_same(written, expected)
        with no_tokenising():
            assert_same(PromptSource(config, TOKENIZER), expected)
        assert_same(pickle.loads(pickle.dumps(written)), expected)


def test_several_processes_give_what_one_gives(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda tokenizer: 2)
    expected = numbered(many.parent / "p.jsonl", 5000)
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 256)
    with no_tokenising():  # in this process
        made = PromptSource(config_of(expected.file), TOKENIZER)
    assert_same(made, expected)
    assert made.notes == []


def test_few_rows_start_no_process_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFBEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processes, "in_processes", mock.Mock(side_effect=AssertionError("a process")))
    expected = numbered(tmp_path / "p.jsonl", 300)
    assert_same(PromptSource(config_of(expected.file), TOKENIZER), expected)
    assert not (tmp_path / "cache").exists()


def test_malformed_rows_are_refused_in_the_same_words_from_the_cache(many: Path, tmp_path: Path) -> None:
    expected = numbered(tmp_path / "p.jsonl", 200)
    said = []
    for _ in range(2):
        with pytest.raises(UsageError) as raised:
            PromptSource(config_of(expected.file, on_malformed="error"), TOKENIZER)
        said.append(str(raised.value))
    assert said[0].startswith(f"4 of 204 rows of prompts.source '{expected.file}' are malformed; all alike, the first:")
    assert said[1] == said[0]
    with no_tokenising():
        assert_same(PromptSource(config_of(expected.file), TOKENIZER), expected)


def test_another_row_is_read_and_not_what_is_cached(many: Path, tmp_path: Path) -> None:
    PromptSource(config_of(numbered(tmp_path / "p.jsonl", 20).file), TOKENIZER)
    changed = numbered(tmp_path / "p.jsonl", 21)
    assert_same(PromptSource(config_of(changed.file), TOKENIZER), changed)
    assert len(list(many.iterdir())) == 2


def test_another_order_of_the_same_prompts_comes_from_the_cache(many: Path, tmp_path: Path) -> None:
    config = config_of(numbered(tmp_path / "p.jsonl", 20).file)
    PromptSource(config, TOKENIZER)
    with no_tokenising():
        shuffled = PromptSource(config.model_copy(update={"shuffle": True, "seed": 3}), TOKENIZER)
    assert sorted(shuffled.prompt(place).id for place in range(20)) == sorted(
        PromptSource(config, TOKENIZER).prompt(place).id for place in range(20)
    )


def test_dates_are_kept_as_they_are_and_the_prompts_are_not_cached(many: Path, tmp_path: Path) -> None:
    days = [datetime.date(2026, 1, 1 + number) for number in range(8)]
    table = pyarrow.table({"prompt": [f"w{number}" for number in range(8)], "day": days})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    config = PromptConfig(source=str(tmp_path / "p.parquet"), columns=("day",), shuffle=False)
    for _ in range(2):
        prompts = PromptSource(config, TOKENIZER)
        assert [prompts.prompt(place).metadata["columns"]["day"] for place in range(8)] == days
        assert "they have values that JSON does not hold" in prompts.notes[0]
    assert list(many.iterdir()) == []


# What does not work is told once, and the run goes on


def test_a_folder_that_cannot_be_made_is_told_and_the_prompts_are_read(many: Path, tmp_path: Path) -> None:
    many.write_text("a file")
    expected = numbered(tmp_path / "p.jsonl", 20)
    prompts = PromptSource(config_of(expected.file), TOKENIZER)
    assert_same(prompts, expected)
    (note,) = prompts.notes
    assert note.startswith("the tokenised prompts are not kept for the next start: ")
    assert str(many) in note
    assert note.endswith("; set OFFBEAT_CACHE to a folder with space, or to `off`")


def test_a_disk_that_becomes_full_is_told_and_the_prompts_are_read(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills_up(file: Any, parts: Iterator[Any]) -> int:
        next(parts)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_write_columns", fills_up)
    expected = numbered(tmp_path / "p.jsonl", 20)
    prompts = PromptSource(config_of(expected.file), TOKENIZER)
    assert_same(prompts, expected)
    assert "No space left on device" in prompts.notes[0]
    assert list(many.iterdir()) == []


def test_files_that_change_as_they_are_read_are_not_cached(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "stamps", mock.Mock(side_effect=[[(1,)], [(2,)]]))
    prompts = PromptSource(config_of(numbered(tmp_path / "p.jsonl", 20).file), TOKENIZER)
    assert "their files changed as they were read" in prompts.notes[0]
    assert list(many.iterdir()) == []


def test_a_cache_that_is_turned_off_is_not_written_and_needs_no_word(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFBEAT_CACHE", "off")
    expected = numbered(tmp_path / "p.jsonl", 20)
    prompts = PromptSource(config_of(expected.file), TOKENIZER)
    assert_same(prompts, expected)
    assert prompts.notes == []
    assert not many.exists()
    assert not Path("off").exists()


def test_a_process_that_dies_is_told_and_one_process_reads_the_prompts(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> Iterator[Any]:
        raise reading.BrokenProcessPool("terminated abruptly")
        yield

    monkeypatch.setattr(processes, "count", lambda tokenizer: 2)
    monkeypatch.setattr(processes, "in_processes", dies)
    expected = numbered(tmp_path / "p.jsonl", 20)
    prompts = PromptSource(config_of(expected.file), TOKENIZER)
    assert_same(prompts, expected)
    assert prompts.notes == [
        "warning: several processes could not tokenise the prompts (terminated abruptly); one does"
    ]
