"""Load a checkpoint written by another number of ranks, through DeepSpeed's universal form.

In that form each parameter and each of its moments is whole. Knows where the converted files go, how they are read, and
how to seed ranks that did not exist when the checkpoint was written. Must not import DeepSpeed: `sharded.py` passes the
functions that convert and load.
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
from actors.files import TEMPORARY
from learner.backend.checkpoints import discard
from learner.backend.collective import gather

T = TypeVar("T")
_PATIENCE = timedelta(days=1)
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def only_world_size_differs(written: dict[str, Any], own: dict[str, Any]) -> bool:
    """Return whether two layouts differ in their number of `ranks` and in nothing else."""
    return written != own and {**written, "ranks": None} == {**own, "ranks": None}


def seed_of_new_rank(random_state: Tensor, rank: int) -> int:
    """Return the seed of a rank without a saved state: draw `rank` (from 0) in [0, 2^63 - 1) of rank 0's generator."""
    generator = torch.Generator()
    generator.set_state(random_state)
    return int(torch.randint(2**63 - 1, (rank + 1,), generator=generator)[rank])


@contextmanager
def weights_only(classes: Sequence[Any]) -> Iterator[None]:
    """Restrict torch.load, in all threads and whatever its caller asks for, to tensors, plain values and `classes`.

    DeepSpeed's converter and its loader of the universal form ask for unrestricted unpickling.
    """
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    known = torch.serialization.get_safe_globals()
    # torch's context would, on exit, also remove classes that an enclosing context allows.
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
    """Convert on rank 0 into a temporary neighbour of `checkpoint`, and load from it on every rank. Collective.

    Raises UsageError on every rank if the conversion fails. `checkpoints.begin` removes what a kill may leave.
    """
    stage = checkpoint.with_name(f"{TEMPORARY}universal-{checkpoint.name}")
    first = dist.get_rank() == 0
    # Collectives of the default group time out after minutes, and rank 0 copies the whole state. If a rank dies, its
    # connections close and the others stop waiting all the same.
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
    except Exception as error:  # a damaged file can raise almost anything
        return error
    return None


def _agree(failure: Exception | None, checkpoint: Path, group: dist.ProcessGroup) -> None:
    causes = gather(None if failure is None else f"{type(failure).__name__}: {failure}", group)
    if any(causes):
        raise UsageError(
            f"checkpoint {checkpoint} could not be converted to learner.ranks {len(causes)}: {causes[0]}. The "
            f"conversion needs up to twice the size of its engine state below {checkpoint.parent}: free space there "
            "and make it writable, or resume with the learner.ranks it was written with"
        ) from failure
