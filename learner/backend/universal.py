"""Load a checkpoint on a different number of ranks, through DeepSpeed's universal form with unsharded tensors.

`sharded.py` passes in the functions that convert and load. Must not import deepspeed.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import UsageError
from actors.files import TEMPORARY, discard
from learner.backend.collective import error_of, gather

T = TypeVar("T")
_CONVERSION_TIMEOUT = timedelta(days=1)
_FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def only_world_size_differs(written: dict[str, Any], own: dict[str, Any]) -> bool:
    """Tell whether two layouts differ in `ranks` and in nothing else."""
    return written != own and {**written, "ranks": None} == {**own, "ranks": None}


def seed_of_new_rank(random_state: Tensor, rank: int) -> int:
    """Draw the seed of a rank that did not exist when the checkpoint was written.

    It is draw number `rank`, from 0, from [0, 2^63 - 1) by a CPU generator in rank 0's saved `random_state`.
    """
    generator = torch.Generator()
    generator.set_state(random_state)
    return int(torch.randint(2**63 - 1, (rank + 1,), generator=generator)[rank])


@contextmanager
def weights_only(classes: Sequence[Any]) -> Iterator[None]:
    """Restrict torch.load to tensors, plain values and `classes`, in all threads and whatever its caller asks for.

    DeepSpeed's converter and its loader of the universal form would run any code that a pickle holds.
    """
    before = os.environ.get(_FORCE_WEIGHTS_ONLY)
    known = torch.serialization.get_safe_globals()
    # On exit torch's context would also revoke classes that an enclosing context allows.
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
    """Let rank 0 `convert` into a directory beside `checkpoint`, and all ranks `load` from it. Collective.

    The directory is removed after loading or a failure; if the process is killed, the next `checkpoints.begin` removes
    it. Raises UsageError on every rank if the conversion fails.
    """
    stage = checkpoint.with_name(f"{TEMPORARY}universal-{checkpoint.name}")
    first = dist.get_rank() == 0

    def prepare() -> None:
        discard(stage)
        stage.mkdir()
        convert(stage)

    # Collectives of the default group time out after minutes, and rank 0 copies the whole state. If a rank dies, its
    # closed connections end the wait of the others.
    waiting = dist.new_group(backend="gloo", timeout=_CONVERSION_TIMEOUT)
    try:
        # A torn file fails in as many ways as it can be torn.
        failure = error_of(prepare) if first else None
        reports = gather(None if failure is None else f"{type(failure).__name__}: {failure}", waiting)
        if any(reports):
            raise UsageError(
                f"checkpoint {checkpoint} could not be converted to learner.ranks {len(reports)}: {reports[0]}. The "
                f"conversion needs up to twice the size of its engine state below {checkpoint.parent}: free space "
                "there and make it writable, or resume with the learner.ranks it was written with"
            ) from failure
        loaded = load(stage)
        dist.barrier(waiting)  # the others may still be reading
    finally:
        if first:
            discard(stage)
        dist.destroy_process_group(waiting)
    return loaded


def described(layout: dict[str, Any]) -> str:
    """Return the settings that an engine state was written with, as a user writes them."""
    return ", ".join(f"learner.{name} {value}" for name, value in layout.items())


@contextmanager
def linked(*directories: Path) -> Iterator[list[Path]]:
    """Link `directories` under plain names: DeepSpeed treats paths as glob patterns."""
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, str(number)) for number in range(len(directories))]
        for link, directory in zip(links, directories, strict=True):
            link.symlink_to(directory.resolve(), target_is_directory=True)
        yield links
