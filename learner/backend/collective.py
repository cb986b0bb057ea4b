"""Small agreements between the ranks of the process group. Every function is collective: all ranks must enter it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from actors.errors import RunError


def gather(value: Any) -> list[Any]:
    """The values that all ranks gave, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agree(error: Exception | None, what: str) -> None:
    """Raises RunError on every rank when any rank met an error, so that none goes on to wait for one that stopped."""
    failed = [message for message in gather(None if error is None else f"rank {dist.get_rank()}: {error}") if message]
    if failed:
        raise RunError(f"{what}: {'; '.join(failed)}. Free space or make the directory writable, then resume")


def make_directory(directory: Path, what: str) -> None:
    """Every rank makes `directory` or finds it made. Raises RunError, beginning with `what`, when any cannot."""
    failure = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        failure = error
    agree(failure, what)
