"""Tokenised examples on disk: read as they were written, whole or not at all."""

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.tensors.examples import read_sequences, write_sequences

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)


@settings(deadline=None)
@given(sequences=st.lists(st.tuples(TOKENS, TOKENS), max_size=5))
def test_sequences_are_read_as_they_were_written(tmp_path_factory, sequences):
    path = tmp_path_factory.mktemp("examples") / "data" / "train.parquet"
    write_sequences(path, sequences)
    assert read_sequences(path) == sequences


def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "train.parquet"
    write_sequences(path, [((1,), (2,))])

    def full_disk(table, target):
        target.write_bytes(b"PAR1 and no more")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_sequences(path, [((3,), (4,))])
    monkeypatch.undo()
    assert read_sequences(path) == [((1,), (2,))]


def test_a_finished_write_leaves_one_file(tmp_path):
    write_sequences(tmp_path / "train.parquet", [((1,), (2,))])
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
