"""A replay beside its run: means, differences and what is said of them, by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.errors import RunError
from launch.replay.report import (
    ReplayReport,
    Weights,
    changed_settings,
    changed_since,
    first_difference,
    read_lines,
    side_by_side,
    windows,
)


def report(**values: Any) -> ReplayReport:
    return ReplayReport(**{"run": "runs/a", "first": 0, "end": 4, "trained": 4, "groups": 32, **values})


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (0, 10, [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]),
        (40, 47, [(41, 41), (42, 42), (43, 44), (45, 45), (46, 47)]),
        (0, 2, [(1, 1), (2, 2)]),
        (7, 7, []),
    ],
)
def test_windows_by_hand(first: int, end: int, expected: list) -> None:
    assert windows(first, end) == expected


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 9))
def test_windows_cover_every_step_once_in_parts_of_nearly_one_length(first: int, length: int, count: int) -> None:
    parts = windows(first, first + length, count)
    assert [step for low, high in parts for step in range(low, high + 1)] == list(range(first + 1, first + length + 1))
    sizes = {high - low for low, high in parts}
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == min(count, length)


def test_metrics_are_averaged_over_what_there_is_of_them() -> None:
    """Step 2 was left out of the replay, step 3 has a loss that is not finite, and only games have `kl_players`."""
    recorded = {1: {"loss": 1.0, "kl_players": 0.5}, 2: {"loss": 3.0, "kl_players": 1.5}, 3: {"loss": None}}
    replay = {1: {"loss": 5.0}, 3: {"loss": 7.0}}
    assert side_by_side(recorded, replay, [(1, 2), (3, 4)]) == {
        "loss": {"recorded": [2.0, None], "replay": [5.0, 7.0]},
        "kl_players": {"recorded": [1.0, None], "replay": [None, None]},
    }


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        ({1: {"loss": 1.0, "grad_norm": 2.0}, 2: {"loss": 0.5, "grad_norm": 1.0, "seconds": 9.0}}, None),
        ({1: {"loss": 1.0, "grad_norm": 2.0}, 2: {"loss": 0.5, "grad_norm": 1.0 + 2**-52}}, 2),
        ({2: {"loss": 0.5, "grad_norm": 1.0}}, 1),
        ({1: {"loss": 1.0, "grad_norm": 2.0}, 2: {"loss": 0.5, "grad_norm": 1.0}, 3: {"loss": 0.1}}, None),
        ({0: {"loss": 1.0}, 1: {"loss": 1.0, "grad_norm": 2.0}, 2: {"loss": 0.5, "grad_norm": 1.0}}, 0),
    ],
    ids=["none but in its time", "one bit", "a step less", "a step that was not recorded any more", "a step more"],
)
def test_the_first_difference_is_of_floats_to_the_bit(replay: dict, expected: int | None) -> None:
    recorded = {1: {"loss": 1.0, "grad_norm": 2.0}, 2: {"loss": 0.5, "grad_norm": 1.0, "seconds": 1.0}}
    assert first_difference(recorded, replay) == expected


def test_changed_settings_are_leaves_by_their_dotted_names() -> None:
    before = {"updates": 4, "learner": {"loss": {"kind": "dpo", "beta": 0.1}, "betas": [0.9, 0.95]}, "old": 1}
    after = {"updates": 4, "learner": {"loss": {"kind": "ipo", "beta": 0.1}, "betas": [0.9, 0.95]}, "new": None}
    assert changed_settings(before, after) == {"learner.loss.kind": ("dpo", "ipo"), "old": (1, None)}


def test_a_setting_that_is_newer_than_a_part_of_a_run_has_not_changed_since() -> None:
    part = {"updates": 4, "learner": {"loss": {"kind": "nash_pg"}}}
    recorded = {"updates": 8, "learner": {"loss": {"kind": "nash_pg", "renormalise": False}}}
    assert changed_since(part, recorded) == ["updates"]


def test_damaged_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    """The first damaged line hid all that came after it, and a list in place of an object ended the replay."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "time": 0.0, "loss": float(step)} for step in range(1, 7)]
    whole = [json.dumps(line) + "\n" for line in lines]
    path.write_text("".join([*whole[:2], '{"step"\n', "[1]\n", "{}\n", *whole[2:], '{"step": 7, "lo']))
    assert read_lines(path, 2, 5) == ({step: {"loss": float(step)} for step in (3, 4, 5)}, 4)
    assert read_lines(path, 5, 9) == ({6: {"loss": 6.0}}, 4)
    assert read_lines(tmp_path / "absent.jsonl", 0, 9) == ({}, 0)


def test_identical_weights_are_said_to_be() -> None:
    told = report(weights=Weights("runs/a/final", 29, 0, 0.0, None)).lines()
    assert told == [
        "replayed updates 1 to 4 of runs/a: 4 steps, 32 groups consumed",
        "weights: bit-identical to runs/a/final (29 tensors)",
    ]


def test_different_weights_are_told_with_the_largest_difference_and_where_runs_parted() -> None:
    weights = Weights("runs/a/final", 29, 3, 0.00125, "lm_head")
    assert report(weights=weights, first_difference=3).lines()[1:] == [
        "loss or gradient norm first differ from the recorded ones in update 3",
        "weights: 3 of 29 tensors differ from runs/a/final by at most 0.00125, most in lm_head",
    ]


def test_what_was_changed_is_told_and_a_difference_is_then_no_surprise() -> None:
    told = report(
        changed={"learner.loss.kind": ("dpo", "ipo"), "opponent.max_staleness": (1, None)},
        max_staleness=1,
        left_out=5,
        first_difference=1,
        exact={"exploitability": {"recorded": 0.25, "replay": 0.125}, "exact_kl": {"recorded": None, "replay": 1.0}},
    ).lines()
    assert told[1:] == [
        "5 groups above staleness 1 left out",
        "learner.loss.kind: dpo recorded, ipo here",
        "opponent.max_staleness: 1 recorded, unset here",
        "exploitability: 0.25 recorded, 0.125 here, at the end",
        "exact_kl: - recorded, 1 here, at the end",
        "weights: not compared; the run has none from after the last update",
    ]


def test_parts_of_a_run_with_other_settings_are_named() -> None:
    told = report(resumed_with={"0": ["updates", "learner.optimizer.lr"]}).lines()
    assert told[1] == (
        "from update 1 on, the run had other settings than at its end (updates, learner.optimizer.lr); replayed with "
        "those of its end"
    )


def test_the_table_has_both_sides_of_the_metrics_that_there_are() -> None:
    metrics = {"loss": {"recorded": [0.69314718, None], "replay": [0.5, 12345.678]}, "seconds": {"recorded": [1.0]}}
    console = Console(file=io.StringIO(), width=100)
    report(windows=[(1, 2), (3, 3)], metrics=metrics).render(console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert rows[:3] == [
        ["mean", "over", "updates", "1-2", "3"],
        ["loss", "recorded", "0.6931", "-"],
        ["replay", "0.5", "1.235e+04"],
    ]
    assert rows[3][0] == "replayed"


def test_the_record_holds_every_field(tmp_path: Path) -> None:
    made = report(weights=Weights("runs/a/final", 29, 0, 0.0, None), windows=[(1, 4)])
    made.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert set(read) == set(ReplayReport.__dataclass_fields__)
    assert (read["weights"]["different"], read["windows"], read["changed"]) == (0, [[1, 4]], {})
    with pytest.raises(
        RunError, match=r"cannot write .*absent/report\.json: No such file or directory; put back the directory"
    ):
        made.write(tmp_path / "absent" / "report.json")
