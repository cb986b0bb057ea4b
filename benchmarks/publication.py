"""Seconds of one publication beside one copy of its bytes, and what it costs the learner's step.

    python -m benchmarks.publication [--transports shm gloo] [--rounds 5] [--step-tokens 1024]

Tensors of the sizes of SmolLM2-135M in bfloat16; a process of one thread for each side, on one machine. `publish` is
what the learner's update waits for: the weights' fingerprints, and their copy, with `shm` into the file. `transfer`
runs beside the next update. `load` is what an engine does between two steps with what arrived: checks, and a copy into
its own tensors; vLLM's repacking for CPUs is not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import record

SECONDS = 300.0
CPU = torch.device("cpu")


def shapes(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tied Llama with three query heads to a key head, as SmolLM2-135M (576, 30, 49152)."""
    inner, keys = hidden * 8 // 3, hidden // 3
    named: dict[str, tuple[int, ...]] = {"embed": (vocabulary, hidden), "norm": (hidden,)}
    for layer in range(layers):
        named |= {
            f"{layer}.q": (hidden, hidden),
            f"{layer}.k": (keys, hidden),
            f"{layer}.v": (keys, hidden),
            f"{layer}.o": (hidden, hidden),
            f"{layer}.gate": (inner, hidden),
            f"{layer}.up": (inner, hidden),
            f"{layer}.down": (hidden, inner),
            f"{layer}.norm1": (hidden,),
            f"{layer}.norm2": (hidden,),
        }
    return named


def weights_of(size: dict[str, int]) -> dict[str, Tensor]:
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes(**size).items()}


def serve(pipe: Connection, size: dict[str, int], transport: str) -> None:
    """The engine's side, in a process of its own: one answer per publication, or a copy for comparison."""
    from actors.generation.receivers import receiver_of

    torch.set_num_threads(1)
    own = weights_of(size)
    pipe.send("ready")
    receiver = receiver_of(transport, CPU, worker=0)
    while (request := pipe.recv()) is not None:
        if request == "copy":
            pipe.send(copy_seconds(own))
            continue
        manifest, payload = request
        began = time.perf_counter()
        arrived = receiver.fetch(manifest, payload)
        fetched = time.perf_counter()
        for name, tensor in own.items():
            tensor.copy_(arrived[name])
        pipe.send((fetched - began, time.perf_counter() - fetched))


def copy_seconds(tensors: dict[str, Tensor]) -> float:
    """Copy every tensor into memory that is fresh from the system: one block, too large for the allocator to keep."""
    parts = [tensor.reshape(-1).view(torch.uint8) for tensor in tensors.values()]
    began = time.perf_counter()
    fresh = torch.empty(sum(part.numel() for part in parts), dtype=torch.uint8)
    for place, part in zip(fresh.split([part.numel() for part in parts]), parts, strict=True):
        place.copy_(part)
    return time.perf_counter() - began


def random_publication(transport: str, directory: Path, size: int) -> tuple[Any, Any]:
    """A publisher with version 0, `size` bytes in tensors of 32 MiB without a meaning, and its manifest."""
    from learner.publication.config import PublicationConfig
    from learner.publication.publisher import Publisher

    elements = 8 << 20
    count = max(1, size // (4 * elements))
    tensors = {f"part.{i}": torch.arange(i, i + elements, dtype=torch.int32) for i in range(count)}
    publisher = Publisher(PublicationConfig(transport=transport), directory)
    return publisher, publisher.publish(0, tensors, no_canary())


def no_canary() -> Any:
    from actors.records import Canary

    return Canary((1, 2), (0.0,))


class Learner:
    """The learner's side: weights, a publisher, and one engine at the other end of a pipe."""

    def __init__(self, size: dict[str, int], transport: str, directory: Path) -> None:
        from learner.publication.config import PublicationConfig
        from learner.publication.publisher import Publisher

        self.transport, self.weights = transport, weights_of(size)
        self.publisher = Publisher(PublicationConfig(transport=transport), directory)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, size, transport))
        self._process.start()
        assert self._pipe.recv() == "ready"
        self._seat: Any = None

    def publish(self, version: int) -> Any:
        """Publish as the learner does; an update waits for this."""
        return self.publisher.publish(version, self.weights, no_canary())

    def bring(self, manifest: Any) -> tuple[float, float]:
        """Send it, as the driver does; return the engine's seconds: until all is there and checked, and to load it."""
        payload: list[Any] = [self.publisher.chunk(i) for i in range(self.publisher.chunk_count)]
        if self.transport != "gloo":
            self._pipe.send((manifest, payload))
            return self._pipe.recv()
        self._seat = self._seat or self.publisher.sender.open_group(2, SECONDS)  # type: ignore[attr-defined]
        self._pipe.send((manifest, [replace(self._seat, rank=1)]))
        self.publisher.sender.send(manifest, self._seat)  # type: ignore[attr-defined]
        return self._pipe.recv()

    def copies(self) -> tuple[float, float]:
        """Seconds of one copy here, and of one in the engine's process."""
        here = copy_seconds(self.weights)
        self._pipe.send("copy")
        return here, self._pipe.recv()

    def close(self) -> None:
        self.publisher.close()
        self._pipe.send(None)
        self._process.join(60)


def measured(learner: Learner, rounds: int) -> dict[str, Any]:
    """Medians over the rounds after the first, which meets fresh memory and makes the group."""
    names = ("publish", "transfer", "load", "total", "copy_learner", "copy_engine")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for version in range(rounds + 1):
        copies = learner.copies()
        began = time.perf_counter()
        manifest = learner.publish(version)
        published = time.perf_counter()
        fetched, loaded = learner.bring(manifest)
        ended = time.perf_counter()
        learner.publisher.retire(version)
        if version:
            values = (published - began, fetched, loaded, ended - began, *copies)
            for name, seconds in zip(figures, values, strict=True):
                figures[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    copies = [total / (here + there) for total, here, there in zip(*(figures[name] for name in names[3:]), strict=True)]
    return medians | {"copies": statistics.median(copies)}


def step_delay(learner: Learner, size: dict[str, int], tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of a forward and backward pass of such a model alone, and with a publication beside each, in turn.

    `least_delay` compares the fastest of both: what remains when other programs use this machine least.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = size["hidden"]
    config = LlamaConfig(
        vocab_size=size["vocabulary"],
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=size["layers"],
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    ids = torch.randint(0, size["vocabulary"], (max(1, tokens // 128), 128))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    step()
    alone, beside = [], []
    for version in range(1000, 1000 + rounds):
        began = time.perf_counter()
        step()
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        manifest = learner.publish(version)
        sending = threading.Thread(target=learner.bring, args=(manifest,))
        sending.start()
        step()
        beside.append(time.perf_counter() - began)
        sending.join()
        learner.publisher.retire(version)
    delays = [b / a - 1.0 for a, b in zip(alone, beside, strict=True)]
    return {
        "tokens": ids.numel(),
        "step": statistics.median(alone),
        "delay": statistics.median(delays),
        "least_delay": min(beside) / min(alone) - 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["shm", "gloo"])
    parser.add_argument("--hidden", type=int, default=576, help="a multiple of 288")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-tokens", type=int, default=0, help="of a learner's step; 0: no steps")
    parser.add_argument("--step-transport", default="gloo", help="the one that steps are measured with")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/publication.json"))
    arguments = parser.parse_args()
    from launch.output.summary import package_versions

    torch.set_num_threads(1)
    size = {name: getattr(arguments, name) for name in ("hidden", "layers", "vocabulary")}
    result: dict[str, Any] = {"size": size, "transports": {}}
    for transport in arguments.transports:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            learner = Learner(size, transport, Path(folder) / "run")
            figures = measured(learner, arguments.rounds)
            if arguments.step_tokens and transport == arguments.step_transport:
                figures |= step_delay(learner, size, arguments.step_tokens, arguments.rounds)
            learner.close()
        result["bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in learner.weights.values())
        result["transports"][transport] = figures
        print(transport, " ".join(f"{name} {value:.3f}" for name, value in figures.items()), flush=True)
    record.write(arguments.output, result | {"machine": record.machine(), "versions": package_versions()})


if __name__ == "__main__":
    main()
