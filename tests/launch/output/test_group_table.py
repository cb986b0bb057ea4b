"""Groups as Arrow columns, against pyarrow's own reading of one dictionary per row."""

from __future__ import annotations

from typing import Any

import pyarrow
import pytest

from actors.records import Completion, Group, Judgement, Lease, Prompt
from launch.output.group_table import GROUPS, group_table

SCORED = Group(
    Lease(7, 1, Prompt("p:7", (1, 2), "half a pair: \ud800"), 3, 9.5),
    (
        Completion((5, 6, 2), (-0.5, -1.25, 0.0), (3, 3, 4), "five", finished=True),
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
