"""Files in every format give the same records, and a damaged record hides no other."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from actors.data import formats
from actors.data.config import PromptConfig
from actors.data.formats import records
from actors.data.preferences import collect_preferences
from actors.data.rows import read_prompt_rows

ROWS = [{"prompt": "q, é", "chosen": "a\nb", "rejected": "c"}, {"prompt": "4", "chosen": "5", "rejected": "6"}]
CSV = 'prompt,chosen,rejected\n"q, é","a\nb",c\n4,5,6\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    """Return number, and columns or the first words of the problem."""
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return [(each.number, each.columns or (each.problem or "")) for each in records(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", LINES),
        ("p.jsonl.gz", LINES),
        ("p.json", json.dumps(ROWS)),
        ("p.json.gz", json.dumps({"version": 1, "data": ROWS})),
        ("p.json", LINES),
        ("p.csv", CSV),
        ("p.csv.gz", "\ufeff" + CSV),
        ("p.tsv", 'prompt\tchosen\trejected\nq, é\t"a\nb"\tc\n4\t5\t6\n'),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, content: str) -> None:
    assert [columns for _, columns in read(tmp_path / name, content)] == ROWS
    found = collect_preferences(str(tmp_path / name))
    assert [(row.prompt, row.chosen, row.rejected) for row in found.rows] == [tuple(row.values()) for row in ROWS]


def test_rows_of_separated_values_that_are_damaged_are_named_by_their_first_line(tmp_path: Path) -> None:
    content = b'prompt,x\n"a\nb",1\nc\nd,1,2\n\n\xff,3\ne\x00,4\nf,\n'
    found = read(tmp_path / "p.csv", content)
    assert found[0] == (2, {"prompt": "a\nb", "x": "1"})
    assert found[1][1].startswith("1 cell, and the header has 2")
    assert found[2][1].startswith("3 cells")
    assert found[3][1].startswith("not UTF-8")
    assert found[4:] == [(8, {"prompt": "e\x00", "x": "4"}), (9, {"prompt": "f", "x": None})]
    assert [number for number, _ in found] == [2, 4, 5, 7, 8, 9]


def test_a_quote_that_swallows_lines_and_another_encoding_are_told_with_what_to_do(tmp_path: Path) -> None:
    found = read(tmp_path / "p.csv", b'prompt,x\n"a,1\nb,2\nc,3\n')
    assert found == [(2, "1 cell, and the header has 2: a quote that opens there may close only in line 4; close it")]
    ((_, told),) = read(tmp_path / "q.csv", b"prompt,x\ncaf\xe9,1\n")
    assert told == "not UTF-8 at character 3 of the row; save the file as UTF-8"
    ((_, told),) = read(tmp_path / "p.jsonl", b"{'prompt': 'a'}\n")
    assert told.endswith("it is as Python prints it: write it with json.dumps")


def test_a_header_with_a_column_twice_reads_no_row(tmp_path: Path) -> None:
    ((number, problem),) = read(tmp_path / "p.csv", "prompt,prompt\na,b\n")
    assert (number, problem) == (1, "the header has the column 'prompt' twice; rename one, no row is read")


def test_a_key_written_twice_in_one_object_is_a_problem_of_its_row(tmp_path: Path) -> None:
    """Python's reader keeps the last one: a row was trained on with half of what its file said."""
    told = "key 'a' is written twice in one object; keep one of them"
    lines = '{"a": 1}\n{"a": 1, "b": 0, "a": 2}\n{"b": [{"a": 1, "a": 1}]}\n'
    assert read(tmp_path / "p.jsonl", lines) == [(1, {"a": 1}), (2, told), (3, told)]
    assert read(tmp_path / "p.json", lines) == [(1, {"a": 1}), (2, told), (3, told)]
    assert read(tmp_path / "p.json", '[{"a": 1, "a": 2}]') == [(0, told)]


@pytest.mark.parametrize(
    ("header", "name"), [("prompt;answer", "semicolons"), ("prompt\tanswer", "tabs"), ("a|b", "bars")]
)
def test_cells_that_something_else_separates_are_told_as_such(tmp_path: Path, header: str, name: str) -> None:
    """A spreadsheet of many languages writes semicolons; the answer was that there is no field 'prompt'."""
    ((number, problem),) = read(tmp_path / "p.csv", f"{header}\nx\ny\n")
    assert number == 1
    assert f"the header is one column, {header!r}: its cells are separated by {name}; write commas in a .csv" in problem
    assert read(tmp_path / "p.csv", "prompt\na;b\n") == [(2, {"prompt": "a;b"})]
    assert "separated by commas" in read(tmp_path / "p.tsv", "prompt,answer\na,b\n")[0][1]


def test_a_torn_file_keeps_the_rows_before_the_tear(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"{n} {hash(str(n))}"}) + "\n" for n in range(20_000)]
    file = tmp_path / "p.jsonl.gz"
    whole = gzip.compress("".join(rows).encode())
    file.write_bytes(whole[: len(whole) // 2])
    found = list(read_prompt_rows(PromptConfig(source=str(file))))
    assert len(found) > 1_000
    assert not [row for row in found[:-1] if row.problem and "damaged" in row.problem]
    assert found[-1].problem is not None
    assert "the compressed file is damaged from here on" in found[-1].problem
    assert found[-1].place == f"{file}:{len(found)}"


def test_a_document_that_is_no_list_of_objects_says_so(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    assert read(file, '[{"a": 1}, 3]') == [(0, {"a": 1}), (1, "a JSON int; each item must be one JSON object")]
    for content, problem in [
        ('{"a": [], "b": []}', "a JSON object with 2 lists"),
        ("[1, ", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        (
            f"[{'9' * 5_000}]",
            "not JSON: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
        (b"[\xff]", "not UTF-8"),
    ]:
        ((_, told),) = read(file, content)
        assert told.startswith(problem)
        assert "sys." not in told, "what Python advises its programmers"


def test_a_huge_line_is_a_row_with_a_problem_and_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    found = read(tmp_path / "p.jsonl", '{"a": 1}\n{"a": "' + "x" * 950 + '"}\n{"a": 2}\n')
    assert found == [(1, {"a": 1}), (2, "not JSON: the line is longer than 100 bytes"), (3, {"a": 2})]


def test_a_directory_s_json_describes_its_data_unless_there_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text(json.dumps([{"prompt": "no"}]))
    (tmp_path / "part.jsonl").write_text('{"prompt": "yes"}\n')
    assert [row.columns for row in read_prompt_rows(PromptConfig(source=str(tmp_path)))] == [{"prompt": "yes"}]
    (tmp_path / "part.jsonl").unlink()
    assert [row.columns for row in read_prompt_rows(PromptConfig(source=str(tmp_path)))] == [{"prompt": "no"}]
