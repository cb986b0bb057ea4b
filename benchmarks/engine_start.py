"""An engine's start, with Python's garbage collector at rest while vLLM is imported and without that.

    python -m benchmarks.engine_start [--rounds 5] [--output benchmarks/results/engine_start.json]

Each start is a process of its own, from `import` to an engine that could sample; the two ways alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import record

WAYS = ("at_rest", "collecting")


def start(model: str, way: str) -> float:
    """Seconds to import and build one engine in this process."""
    began = time.monotonic()
    from actors.generation import engine
    from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
    from actors.generation.startup import build

    if way == "collecting":
        build.gc_paused = contextlib.nullcontext
    settings = GeneratorConfig(dtype="float32", max_model_len=64)
    os.environ.update(engine.engine_environment(settings, cuda=False))
    spec = GeneratorSpec(model_dir=model, generators=settings, sampling=SamplingConfig(max_new_tokens=48))
    engine.Engine(spec)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/engine_start.json"))
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(f"\nseconds {start(*arguments.one)}")
        return
    from launch.output.summary import package_versions
    from learner.world.policy import PolicySize, train_sft

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "start"
        train_sft(model, updates=1, seed=0, size=PolicySize(hidden=256, layers=4, heads=8))
        for _ in range(arguments.rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.engine_start", "--one", str(model), way]
                process = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
                )
                seconds[way].append(float(process.stdout.rpartition("seconds ")[2]))
            print(" ".join(f"{way} {values[-1]:.1f} s" for way, values in seconds.items()), flush=True)
    ratio = statistics.median(a / b for a, b in zip(seconds["at_rest"], seconds["collecting"], strict=True))
    result = {
        "seconds": seconds,
        "median_ratio": ratio,
        "machine": record.machine(),
        "versions": package_versions(),
    }
    record.write(arguments.output, result)
    print(f"at rest {ratio:.2f} of collecting")


if __name__ == "__main__":
    main()
