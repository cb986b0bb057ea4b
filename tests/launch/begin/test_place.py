"""A node that is described, in place of this machine."""

from __future__ import annotations

import pytest

from actors.errors import UsageError
from launch.begin.place import machine_for


@pytest.mark.parametrize("given", ["8x80", "8X80GB", " 8x80g "])
def test_gpus_are_a_number_and_gigabytes_of_each(given: str) -> None:
    place, (note,) = machine_for(given)
    assert (len(place.gpus), place.gpus[7].total, place.cores, place.here) == (8, 80 * 10**9, 64, False)
    assert place.what == "a node with 8 GPUs of 80 GB"
    assert "a node with 8 GPUs of 80 GB" in note


def test_one_gpu_is_one() -> None:
    assert machine_for("1x24")[0].what == "a node with 1 GPU of 24 GB"


@pytest.mark.parametrize("given", ["", "8", "x80", "8x", "0x80", "8x0", "65x80", "8x1025", "8 x 80", "8x80x2", "-8x80"])
def test_another_word_is_told_what_to_give(given: str) -> None:
    with pytest.raises(UsageError, match="the number of GPUs of one node, 1 to 64, and the GB of each, 1 to 1024") as e:
        machine_for(given)
    assert str(e.value).startswith(f"--gpus {given}: ")
