"""How many runs go on at a time, by what they reserve and what a machine has."""

from __future__ import annotations

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.sweep.room import Room, memory_of, slots

GIB = 1 << 30
CPU = load_config("embedded")  # reserves one core for its generator and one for its learner rank
NODE = load_config("gpu-1", ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm:f"])


def test_a_run_on_cpu_takes_its_processes_its_cache_and_ray_s_store() -> None:
    """Judge, rank, generator, driver and Ray's own: 5 GiB; 64 MiB of cache and 512 MiB of objects."""
    assert memory_of(CPU) == 5 * GIB + (64 << 20) + (512 << 20)


@pytest.mark.parametrize(
    ("cpus", "gib", "parallel"),
    [(2, 64, 1), (1, 64, 1), (8, 64, 4), (9, 64, 4), (8, 12, 2), (8, 2, 1)],
)
def test_runs_fill_the_cores_and_the_memory_and_one_always_goes_on(cpus: int, gib: int, parallel: int) -> None:
    threads = {"OMP_NUM_THREADS": str(cpus // parallel)} if parallel > 1 else {}
    assert slots([CPU], None, Room(cpus, gib * GIB, [])) == [threads] * parallel


def test_the_largest_run_counts() -> None:
    larger = load_config("embedded", ["generators.count=3"])
    assert len(slots([CPU, larger], None, Room(8, 64 * GIB, []))) == 2


def test_a_number_that_is_given_counts_on_cpu() -> None:
    assert slots([CPU], 5, Room(2, 4 * GIB, [])) == [{"OMP_NUM_THREADS": "1"}] * 5


def test_runs_on_gpus_get_cards_of_their_own() -> None:
    room = Room(64, 512 * GIB, ["2", "5", "6"])
    by_card = [{"CUDA_VISIBLE_DEVICES": card, "OMP_NUM_THREADS": "21"} for card in room.cards]
    assert slots([NODE], None, room) == by_card
    assert slots([NODE], 2, room) == [each | {"OMP_NUM_THREADS": "32"} for each in by_card[:2]]
    assert slots([NODE], 1, room) == [{}]
    assert slots([NODE], None, Room(64, 512 * GIB, [])) == [{}], "the run itself says that it has no GPU"


def test_more_runs_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--parallel 3 runs of up to 1 GPUs each exceed the 2 GPUs .* lower it to 2"):
        slots([NODE], 3, Room(64, 512 * GIB, ["0", "1"]))


def test_a_joined_cluster_is_shared_out_by_ray() -> None:
    joined = load_config("embedded", ["cluster.address=10.0.0.1:6379"])
    assert slots([joined], None, Room(64, 512 * GIB, [])) == [{}]
    assert slots([joined], 4, Room(2, GIB, [])) == [{}] * 4


def test_runs_that_need_one_port_go_on_one_by_one() -> None:
    assert len(slots([load_config("embedded", ["learner.port=29500"])], None, Room(64, 512 * GIB, []))) == 1
