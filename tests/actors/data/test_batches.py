"""Batches of rows hold what a source holds, in order, and never many bytes at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from actors.data import batches, rows
from actors.data.batches import Lines, Row, batches_of_lines
from actors.data.config import PromptConfig
from actors.data.rows import open_prompts, read_prompt_rows


def test_a_batch_of_lines_is_full_by_number_or_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ROWS_PER_BATCH", 3)
    monkeypatch.setattr(batches, "BYTES_PER_BATCH", 10)
    lines = [(1, b"12345"), (2, b"12345"), (3, b"1"), (4, None), (5, b"1"), (6, b"1")]
    made = list(batches_of_lines(Path("p.jsonl"), lines))
    assert [[number for number, _ in batch.lines] for batch in made] == [[1, 2], [3, 4, 5], [6]]
    assert [batch.work for batch in made] == [1, 1, 1 / 3]


def test_lines_keep_their_numbers_over_blank_bad_and_endless_ones() -> None:
    batch = Lines(Path("d/p.jsonl"), [(7, b'{"a": 1}\n'), (8, b" \n"), (9, b"{"), (10, None)])
    read = list(batch.rows())
    assert read[0] == Row("p.jsonl:7", "d/p.jsonl:7", {"a": 1})
    assert [row.id for row in read] == ["p.jsonl:7", "p.jsonl:9", "p.jsonl:10"]
    assert [(row.problem or "")[:30] for row in read[1:]] == [
        "not JSON: Expecting property n",
        "not JSON: the line is longer t",
    ]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_batches_that_another_process_reads_give_the_rows_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    for module in (batches, rows):
        monkeypatch.setattr(module, "ROWS_PER_BATCH", 4)
    file = tmp_path / f"p.{ending}"
    if ending == "jsonl":
        file.write_text("".join(f'{{"prompt": "w{number}"}}\n' for number in range(10)))
    elif ending == "csv":
        file.write_text("prompt\n" + "".join(f"w{number}\n" for number in range(10)))
    else:
        table = pyarrow.table({"more": list(range(10)), "prompt": [f"w{number}" for number in range(10)]})
        pyarrow.parquet.write_table(table, file, row_group_size=7)
    config = PromptConfig(source=str(file))
    sent = [pickle.loads(pickle.dumps(batch)) for batch in open_prompts(config).batches]
    assert len(sent) > 2
    read = [row for batch in sent for row in batch.rows()]
    assert read == list(read_prompt_rows(config))
    assert [row.columns for row in read] == [{"prompt": f"w{number}"} for number in range(10)]


def test_a_batch_of_parquet_rows_is_sent_without_the_rest_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"w{number:09}" for number in range(50_000)]}), file)
    first = next(open_prompts(PromptConfig(source=str(file))).batches)
    assert len(pickle.dumps(first)) < 40_000  # 1,024 rows of 10 bytes, and their offsets
