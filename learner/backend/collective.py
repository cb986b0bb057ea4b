"""Small agreements between the ranks of a process group. Functions are collective: all ranks must enter them."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from actors.errors import RunError, system_error, writing_remedy


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
