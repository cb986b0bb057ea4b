"""A checkpoint that another number of ranks wrote, loaded through DeepSpeed's universal form, in which each parameter
and each of its moments is whole.

`sharded.py` gives the functions that convert and load; this module must not import deepspeed. It knows where the form
stands, how its files are read, and what random state a rank has that there was no such rank of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import UsageError
from learner.backend.checkpoints import discard

T = TypeVar("T")
_PATIENCE = timedelta(days=1)
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def differs_in_ranks_alone(written: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether two layouts are equal but for their number of `ranks`."""
    return written != own and {**written, "ranks": None} == {**own, "ranks": None}


def seed_of_new_rank(random_state: Tensor, rank: int) -> int:
    """The seed of `rank`, of which nothing was saved: number `rank`, from 0, of the draws from [0, 2^63 - 1) of a CPU
    generator in rank 0's saved `random_state`."""
    generator = torch.Generator()
    generator.set_state(random_state)
    return int(torch.randint(2**63 - 1, (rank + 1,), generator=generator)[rank])


@contextmanager
def tensors_alone(classes: Sequence[Any]) -> Iterator[None]:
    """Within it torch.load reads tensors, plain values and `classes`, whatever its caller asks for.

    DeepSpeed's converter and its loader of the universal form ask for all that a pickle may do. True of all threads.
    """
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    known = torch.serialization.get_safe_globals()
    # torch's context would, when it ends, also take away what one around it allows.
    allowed = [item for item in classes if item not in known]
    os.environ[_FORCE_WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE_WEIGHTS_ONLY]
        else:
            os.environ[_FORCE_WEIGHTS_ONLY] = before


def load_converted(checkpoint: Path, convert: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """What `load` returns of a directory beside `checkpoint` that `convert` filled on rank 0. Collective.

    The directory is removed when all ranks have loaded, or any failed; what a kill leaves of it goes with the next
    `checkpoints.begin`. Raises UsageError on every rank when it could not be filled.
    """
    stage = checkpoint.with_name(f".tmp-universal-{checkpoint.name}")
    first = dist.get_rank() == 0
    # Collectives of the default group give up after minutes, and rank 0 copies the whole state. A rank that dies ends
    # the waiting of the others all the same, with its connections.
    waiting = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        _agree(_conversion_failure(stage, convert) if first else None, checkpoint, waiting)
        loaded = load(stage)
        dist.barrier(waiting)  # the others may still be reading
    finally:
        if first:
            discard(stage)
        dist.destroy_process_group(waiting)
    return loaded


def _conversion_failure(stage: Path, convert: Callable[[Path], None]) -> Exception | None:
    try:
        discard(stage)
        stage.mkdir()
        convert(stage)
    except Exception as error:  # a torn file fails in as many ways as it can be torn
        return error
    return None


def _agree(failure: Exception | None, checkpoint: Path, group: dist.ProcessGroup) -> None:
    told: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if failure is None else f"{type(failure).__name__}: {failure}", group)
    if any(told):
        raise UsageError(
            f"checkpoint {checkpoint} could not be converted to learner.ranks {len(told)}: {told[0]}. The conversion "
            f"needs up to twice the size of its engine state below {checkpoint.parent}: free space there and make it "
            "writable, or resume with the learner.ranks it was written with"
        ) from failure
