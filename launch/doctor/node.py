"""A node that is not this machine, as a user describes it: so many GPUs of so many GB."""

import re
from collections.abc import Sequence

from actors.errors import UsageError
from actors.foreign.text import many
from launch.doctor.machine import Gpu

MOST_GPUS, MOST_GB = 64, 1024
GB = 10**9  # as vendors count, which is less than what a card has


def described(text: str) -> list[Gpu]:
    """Return the GPUs of a description such as 8x80. Raises UsageError if it is none."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?:GB?)?", text.strip(), re.IGNORECASE)
    count, size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= count <= MOST_GPUS and 1 <= size <= MOST_GB):
        raise UsageError(
            f"--gpus {text}: give the number of GPUs of one node, 1 to {MOST_GPUS}, and the GB of each, 1 to "
            f"{MOST_GB}, such as 8x80"
        )
    return [Gpu(index, "", size * GB, 0, "") for index in range(count)]


def what(gpus: Sequence[Gpu]) -> str:
    """Return words for a described node."""
    return f"a node with {many(len(gpus), 'GPU')} of {gpus[0].total // GB} GB"
