"""Groups as Arrow columns, against pyarrow's own reading of one dictionary per row."""

from __future__ import annotations

import errno
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from actors.errors import UsageError
from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.output.group_table import GROUPS, group_table, read_buffer, write_buffer
from tests.fakes.disks import FaultyDisk

SCORED = Group(
    Lease(7, 1, Prompt("p:7", (1, 2), "half a pair: \ud800"), 3, 9.5),
    (
        Completion(
            (5, 6, 2), (-0.5, -1.25, 0.0), (3, 3, 4), "five", finished=True, reference_logprobs=(-0.1, -1 / 3, -1e-300)
        ),
        Completion((2,), (-2.0,), (4,), "", finished=False, opponent=True, given=((0, 1), (2, 3))),
    ),
    Judgement((1.0, -2.5)),
)
COMPARED = Group(
    Lease(8, 0, Prompt("p:8", (), ""), 0, 0.0),
    (Completion((9, 2), (-0.1, -0.2), (5, 5), "ä", finished=True),) * 2,
    Judgement((0.0, 0.0), ((0.5, 0.25), (0.75, 0.5))),
)


def row(group: Group, update: int) -> dict[str, Any]:
    """One row as the file has it: by hand, field for field."""
    assert group.judgement is not None
    return {
        "lease_index": group.lease.index,
        "attempt": group.lease.attempt,
        "update": update,
        "prompt_id": group.lease.prompt.id,
        "prompt": group.lease.prompt.text.replace("\ud800", "?"),
        "prompt_token_ids": list(group.lease.prompt.token_ids),
        "min_version": group.lease.min_version,
        "oldest_version": min(min(each.versions) for each in group.completions),
        "completions": [
            {
                "token_ids": list(each.token_ids),
                "logprobs": list(each.logprobs),
                "versions": list(each.versions),
                "text": each.text,
                "finished": each.finished,
                "opponent": each.opponent,
                "given": [list(span) for span in each.given],
                "reference_logprobs": list(each.reference_logprobs),
            }
            for each in group.completions
        ],
        "scores": list(group.judgement.scores),
        "preferences": None if group.judgement.preferences is None else [*map(list, group.judgement.preferences)],
    }


@pytest.mark.parametrize("groups", [[], [SCORED], [SCORED, COMPARED, SCORED]])
def test_a_table_has_a_row_per_group_with_exactly_its_values(groups: list[Group]) -> None:
    table = group_table(groups, 11)
    assert table.equals(pyarrow.Table.from_pylist([row(group, 11) for group in groups], schema=GROUPS))
    table.validate(full=True)


def test_a_token_that_is_no_int32_is_refused() -> None:
    group = Group(SCORED.lease, (Completion((1 << 31,), (0.0,), (0,), "", finished=True),), SCORED.judgement)
    with pytest.raises(pyarrow.ArrowInvalid):
        group_table([group], 0)


def prompts_of(*groups: Group) -> Any:
    return {group.lease.index: group.lease.prompt for group in groups}.__getitem__


def test_a_buffer_is_read_back_exactly_with_texts_that_utf_8_cannot_hold(tmp_path: Path) -> None:
    said = (("assistant", "2+2? \ud83d"), ("tool", "4"))
    odd = replace(
        COMPARED.completions[0], logprobs=(-1e-300, -0.1 - 0.2), text='"\u2028\udc00é', given=((0, 1),), messages=said
    )
    lease = replace(COMPARED.lease, deadline=1e9 + 1 / 3, draw="policy", prompt=Prompt("p:\ud800", (), ""))
    groups = [SCORED, replace(COMPARED, lease=lease, completions=(odd, odd)), *(replace(SCORED),) * 130]
    write_buffer(tmp_path / "buffer", groups)
    assert read_buffer(tmp_path / "buffer", prompts_of(*groups)) == groups
    write_buffer(tmp_path / "buffer", [])
    assert read_buffer(tmp_path / "buffer", prompts_of()) == []


def test_a_buffer_without_the_column_of_reference_log_probs_is_read_as_without_any(tmp_path: Path) -> None:
    """Checkpoints from before reference actors have none."""
    write_buffer(tmp_path / "buffer", [SCORED])
    table = pyarrow.parquet.read_table(tmp_path / "buffer")
    rows = [
        row
        | {"completions": [{k: v for k, v in each.items() if k != "reference_logprobs"} for each in row["completions"]]}
        for row in table.to_pylist()
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "older")
    bare = tuple(replace(each, reference_logprobs=()) for each in SCORED.completions)
    assert read_buffer(tmp_path / "older", prompts_of(SCORED)) == [replace(SCORED, completions=bare)]


def test_a_buffer_of_other_prompts_or_of_no_sense_is_refused(tmp_path: Path) -> None:
    write_buffer(tmp_path / "buffer", [SCORED])
    with pytest.raises(UsageError, match="position 7 of the prompts holds 'other' now and held 'p:7'"):
        read_buffer(tmp_path / "buffer", lambda index: Prompt("other", (), ""))
    (tmp_path / "buffer").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UsageError, match=r"buffer cannot be read: .*; use --resume=last-good"):
        read_buffer(tmp_path / "buffer", prompts_of(SCORED))


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    disk = FaultyDisk(tmp_path, errno.ENOSPC, monkeypatch)
    disk.first = 1  # the file is opened, and its first write refused
    with pytest.raises(OSError, match="No space left"):
        write_buffer(tmp_path / "buffer", [SCORED])
    disk.repair()
    gc.collect()
    assert not unraisable
