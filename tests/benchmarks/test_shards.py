"""The simulation of many coordinators: its rates are those that its parts allow, and its buffers keep the bound."""

from __future__ import annotations

import pytest

from benchmarks.driver import Size
from benchmarks.shards import Cluster, Simulation, admission, journal

SMALL = {"generators": 100, "prompts": 800, "deaths_every": 1e9}
"""100 generators of 8 slots, 4 s for each group: 200 groups/s. A version takes them 4 s."""


def simulated(shards: int, group_seconds: float, warm: int = 3, **settings: float) -> dict:
    return Simulation(Cluster(shards, group_seconds, **(SMALL | settings)), updates=2 * warm, warm=warm).run()


def test_coordinators_that_keep_up_let_generators_work_all_the_time() -> None:
    result = simulated(4, 1e-4)
    assert result["groups_per_second"] == pytest.approx(200.0, rel=0.05)
    assert result["idle_share"] < 0.01
    assert set(result["staleness"]) <= {"0", "1", "2", "3", "4"}
    assert sum(result["staleness"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("shards", "rate"), [(1, 50.0), (2, 100.0)])
def test_coordinators_that_do_not_keep_up_set_the_rate(shards: int, rate: float) -> None:
    """20 ms a group: 50 groups/s for each of them, so the generators wait for three quarters or half of the time."""
    result = simulated(shards, 0.02)
    assert result["groups_per_second"] == pytest.approx(rate, rel=0.02)
    assert result["idle_share"] == pytest.approx(1 - rate / 200.0, abs=0.03)


def test_the_whole_goes_at_the_pace_of_its_slowest_shard() -> None:
    """Twice the time for each group, so the shard makes 25 of its 50 groups/s, and every batch needs its part.

    The others run ahead to the bound in the first ten versions, and wait from then on.
    """
    result = simulated(4, 1e-4, warm=12, slow_shard=1, slow_sampling=2.0)
    assert result["groups_per_second"] == pytest.approx(100.0, rel=0.1)
    least, most = result["idle_share_by_shard"]
    assert least < 0.1
    assert most == pytest.approx(0.5, abs=0.1)


def test_leases_of_dead_generators_are_trained_all_the_same() -> None:
    """Every batch is checked for all its leases as the simulation runs."""
    assert simulated(4, 1e-4, deaths_every=1.0)["leases_lost"] > 0


def test_the_measurements_are_of_groups() -> None:
    assert admission(20)["cpu_ms_per_group"] > 0.0
    assert journal(Size(2, 64), groups=4)["bytes_per_group"] > 2 * 64
