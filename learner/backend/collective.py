"""Rendezvous of the ranks of a process group, and small agreements between them.

Functions are collective: all ranks must enter them.
"""

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from actors.errors import RunError, system_error, writing_remedy
from actors.host import bound_socket

MEETING = "offbeat://"
"""The `init_method` with which torch's ranks meet as `_meet` does."""

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def _meet(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Yield the store of rank 0, which listens at MASTER_ADDR alone; torch's own listens on all interfaces.

    Without RANK this process is the only rank.
    """
    place = os.environ if "RANK" in os.environ else _ALONE
    rank, size = int(place["RANK"]), int(place["WORLD_SIZE"])
    host, port = place["MASTER_ADDR"], int(place["MASTER_PORT"])
    if rank > 0:
        yield dist.TCPStore(host, port, size, timeout=timeout), rank, size
        return
    server = bound_socket(host, port)
    port = server.getsockname()[1]
    yield dist.TCPStore(host, port, size, is_master=True, timeout=timeout, master_listen_fd=server.detach()), 0, size


dist.register_rendezvous_handler(MEETING.partition(":")[0], _meet)


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def agree(error: Exception | None, what: str) -> None:
    """Raise RunError on every rank if any rank has an error, so that no rank waits for one that stopped."""
    own = None
    if error is not None:
        cause = system_error(error)
        own = f"rank {dist.get_rank()}: {str(cause) or type(cause).__name__}", writing_remedy(error)
    failed = [each for each in gather(own) if each]
    if failed:
        raise RunError(f"{what}: {'; '.join(message for message, _ in failed)}; {failed[0][1]}, then use --resume")


def error_of(action: Callable[[], Any]) -> Exception | None:
    """Call `action` and return its error, of whatever kind, to be passed to `agree`. Not collective.

    A rank that raised instead would leave the others waiting.
    """
    try:
        action()
    except Exception as error:
        return error
    return None
