"""A journal is read as it was written, or refused by the name of the file that is not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.errors import UsageError
from launch.output.journal_files import Checksums, segments
from launch.output.journal_reader import JournalReader
from learner.backend.manifest import DamagedError
from tests.launch.output.test_journal import as_before_checksums, journal_in, read, write


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def written(directory: Path, updates: int = 6, **sections) -> list:
    """A journal of two updates per pair of files."""
    journal = journal_in(directory, journal={"updates_per_file": 2, **sections})
    batches = write(journal, range(updates))
    journal.flush()
    return batches


def test_a_thousand_flipped_bits_of_a_journal_are_all_refused(tmp_path: Path) -> None:
    """Of 600, 94 were read as other batches and 54 ended in raw errors."""
    batches = written(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    whole, draw = {file: file.read_bytes() for file in files}, random.Random(1)
    for _ in range(1000):
        file = draw.choice(files)
        flip(file, draw.randrange(8 * len(whole[file])))
        with pytest.raises(UsageError, match=r"(groups|updates)-\d{7}-\d{7}\.parquet|checksums\.jsonl"):
            JournalReader(tmp_path)
        file.write_bytes(whole[file])
    assert read(tmp_path) == batches


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", ["groups", "updates"])
def test_a_torn_end_is_told_from_a_changed_middle(tmp_path: Path, which: int, kind: str) -> None:
    batches = written(tmp_path)
    path = getattr(segments(tmp_path)[which], kind)
    path.write_bytes(path.read_bytes()[:-100])
    torn = r"torn at its end.* or remove groups-0000004-0000005\.parquet and updates-.*updates from 4 on"
    with pytest.raises(UsageError, match=torn if which == 2 else rf"not as it was written: {path.name}"):
        JournalReader(tmp_path)
    if which == 2:
        segments(tmp_path)[2].remove()
        assert read(tmp_path) == batches[:4]


def test_a_changed_end_of_the_same_length_is_not_called_torn(tmp_path: Path) -> None:
    written(tmp_path)
    flip(segments(tmp_path)[2].groups, 999)
    with pytest.raises(UsageError, match=r"not as it was written: groups-0000004-0000005\.parquet has other content"):
        JournalReader(tmp_path)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_missing_pair_of_files_is_named_unless_it_is_the_oldest_or_was_never_finished(
    tmp_path: Path, which: int
) -> None:
    """The oldest are removed for space; a crash can come between a line of checksums and the file's name."""
    batches = written(tmp_path)
    segments(tmp_path)[which].remove()
    if which == 1:
        with pytest.raises(UsageError, match=r"groups-0000002-0000003\.parquet is missing"):
            JournalReader(tmp_path)
    else:
        assert read(tmp_path, start=2) == (batches[2:] if which == 0 else batches[2:4])


def test_one_missing_file_of_the_newest_pair_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    segments(tmp_path)[2].groups.unlink()
    with pytest.raises(UsageError, match=r"groups-0000004-0000005\.parquet is missing"):
        JournalReader(tmp_path)


def test_a_file_of_another_journal_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a")
    write(other := journal_in(tmp_path / "b", journal={"updates_per_file": 2}), range(8))
    other.flush()
    (tmp_path / "b" / "groups-0000002-0000003.parquet").rename(tmp_path / "a" / "groups-0000002-0000003.parquet")
    for kind in ("groups", "updates"):
        name = f"{kind}-0000006-0000007.parquet"
        (tmp_path / "b" / name).rename(tmp_path / "a" / name)
    with pytest.raises(UsageError, match=r"groups-0000006-0000007\.parquet is not in checksums\.jsonl"):
        JournalReader(tmp_path / "a")


def test_the_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    checksums = Checksums(tmp_path, "b")
    journal = journal_in(tmp_path)
    journal._checksums = checksums
    write(journal, range(2))
    journal.flush()
    assert JournalReader(tmp_path, "b").end == 2
    with pytest.raises(UsageError, match="is of run b, and the directory of run a"):
        JournalReader(tmp_path, "a")


def test_an_older_journal_is_read_and_goes_on_with_checksums(tmp_path: Path) -> None:
    batches = written(tmp_path)
    as_before_checksums(tmp_path)
    assert read(tmp_path) == batches
    assert len(JournalReader(tmp_path).unverified) == 3
    # Cut within its second pair of files, which is written anew.
    journal = journal_in(tmp_path, resume_from=3, journal={"updates_per_file": 2})
    batches[3:] = write(journal, range(3, 6))
    journal.flush()
    assert read(tmp_path) == batches
    assert [segment.first for segment in JournalReader(tmp_path).unverified] == [0]
    flip(segments(tmp_path)[-1].updates, 50)
    with pytest.raises(UsageError, match=r"updates-0000005-0000005\.parquet has other content"):
        JournalReader(tmp_path)


def test_checksums_that_were_removed_are_missed(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "checksums.jsonl").unlink()
    with pytest.raises(UsageError, match=r"written with checksums, and checksums\.jsonl is missing"):
        JournalReader(tmp_path)


@pytest.mark.parametrize("line", range(1, 7))
def test_a_line_of_checksums_that_is_left_out_is_missed(tmp_path: Path, line: int) -> None:
    """A line checks all lines before it; without the last one its file has no line."""
    written(tmp_path)
    path = tmp_path / "checksums.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    told = rf"line {line + 1} of .*" if line < 6 else r"updates-0000004-0000005\.parquet is not in "
    with pytest.raises(UsageError, match=rf"{told}checksums\.jsonl"):
        JournalReader(tmp_path)


def test_a_line_of_checksums_that_a_crash_cut_is_written_over(tmp_path: Path) -> None:
    batches = written(tmp_path, 4)
    with (tmp_path / "checksums.jsonl").open("ab") as file:
        file.write(b'{"file": "groups-00000')
    assert read(tmp_path) == batches
    journal = journal_in(tmp_path, resume_from=4, journal={"updates_per_file": 2})
    batches += write(journal, range(4, 6))
    journal.flush()
    assert read(tmp_path) == batches


def test_a_resume_does_not_write_a_changed_file_anew(tmp_path: Path) -> None:
    """Its new checksum would have made the change good."""
    written(tmp_path)
    flip(segments(tmp_path)[1].groups, 7777)
    with pytest.raises(DamagedError, match=r"groups-0000002-0000003\.parquet has other content"):
        journal_in(tmp_path, resume_from=3)
    assert [segment.first for segment in segments(tmp_path)] == [0, 2, 4]
    journal_in(tmp_path, resume_from=2)
    assert [segment.first for segment in segments(tmp_path)] == [0]


def test_the_oldest_files_leave_no_line_behind_when_they_are_removed_for_space(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, journal={"updates_per_file": 1, "max_mib": 1})
    journal._config = journal._config.model_copy(update={"max_mib": 0})
    write(journal, range(3))
    assert sorted(Checksums(tmp_path).files) == ["groups-0000002-0000002.parquet", "updates-0000002-0000002.parquet"]
    assert JournalReader(tmp_path).first == 2
