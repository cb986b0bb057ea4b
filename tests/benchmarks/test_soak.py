"""The soak: when a role has grown, and what of a run's processes and files is counted for which role."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.soak import Figures, Sample, columns, memory, role, shared_memory, shared_verdict, slope, verdict

UPDATES = 100
"""Compared are the updates 10 to 19 and 90 to 99."""


def run(memory: Sequence[int], descriptors: Sequence[int], shared: Sequence[tuple[int, int]] = ()) -> list[Sample]:
    """Samples of one role at the updates 5, 10, 15, 50, 90, 95 and 100."""
    moments = (5, 10, 15, 50, 90, 95, 100)
    return [
        Sample(float(update), update, {"judge": Figures(kib, kib + 1, kib + 2, files, 3, 1)}, at)
        for update, kib, files, at in zip(moments, memory, descriptors, shared or [(0, 0)] * 7, strict=True)
    ]


def test_a_role_is_flat_if_its_medians_rise_by_2_percent_at_most() -> None:
    """100,000 and 102,000 KiB; warming up, the middle and what comes after the last update count for nothing."""
    memory = [1, 99_000, 101_000, 500_000, 101_000, 103_000, 900_000]
    found = verdict("judge", run(memory, [1, 7, 9, 20, 8, 8, 99]), UPDATES)

    assert found["samples"] == [2, 2]
    assert found["allocated_kib"] == [100_000, 102_000]
    assert found["uss_kib"] == [100_001, 102_001]
    assert found["growth_percent"] == 2.0
    assert found["descriptors"] == [8, 8]
    assert found["flat"] is True


def test_a_role_whose_memory_rises_by_more_than_2_percent_is_not_flat() -> None:
    found = verdict("judge", run([1, 99_000, 101_000, 100_000, 101_100, 103_100, 1], [8] * 7), UPDATES)

    assert found["growth_percent"] == 2.1
    assert found["flat"] is False


@pytest.mark.parametrize(("more", "flat"), [(1024, True), (1025, False)])
def test_a_small_role_may_rise_by_a_mebibyte(more: int, flat: bool) -> None:
    memory = [1, 16_000, 16_000, 1, 16_000 + more, 16_000 + more, 1]
    assert verdict("judge", run(memory, [8] * 7), UPDATES)["flat"] is flat


def test_one_descriptor_more_is_growth() -> None:
    assert verdict("judge", run([1000] * 7, [8, 8, 8, 8, 9, 9, 9]), UPDATES)["flat"] is False
    assert verdict("judge", run([1000] * 7, [8, 8, 8, 8, 7, 7, 9]), UPDATES)["flat"] is True


def test_the_slope_is_of_all_samples_after_the_warm_up() -> None:
    """1000 KiB and 2 more with each update; the first sample is far off that line."""
    found = verdict("judge", run([100_000, 1020, 1030, 1100, 1180, 1190, 1200], [8] * 7), UPDATES)

    assert found["kib_per_1000_updates"] == 2000.0


def test_a_slope_is_by_least_squares() -> None:
    """Through (0, 1), (1, 3), (2, 2): means 1 and 2, products (-1)(-1) + 0 + (1)(0) = 1, squares 2."""
    assert slope([0, 1, 2], [1, 3, 2]) == pytest.approx(0.5)
    assert slope([4, 4], [1, 9]) == 0.0


def test_a_role_without_samples_in_a_window_is_not_judged() -> None:
    assert verdict("judge", run([1000] * 7, [8] * 7)[:4], UPDATES) == {"samples": [2, 0], "flat": None}
    assert verdict("learner", run([1000] * 7, [8] * 7), UPDATES) == {"samples": [0, 0], "flat": None}


@pytest.mark.parametrize(
    ("late", "flat"), [((200, 3), True), ((204, 3), True), ((205, 3), False), ((100, 4), False), ((50, 2), True)]
)
def test_shared_memory_is_compared_by_its_fullest_moments(late: tuple[int, int], flat: bool) -> None:
    samples = run([1] * 7, [1] * 7, [(0, 0), (100, 2), (200, 3), (900, 9), (50, 1), late, (900, 9)])

    assert shared_verdict(samples, UPDATES)["flat"] is flat


def test_a_role_is_the_sum_of_its_processes() -> None:
    assert Figures(1, 2, 3, 4, 5, 1) + Figures(10, 20, 30, 40, 50, 1) == Figures(11, 22, 33, 44, 55, 2)


def test_memory_is_read_from_the_kernel_s_account() -> None:
    rollup = """5643-7ffc ---p 00000000 00:00 0    [rollup]
Rss:                1644 kB
Pss:                 213 kB
Shared_Clean:       1488 kB
Private_Clean:        40 kB
Private_Dirty:       117 kB
Anonymous:           116 kB
"""
    assert memory(rollup) == (116, 157, 213)


def test_samples_are_written_in_columns_with_zeros_where_a_role_is_not_there() -> None:
    samples = [Sample(1.4, 2, {}, (5, 1)), Sample(3.6, 4, {"judge": Figures(10, 11, 12, 13, 14, 1)}, (6, 1))]

    written = columns(samples)

    assert (written["seconds"], written["updates"], written["shared_bytes"]) == ("1 4", "2 4", "5 6")
    assert written["roles"]["judge"]["uss_kib"] == "0 11"
    assert written["roles"]["judge"]["processes"] == "0 1"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["ray::RemoteGenerator.collect"], "generator"),
        (["VLLM::EngineCore"], "engine core"),
        (["ray::JudgeWorker"], "judge"),
        (["ray::LearnerWorker.update"], "learner"),
        (["ray::IDLE"], "idle workers"),
        (["/x/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=a"], "raylet"),
        (["/x/ray/core/src/ray/gcs/gcs_server", "--log_dir=b"], "gcs"),
        (["/x/python", "-u", "/x/ray/dashboard/agent.py"], "ray's agents"),
        (["/x/python", "-c", "from actors.judges.functions.child import main; main()", "7"], "judge function"),
        (["/x/python", "-m", "launch", "train", "a.yaml"], "driver"),
        (["/x/stranger", "-c", "1"], "other: stranger"),
        ([], "other: "),
    ],
)
def test_a_process_is_told_by_its_title_or_program(command: list[str], name: str) -> None:
    assert role(command, is_supervisor=False, is_its_child=True) == name


def test_the_supervisor_is_told_from_the_driver_by_who_started_it() -> None:
    command = ["/x/python", "-m", "launch", "train", "a.yaml"]

    assert role(command, is_supervisor=True, is_its_child=False) == "supervisor"
    assert role(command, is_supervisor=False, is_its_child=False) == "other: python"


def test_only_the_folder_whose_lock_names_the_run_is_counted(tmp_path: Path) -> None:
    """8 bytes of the lock's text and 6 of the file."""
    for name, owner in (("offbeat-1", "/runs/ab"), ("offbeat-2", "/runs/other")):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / ".lock").write_text(owner)
        (tmp_path / name / "weights" / "version-1").write_bytes(b"123456")

    assert shared_memory(Path("/runs/ab"), tmp_path) == (14, 2)
