"""The directory of a sweep: rows keep their settings, others may be added, and one process holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import UsageError
from launch.sweep.config import SweepConfig, load_sweep
from launch.sweep.directory import check_directory, held
from launch.sweep.plan import Row, plan_rows
from tests.launch.sweep.sweeps import sweep_file


def planned(tmp_path: Path, **changes: Any) -> tuple[SweepConfig, list[Row]]:
    sweep = load_sweep(sweep_file(tmp_path, **changes))
    return sweep, plan_rows(sweep)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """That of a sweep that has been begun."""
    sweep, rows = planned(tmp_path)
    with held(sweep.directory, sweep, rows):
        pass
    return sweep.directory


def test_the_sweep_and_every_row_are_recorded(directory: Path, tmp_path: Path) -> None:
    assert load_sweep(str(directory / "sweep.yaml")) == load_sweep(sweep_file(tmp_path))
    recorded = yaml.safe_load((directory / "runs" / "staleness=4" / "row.yaml").read_text())
    assert (recorded["replay"]["max_staleness"], recorded["updates"]) == (4, 20)


def test_the_same_sweep_goes_on_also_with_more_rows_and_other_seeds(directory: Path, tmp_path: Path) -> None:
    check_directory(directory, planned(tmp_path)[1])
    more = {"axes": {"staleness": {"replay.max_staleness": [0, 4, 16]}}, "seeds": [3]}
    check_directory(directory, planned(tmp_path, **more)[1])


def test_a_row_with_another_setting_is_refused_with_what_differs(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_directory(directory, planned(tmp_path, set={"updates": 30, "learner.loss.tau": 0.1})[1])
    assert str(caught.value) == (
        f"{directory} holds runs of this sweep with other settings: staleness=0: updates (was 20, is 30); staleness=0: "
        "learner.loss.tau (was 0.05, is 0.1); staleness=4: updates (was 20, is 30); staleness=4: learner.loss.tau (was "
        "0.05, is 0.1); go on with the same settings, or start anew with --output DIR"
    )


def test_what_is_unset_is_the_same_setting_as_the_number_that_follows_from_it(directory: Path, tmp_path: Path) -> None:
    """Runs at a bound of 0 have no anchor, others one of 0.32 over twice their lag: 2 x (4 + 1) = 10 steps."""
    zero = {"staleness": {"0": {"replay.max_staleness": 0, "learner.anchor.weight": 0}}}
    check_directory(directory, planned(tmp_path, axes=zero)[1])
    own = {"replay.max_staleness": 4, "learner.anchor": {"weight": 0.32, "horizon": 10}}
    check_directory(directory, planned(tmp_path, axes={"staleness": {"4": own}})[1])
    none = planned(tmp_path, axes={"staleness": {"4": {"replay.max_staleness": 4, "learner.anchor.weight": 0}}})[1]
    with pytest.raises(UsageError, match=r"learner\.anchor\.weight \(was 0\.32, is 0(\.0)?\)"):
        check_directory(directory, none)


def test_a_changed_base_is_noticed(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("model: {path: world}\nprompts: {source: world}\njudging: {judge: {kind: gold}}\nupdates: 20\n")
    sweep, rows = planned(tmp_path, base=str(base), set={})
    with held(sweep.directory, sweep, rows):
        pass
    base.write_text(base.read_text().replace("20", "40"))
    with pytest.raises(UsageError, match=r"staleness=0: updates \(was 20, is 40\)"):
        check_directory(sweep.directory, planned(tmp_path, base=str(base), set={})[1])


def test_a_setting_that_the_record_does_not_name_is_not_compared(directory: Path, tmp_path: Path) -> None:
    """A newer version has more settings."""
    path = directory / "runs" / "staleness=4" / "row.yaml"
    recorded = yaml.safe_load(path.read_text())
    del recorded["learner"]["anchor"]
    path.write_text(yaml.safe_dump(recorded))
    check_directory(directory, planned(tmp_path)[1])


def test_a_directory_with_something_else_is_refused(tmp_path: Path) -> None:
    rows = planned(tmp_path)[1]
    other = tmp_path / "other"
    check_directory(other, rows)
    other.mkdir()
    check_directory(other, rows)
    (other / "thesis.tex").touch()
    with pytest.raises(
        UsageError, match=r"other is not empty and holds no sweep\.yaml; choose another with --output DIR"
    ):
        check_directory(other, rows)


def test_a_file_in_the_place_of_the_directory_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cannot be written: .*file is not a writable directory; choose another"):
            check_directory(directory, planned(tmp_path)[1])


def test_two_processes_do_not_hold_one_directory(directory: Path, tmp_path: Path) -> None:
    sweep, rows = planned(tmp_path)
    with (
        held(directory, sweep, rows),
        pytest.raises(UsageError, match=r"another process runs a sweep in .*; wait for its end, or choose another"),
        held(directory, sweep, rows),
    ):
        pass
    with held(directory, sweep, rows):
        pass
