"""The process at the other end of a `Child`: an engine, or a receiver without one.

    python -m benchmarks.gpu_acceptance.served FD

Imports nothing heavy before it has said what its environment is.
"""

import os
import pickle
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu_acceptance.parts import Sample

TRANSFER, LOAD, TOTAL = "check_publication", "load_publication", "total"
"""The first two: methods of `actors/generation/weight_receiver.py`, whose time is taken."""


class ServedEngine:
    """An engine of the product. `sleeps`: it can give the card's memory back."""

    def __init__(self, spec: Any, sleeps: bool = False) -> None:
        from actors.generation.engine import Engine
        from actors.generation.startup.build import build

        seconds: dict[str, float] = {}

        class TimedEngine(Engine):
            def _call_workers(self, method: str, *arguments: Any) -> Any:
                began = time.perf_counter()
                try:
                    return super()._call_workers(method, *arguments)
                finally:
                    seconds[method] = time.perf_counter() - began

            def _build(self) -> Any:
                return build(self._spec, **({"enable_sleep_mode": True} if sleeps else {}))

        self._seconds = seconds
        self._engine: Any = TimedEngine(spec)

    def load(self, manifest: Any, payload: Any) -> dict[str, float]:
        """Return the seconds of each step of taking a version."""
        self._seconds.clear()
        began = time.perf_counter()
        self._engine.load(manifest, payload)
        return self._seconds | {TOTAL: time.perf_counter() - began}

    def version(self) -> int:
        return self._engine.version

    def sample(
        self, prompts: Sequence[tuple[int, ...]], beta: float | None = None, seed: int = 0
    ) -> tuple[list[Sample], float]:
        """Sample one answer for each prompt, all together; return them with the seconds that it took.

        `beta`: weight of the second model, for an engine that holds two.
        """
        if beta is not None:
            # One engine has one beta in a run. Requests can have any.
            self._engine._requests.opponent_params = self._engine._requests.sampling_params(beta)
        began = time.perf_counter()
        for number, prompt in enumerate(prompts):
            self._engine.add(str(number), prompt, opponent=beta is not None, seed=seed + number)
        finished = {}
        while self._engine.busy:
            finished.update(self._engine.step())
        seconds = time.perf_counter() - began
        answers = [finished[str(number)] for number in range(len(prompts))]
        return [Sample(p, a.token_ids, a.logprobs) for p, a in zip(prompts, answers, strict=True)], seconds

    def sleep(self, level: int) -> tuple[float, int]:
        """Put the engine to sleep; return the seconds, and the bytes of the card that it gave back.

        Level 1 keeps the weights in host memory, level 2 forgets them.
        """
        import torch

        free, _ = torch.cuda.mem_get_info()
        began = time.perf_counter()
        self._engine._llm.sleep(level)
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.mem_get_info()[0] - free

    def wake(self) -> float:
        """Return the seconds until the engine has its memory again."""
        began = time.perf_counter()
        if not self._engine._llm.wake_up():
            raise RuntimeError("the engine says that it is not fully awake")
        return time.perf_counter() - began


class ServedReceiver:
    """The receiving end of a broadcast, without an engine."""

    def __init__(self, transport: str, cuda: bool) -> None:
        import torch

        from actors.generation.receivers import receiver_of

        torch.set_num_threads(1)
        self._transport = transport
        self._device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        self._receiver = receiver_of(transport, self._device, worker=0)

    def fetch(self, manifest: Any, payload: Any) -> float:
        """Return the time at which all of a version was there and checked."""
        self._receiver.fetch(manifest, payload)
        return time.monotonic()

    def die_during(self, manifest: Any, seat: Any, pipe: Connection) -> None:
        """Join the transfer, say the time when the first bucket is there, and end as by kill -9."""
        import torch

        from actors.generation.transfer_group import TransferGroup, bucket_bytes, buckets

        group = TransferGroup(self._transport, seat, self._device)
        sizes = [bucket_bytes(part) for part in buckets(manifest.tensors)]
        group.begin()
        regions = (torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes)
        for _ in group.broadcast(regions):
            pipe.send((time.monotonic(), None))
            os.kill(os.getpid(), signal.SIGKILL)


SERVED = {"engine": ServedEngine, "receiver": ServedReceiver}


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    pipe.send(({"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "torch": "torch" in sys.modules}, None))
    served: Any = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            os._exit(0)  # the libraries' own way out takes seconds
        try:
            if served is None:
                served = SERVED[method](*arguments)
                pipe.send((None, None))
                continue
            if method == "die_during":
                arguments = (*arguments, pipe)
            pipe.send((getattr(served, method)(*arguments), None))
        except Exception as error:
            pipe.send((None, _sendable(error)))
            if served is None:
                return


if __name__ == "__main__":
    main()
