"""The machine that a run is for."""

from __future__ import annotations

from launch.begin.place import machine_for
from launch.doctor import machine


def test_a_described_node_has_eight_cores_for_each_gpu() -> None:
    place, (note,) = machine_for("4x80")
    assert (len(place.gpus), place.cores, place.asked) == (4, 32, "4x80")
    assert note == "the run is for a node with 4 GPUs of 80 GB, whose cores, memory and disk are not known here"


def test_undescribed_it_is_this_one() -> None:
    place, _ = machine_for(None)
    assert (place.cores, place.asked, place.what) == (machine.cpus(), None, "this machine")
