"""A cached file is whole and of its identity, or it is not used; the folder stays within its limit."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors.data.batches import Row
from actors.data.config import PromptConfig
from actors.data.tokenised import cache as module
from actors.data.tokenised.cache import Cache, NotKeptError, from_environment
from actors.data.tokenised.parsing import Part, tokenise
from actors.data.tokenised.table import PromptTable
from tests.actors.data.test_prompts import make_tokenizer

TOKENIZER = make_tokenizer()


def parts(first: int = 0, count: int = 4) -> list[Part]:
    rows = [Row(f"p:{number}", f"p {number}", {"prompt": f"w{number}"}) for number in range(first, first + count)]
    bad = Row("p:x", "p x", problem="broken")
    return [tokenise([*rows, bad], PromptConfig(), TOKENIZER)]


def store(cache: Cache, identity: str, *, first: int = 0, count: int = 4) -> PromptTable:
    table, reason = cache.store(identity, parts(first, count), lambda: True)
    assert reason is None
    return table


def texts(table: PromptTable | None) -> list[str]:
    assert table is not None
    return [table.prompt(number).text for number in range(len(table))]


def test_what_is_stored_is_loaded_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    stored = store(cache, "a")
    loaded = cache.load("a")
    assert texts(loaded) == texts(stored) == ["w0", "w1", "w2", "w3"]
    assert loaded is not None
    assert loaded.facts == stored.facts
    assert [str(problem) for problem in loaded.facts.problems] == ["p x: broken"]
    assert cache.load("b") is None


def test_a_file_under_another_name_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    store(cache, "a")
    (tmp_path / "a.prompts").rename(tmp_path / "b.prompts")
    assert cache.load("b") is None


def test_a_file_with_one_wrong_byte_anywhere_is_not_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    store(cache, "a")
    path = tmp_path / "a.prompts"
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.load("a") is None, place
    path.write_bytes(whole)
    assert len(texts(cache.load("a"))) == 4


def test_a_file_that_ends_early_is_not_used_and_is_written_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    store(cache, "a")
    path = tmp_path / "a.prompts"
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 101), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert cache.load("a") is None, size
    store(cache, "a")
    assert path.read_bytes() == whole


def test_files_are_for_this_user_alone_and_those_of_others_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "below" / "here", 10**6)
    store(cache, "a")
    assert (cache.folder.stat().st_mode & 0o777, (cache.folder / "a.prompts").stat().st_mode & 0o777) == (0o700, 0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert cache.load("a") is None


def test_two_that_store_the_same_at_once_both_have_it_and_leave_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, both = Cache(tmp_path, 10**6), threading.Barrier(2)
    written = module._write_columns
    found: list[PromptTable] = []

    def together(*arguments: Any) -> int:
        both.wait(timeout=10)
        size = written(*arguments)
        both.wait(timeout=10)
        return size

    monkeypatch.setattr(module, "_write_columns", together)
    threads = [threading.Thread(target=lambda: found.append(store(cache, "a"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.prompts"]
    assert [texts(table) for table in [*found, cache.load("a")]] == [["w0", "w1", "w2", "w3"]] * 3


def test_what_was_not_used_for_longest_is_removed_beyond_the_limit_but_not_what_is_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    in_use = store(cache, "a", first=0)
    size = (tmp_path / "a.prompts").stat().st_size
    for age, identity in ((30, "b"), (20, "c"), (10, "d")):
        store(cache, identity)
        os.utime(tmp_path / f"{identity}.prompts", (time.time() - age, time.time() - age))
    os.utime(tmp_path / "a.prompts", (0, 0))
    assert len(texts(cache.load("b"))) == 4  # and is the youngest by that
    store(Cache(tmp_path, 4 * size), "e")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b", "d", "e"]
    assert len(texts(in_use)) == 4


def test_prompts_of_more_than_the_limit_are_had_and_not_kept(tmp_path: Path) -> None:
    table, reason = Cache(tmp_path, 100).store("a", parts(), lambda: True)
    assert reason is not None
    assert reason.endswith("more than OFFBEAT_CACHE_GB 1e-07")
    assert texts(table) == ["w0", "w1", "w2", "w3"]
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    for name, age in ((".tmp-dead.prompts", 7200), (".tmp-young.prompts", 60)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    (tmp_path / "other").write_text("of somebody else")
    store(Cache(tmp_path, 10**6), "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-young.prompts", "a.prompts", "other"]


@pytest.mark.parametrize(
    ("environment", "folder", "limit"),
    [
        ({"OFFBEAT_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c", 20_000_000_000),
        ({"XDG_CACHE_HOME": "/x", "OFFBEAT_CACHE_GB": "0.5"}, "/x/offbeat", 500_000_000),
        ({}, str(Path.home() / ".cache/offbeat"), 20_000_000_000),
    ],
)
def test_the_environment_says_where_and_how_much(environment: dict[str, str], folder: str, limit: int) -> None:
    assert from_environment(environment) == Cache(Path(folder), limit)


def test_a_limit_that_is_no_number_is_named() -> None:
    with pytest.raises(NotKeptError, match="OFFBEAT_CACHE_GB is 'much', not a number of gigabytes"):
        from_environment({"OFFBEAT_CACHE_GB": "much"})
    assert from_environment({"OFFBEAT_CACHE": "off"}) is None
