"""Cost of verifying a checkpoint beside loading it, and of writing its manifest beside saving it.

One rank takes a step with a model, saves, and loads what it saved: with the files in the page cache, as after a fault
of the run, and without, as after a reboot. Without, verifying fills the cache that the load then finds: compared is a
load of verified files with a load of files that nobody read.

python -m benchmarks.verification --model MODEL_DIR --output benchmarks/results/verification.json
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import machine, write
from learner.backend import checkpoints, manifest
from learner.backend.models import load_policy
from learner.backend.sharded import ShardedModel, join_process_group
from learner.config import TrainerConfig


def seconds(call: Callable[[], Any]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def forget(directory: Path) -> None:
    """Drop the files below a directory from the page cache (Linux). They are written to disk first."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(model_dir: Path, root: Path, repeats: int, zero_stage: int) -> dict[str, Any]:
    """Return medians over `repeats` of saving, sealing, verifying and loading one checkpoint below `root`."""
    config = TrainerConfig(cpus_per_rank=torch.get_num_threads(), zero_stage=zero_stage)
    device = join_process_group(config)
    model = ShardedModel(load_policy(model_dir, config.dtype), config, 10, device, model_dir)
    model.begin_update()
    tokens = torch.arange(16).reshape(2, 8)
    model.backward(model.model(tokens).logits.float().logsumexp(-1).mean(), last=True)
    model.step()
    stage = checkpoints.begin(root, "update-1")
    saving = seconds(lambda: model.save(stage))
    checkpoints.write_state(stage, {"updates": 1})
    sealing = [seconds(lambda: manifest.seal(stage)) for _ in range(repeats)]
    path = checkpoints.commit(root, "update-1", keep=1)
    # In turns, so that both see the same machine.
    pairs = [(seconds(lambda: checkpoints.verify(path)), seconds(lambda: model.load(path))) for _ in range(repeats)]
    verifying, loading = (statistics.median(each) for each in zip(*pairs, strict=True))
    from_disk, verified_from_disk = [], []
    for _ in range(repeats):
        forget(path)
        from_disk.append(seconds(lambda: model.load(path)))
        forget(path)
        verified_from_disk.append(seconds(lambda: checkpoints.verify(path)) + seconds(lambda: model.load(path)))
    plain, checked = statistics.median(from_disk), statistics.median(verified_from_disk)
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    model.close()
    return {
        "model": model_dir.name,
        "zero_stage": zero_stage,
        "bytes": nbytes,
        "seconds": {
            "save": saving,
            "manifest": statistics.median(sealing),
            "verify": verifying,
            "load": loading,
        },
        "verify_over_load": verifying / loading,
        "from_disk": {"load": plain, "verify_and_load": checked, "added_over_load": checked / plain - 1.0},
        "verify_gb_per_second": nbytes / verifying / 1e9,
        "repeats": repeats,
        "torch_threads": torch.get_num_threads(),
        **machine(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(arguments.model, Path(directory), arguments.repeats, arguments.zero_stage)
    write(arguments.output, result)
    print(json.dumps(result))
