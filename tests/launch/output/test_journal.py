"""The journal on disk: what is written is read back exactly, once, whatever happened in between."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.errors import RunError, UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt
from actors.replay_buffer.buffer import Batch
from launch.output.journal import SETTINGS, Journal, learning_settings
from launch.output.journal_files import segments
from launch.output.journal_reader import JournalReader, UpdateRow, covered_from
from launch.settings.run import RunConfig
from learner.config import LearnerConfig
from tests.fakes.disks import REFUSED, FaultyDisk

INT32 = st.integers(0, 2**31 - 1)
FLOATS = st.floats(allow_nan=False)


def config_of(journal: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"path": "unused"}, "journal": journal or {}, **sections})


def journal_in(directory: Path, messages: list[str] | None = None, resume_from: int = 0, **sections: Any) -> Journal:
    say = (messages if messages is not None else []).append
    return Journal(directory, config_of(**sections), say, resume_from=resume_from)


def group(index: int, version: int = 0, text: str = "x") -> Group:
    completions = tuple(Completion((5 + k, 2), (-1.0, -0.5), (version, version), text, True) for k in range(2))
    return Group(Lease(index, 0, Prompt(f"p:{index}", (1, 2), "say"), 0, 0.0), completions, Judgement((0.0, 1.0)))


def batch(update: int, groups: Sequence[Group], version: int | None = None) -> Batch:
    """At one publication per update, unless told otherwise."""
    version = update if version is None else version
    return Batch(update, version, tuple(groups), tuple(version - each.oldest_version for each in groups))


def write(journal: Journal, updates: Sequence[int]) -> list[Batch]:
    """Updates of two fresh groups each."""
    batches = [batch(update, [group(2 * update, update), group(2 * update + 1, update)]) for update in updates]
    for each in batches:
        journal.add(each)
    return batches


def read(directory: Path, start: int = 0) -> list[Batch]:
    return list(JournalReader(directory).batches(start))


def as_before_checksums(directory: Path) -> None:
    """Make a journal look as an older version wrote it."""
    (directory / "checksums.jsonl").unlink()
    for segment in segments(directory):
        table = pyarrow.parquet.read_table(segment.updates)
        metadata = {SETTINGS: table.schema.metadata[SETTINGS]}
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), segment.updates)


@st.composite
def any_groups(draw: st.DrawFn) -> Group:
    """What no run would sample, but any could be recorded."""
    completions = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 4))
        lists = [draw(st.lists(each, min_size=length, max_size=length)) for each in (INT32, FLOATS, INT32)]
        ids, logprobs, versions = map(tuple, lists)
        given = draw(st.sampled_from([(), ((0, 1),), ((1, 2), (2, 4))]))
        completions.append(
            Completion(ids, logprobs, versions, draw(st.text()), draw(st.booleans()), draw(st.booleans()), given)
        )
    count = len(completions)
    row = st.lists(FLOATS, min_size=count, max_size=count).map(tuple)
    preferences = draw(st.none() | st.lists(row, min_size=count, max_size=count).map(tuple))
    prompt = Prompt(draw(st.text()), tuple(draw(st.lists(INT32, min_size=1))), draw(st.text()))
    lease = Lease(0, draw(st.integers(0, 3)), prompt, draw(INT32), 0.0)
    return Group(lease, tuple(completions), Judgement(draw(row), preferences))


def test_groups_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory) -> None:
    @given(st.lists(st.lists(any_groups(), max_size=3), min_size=1, max_size=3))
    @settings(max_examples=50, deadline=None)
    def check(contents: list[list[Group]]) -> None:
        directory = tmp_path_factory.mktemp("journal")
        journal, index, batches = journal_in(directory, journal={"updates_per_file": 2}), 0, []
        for update, groups in enumerate(contents):
            numbered = []
            for each in groups:
                numbered.append(replace(each, lease=replace(each.lease, index=index)))
                index += 1
            batches.append(Batch(update, update, tuple(numbered), (0,) * len(numbered)))
            journal.add(batches[-1])
        journal.flush()
        # repr tells -0.0 from 0.0, which are equal.
        assert repr(read(directory)) == repr(batches)

    check()


def test_a_journal_from_before_conversations_is_read_as_it_was_written(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    (written,) = write(journal, [0])
    journal.flush()
    path = segments(tmp_path)[0].groups
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        for completion in row["completions"]:
            del completion["given"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    as_before_checksums(tmp_path)
    assert read(tmp_path) == [written]


def test_half_a_surrogate_pair_in_a_text_is_no_reason_to_stop(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.add(batch(0, [group(0, text="a\ud800b")]))
    journal.flush()
    assert read(tmp_path)[0].groups[0].completions[0].text == "a?b"


def test_files_are_closed_at_their_length_and_at_a_checkpoint(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, journal={"updates_per_file": 3})
    write(journal, range(4))
    assert [(each.first, each.last) for each in segments(tmp_path)] == [(0, 2)], "update 3 is not yet for readers"
    journal.flush()
    write(journal, range(4, 8))
    journal.flush()
    journal.flush()
    assert [(each.first, each.last) for each in segments(tmp_path)] == [(0, 2), (3, 3), (4, 6), (7, 7)]
    assert [each.update for each in read(tmp_path)] == list(range(8))


def test_an_update_without_groups_is_an_empty_batch(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    batches = [batch(0, [group(0)]), batch(1, []), batch(2, [group(1, 2)])]
    for each in batches:
        journal.add(each)
    journal.flush()
    assert read(tmp_path) == batches
    assert JournalReader(tmp_path).first == 0


READY = {"order": "ready", "max_reuse": 3, "max_staleness": 4}


def test_a_group_that_is_consumed_again_is_written_once_and_consumed_again(tmp_path: Path) -> None:
    a, b, c = group(0, 0), group(1, 0), group(2, 1)
    batches = [batch(0, [a, b]), batch(1, [b, c]), batch(2, [c, b])]
    journal = journal_in(tmp_path, replay=READY, journal={"updates_per_file": 1})
    for each in batches:
        journal.add(each)
    rows = [pyarrow.parquet.read_table(each.groups).column("lease_index").to_pylist() for each in segments(tmp_path)]
    assert rows == [[0, 1], [2], []]
    assert read(tmp_path) == batches
    assert read(tmp_path, 1) == batches[1:], "b is in a file of updates before"


def test_a_resumed_run_does_not_write_again_what_the_first_part_has(tmp_path: Path) -> None:
    a, b = group(0, 0), group(1, 1)
    first = journal_in(tmp_path, replay=READY)
    first.add(batch(0, [a]))
    first.flush()
    second = journal_in(tmp_path, replay=READY, resume_from=1)
    second.add(batch(1, [a, b]))
    second.flush()
    rows = [pyarrow.parquet.read_table(each.groups).column("lease_index").to_pylist() for each in segments(tmp_path)]
    assert rows == [[0], [1]]
    assert read(tmp_path) == [batch(0, [a]), batch(1, [a, b])]


@pytest.mark.parametrize("resume_from", range(8))
def test_a_resume_leaves_each_update_once(tmp_path: Path, resume_from: int) -> None:
    """From a checkpoint or, as after a change of `checkpoints/latest` by hand, from within a file."""
    first = journal_in(tmp_path, journal={"updates_per_file": 3})
    kept = write(first, range(7))[:resume_from]
    first.flush()
    second = journal_in(tmp_path, journal={"updates_per_file": 3}, resume_from=resume_from)
    assert [each.last for each in segments(tmp_path) if each.last >= resume_from] == []
    again = [batch(update, [group(100 + update, update)]) for update in range(resume_from, 10)]
    for each in again:
        second.add(each)
    second.flush()
    assert read(tmp_path) == kept + again
    assert JournalReader(tmp_path).settings(0) == [(0, json.loads(json.dumps(learning_settings(config_of()))))]


def test_where_the_learner_ran_is_no_setting_that_a_replay_differs_in() -> None:
    elsewhere = config_of().model_copy(
        update={"learner": LearnerConfig(environment={"NCCL_DEBUG": "INFO"}, resources={"rack": 1.0}, port=7)}
    )
    here = config_of().model_copy(update={"learner": LearnerConfig()})
    assert learning_settings(elsewhere) == learning_settings(here)
    other = LearnerConfig(deepspeed={"prescale_gradients": True})
    assert learning_settings(here.model_copy(update={"learner": other})) != learning_settings(here)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    write(journal_in(tmp_path), range(3))
    (tmp_path / "groups-0000000-0000001.parquet").write_text("whose file of updates was never written")
    assert len(list(tmp_path.iterdir())) == 2
    journal = journal_in(tmp_path)
    assert not list(tmp_path.iterdir())
    batches = write(journal, range(2))
    journal.flush()
    assert read(tmp_path) == batches


def test_the_oldest_files_go_when_all_are_too_large_and_it_is_said_once(tmp_path: Path) -> None:
    """Texts that do not compress below 250 kB: four updates are not within 1 MiB."""
    messages: list[str] = []
    letters = random.Random(0)
    journal = journal_in(tmp_path, messages, journal={"max_mib": 1, "updates_per_file": 1})
    for update in range(6):
        text = "".join(chr(letters.randrange(0x4E00, 0x9E00)) for _ in range(150_000))
        journal.add(batch(update, [group(update, update, text)]))
        total = sum(each.nbytes for each in segments(tmp_path))
        assert total <= 1 << 20
    reader = JournalReader(tmp_path)
    assert (reader.first, reader.end) == (6 - len(segments(tmp_path)), 6)
    assert 1 < reader.first < 5
    assert [each.update for each in reader.batches(reader.first)] == list(range(reader.first, 6))
    assert len(messages) == 1
    assert "journal.max_mib 1" in messages[0]


def test_the_newest_file_stays_however_large(tmp_path: Path) -> None:
    letters = random.Random(0)
    text = "".join(chr(letters.randrange(0x4E00, 0x9E00)) for _ in range(600_000))
    journal = journal_in(tmp_path, journal={"max_mib": 1})
    journal.add(batch(0, [group(0, text=text)]))
    journal.flush()
    assert segments(tmp_path)[0].nbytes > 1 << 20
    assert len(read(tmp_path)) == 1


def test_without_a_journal_nothing_is_written_and_what_is_no_longer_true_is_removed(tmp_path: Path) -> None:
    first = journal_in(tmp_path)
    write(first, range(3))
    first.flush()
    off = journal_in(tmp_path, journal={"enabled": False}, resume_from=1)
    write(off, range(1, 5))
    off.flush()
    assert [each.update for each in read(tmp_path)] == [0]


def test_a_directory_that_cannot_be_written_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("in the way")
    step = r"use another directory, or set journal\."
    with pytest.raises(RunError, match=f"cannot write the journal in .*journal: .*; a file has the name .*: {step}"):
        journal_in(tmp_path / "journal")


def test_a_full_disk_at_a_checkpoint_ends_the_run_and_leaves_what_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_in(tmp_path, journal={"updates_per_file": 1})
    batches = write(journal, [0])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("actors.files.os.replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        write(journal, [1])
    assert read(tmp_path) == batches


@pytest.mark.parametrize("fault", list(REFUSED))
def test_a_disk_that_fails_at_any_operation_is_told_and_what_was_closed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    directory = tmp_path / "journal"

    def attempt(first: int | None) -> int:
        shutil.rmtree(directory, ignore_errors=True)
        journal = journal_in(directory, journal={"updates_per_file": 2})
        write(journal, [0, 1])
        with monkeypatch.context() as patch:
            disk = FaultyDisk(directory, fault, patch)
            disk.first = first
            write(journal, [2, 3, 4])
            journal.flush()
            return len(disk.operations)

    for first in range(0, attempt(None), 1 if fault == errno.ENOSPC else 4):
        with pytest.raises(RunError, match=rf"cannot write the journal in .*{os.strerror(fault)}.*; .*--resume"):
            attempt(first)
        rows = JournalReader(directory).rows
        assert [row.update for row in rows] in ([0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4])
        resumed = journal_in(directory, resume_from=2)
        write(resumed, [2, 3, 4])
        resumed.flush()
        assert [row.update for row in JournalReader(directory).rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("operation", [("open", 0), ("write", 0), ("write", 1)])
def test_what_a_full_disk_refused_a_part_of_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: tuple[str, int]
) -> None:
    """Else the end of the run would close it, and the collection of the writer would try once more and complain."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    journal = journal_in(tmp_path)
    disk = FaultyDisk(tmp_path, errno.ENOSPC, monkeypatch)
    wanted = [("open", 0), ("write", 0), ("write", 1)]
    disk.first = wanted.index(operation)
    for update in (0, 1):
        with contextlib.suppress(RunError):
            write(journal, [update])
            continue
        break
    assert disk.refused is not None
    disk.repair()
    journal.flush()
    disk.first = 0
    del journal
    gc.collect()
    assert not unraisable
    assert segments(tmp_path) == []


@pytest.mark.parametrize(
    ("updates", "present", "first"),
    [
        ([(0, [0]), (1, [1])], {0, 1}, 0),
        ([(3, [6]), (4, [8])], {6, 8}, 3),
        ([(0, [0]), (2, [2]), (3, [])], {0, 2}, 2),
        ([(4, [1, 8]), (5, [9])], {8, 9}, 5),
        ([(4, [8]), (5, [1, 9])], {8, 9}, 6),
    ],
    ids=["whole", "begins later", "gap while it was off", "group of a removed file", "even in the last update"],
)
def test_from_where_on_everything_is_there(updates: list, present: set[int], first: int) -> None:
    rows = [UpdateRow(update, update, tuple(leases), (0,) * len(leases)) for update, leases in updates]
    assert covered_from(rows, present) == first


def test_what_each_part_was_trained_with_is_told(tmp_path: Path) -> None:
    first = journal_in(tmp_path, updates=4)
    write(first, range(4))
    first.flush()
    second = journal_in(tmp_path, updates=8, resume_from=4)
    write(second, range(4, 6))
    second.flush()
    told = [(update, each["updates"]) for update, each in JournalReader(tmp_path).settings(0)]
    assert told == [(0, 4), (4, 8)]
    assert [update for update, _ in JournalReader(tmp_path).settings(2)] == [2, 4]
    assert [update for update, _ in JournalReader(tmp_path).settings(4)] == [4]


def test_pandas_joins_updates_with_groups(tmp_path: Path) -> None:
    """As docs/replay.md shows: how often each prompt was consumed, and how old it then was."""
    a, b = group(0, 0), group(1, 1)
    journal = journal_in(tmp_path, replay=READY, journal={"updates_per_file": 1})
    for each in (batch(0, [a]), batch(1, [b, a]), batch(2, [])):
        journal.add(each)
    groups, updates = (
        pandas.concat(pandas.read_parquet(path) for path in sorted(tmp_path.glob(f"{name}-*.parquet")))
        for name in ("groups", "updates")
    )
    consumed = updates.explode(["lease_indices", "staleness"]).dropna()
    joined = consumed.merge(groups, left_on="lease_indices", right_on="lease_index", suffixes=("", "_first"))
    assert [tuple(row) for row in joined[["update", "prompt_id", "staleness", "update_first"]].to_numpy()] == [
        (0, "p:0", 0, 0),
        (1, "p:1", 0, 1),
        (1, "p:0", 1, 0),
    ]


def test_no_journal_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no journal; give the directory of a training run"):
        JournalReader(tmp_path)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    write(journal, [0])
    journal.flush()
    path = segments(tmp_path)[0].groups
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        UsageError, match=rf"torn at its end: {path.name} has .* bytes, expected .*; .*, or remove {path.name}"
    ):
        JournalReader(tmp_path)
    as_before_checksums(tmp_path)
    with pytest.raises(UsageError, match=rf"{path} cannot be read"):
        read(tmp_path)
