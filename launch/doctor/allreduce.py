"""A small all-reduce over two processes of this machine, each with a GPU of its own: whether NCCL works at all.

In processes of their own and with a limit on their time, because a broken NCCL hangs or ends the process. Not run on
GPUs so far; the same with gloo on CPU is tested.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from datetime import timedelta

ELEMENTS = 1 << 20
SECONDS = 90.0
"""For the whole test, imports included."""


def problem_between_two(backend: str = "nccl", seconds: float = SECONDS) -> tuple[str | None, float]:
    """Runs the test. Returns what went wrong, or None, and the seconds it took."""
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "launch.doctor.allreduce", backend, str(port)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, said = rank.communicate(timeout=max(0.1, seconds - (time.monotonic() - started)))
            if rank.returncode:
                lines = said.strip().splitlines()
                return (lines[-1] if lines else f"exit code {rank.returncode}"), time.monotonic() - started
    except subprocess.TimeoutExpired:
        return f"no result within {seconds:g} s", time.monotonic() - started
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            if rank.stderr is not None:
                rank.stderr.close()
    return None, time.monotonic() - started


def reduce_as(backend: str, port: int, rank: int) -> None:
    """One of the two processes: adds up rank + 1 over both. Raises RuntimeError when the sum is not 3 everywhere."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=SECONDS / 2),
    )
    values = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    wrong = int((values != 3.0).sum())
    dist.destroy_process_group()
    if wrong:
        raise RuntimeError(f"the sum over two ranks is wrong in {wrong} of {ELEMENTS} elements")


if __name__ == "__main__":
    reduce_as(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
