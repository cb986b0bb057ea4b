"""Agreement between ranks. Every function is collective: all ranks of the process group must enter it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from actors.errors import RunError


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def agree(error: Exception | None, what: str) -> None:
    """Raise RunError on every rank if any rank met an error, so that none waits for one that stopped."""
    failed = [message for message in gather(None if error is None else f"rank {dist.get_rank()}: {error}") if message]
    if failed:
        raise RunError(f"{what}: {'; '.join(failed)}. Free space or make the directory writable, then resume")


def make_directory(directory: Path, what: str) -> None:
    """Create `directory` from every rank. Raises RunError that begins with `what` if any rank cannot."""
    failure = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = error
    agree(failure, what)
