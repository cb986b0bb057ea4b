"""Cost of a weight sync while long requests run: with their keys and values computed again, and with them kept.

    python -m benchmarks.on_update --model MODEL_DIR [--rounds 3] [--output benchmarks/results/on_update.json]

One process, one thread for kernels, two engines: `generators.on_update` recompute and keep. In every round each engine
samples the same prompts, once without a weight sync and once with some, evenly spaced over the steps; the order turns.
Publications hold the model's own weights, so that all requests go on as long. The cost of one sync is the difference of
the two batches, divided by the number of syncs; loading and the canary, equal for both, are in it. Seconds are of the
processor, which programs beside this one lengthen less than those of the clock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.records import Canary, Manifest
from benchmarks import record
from benchmarks.generator import Load

WAYS = ("recompute", "keep")
CANARY_TOKENS = 32


def engine_of(model: Path, load: Load, way: str, kv_cache_mib: int) -> Any:
    from actors.generation.engine import Engine

    generators = GeneratorConfig(
        dtype="bfloat16",
        max_model_len=load.prompt_tokens + load.new_tokens,
        max_running_prompts=load.prompts,
        kv_cache_mib=kv_cache_mib,
        on_update=way,
    )
    sampling = SamplingConfig(completions_per_prompt=load.completions, max_new_tokens=load.new_tokens)
    engine = Engine(GeneratorSpec(model_dir=model, generators=generators, sampling=sampling))
    # No request ends early, so that both engines do the same steps.
    engine._requests.params.stop_token_ids = []
    return engine


def published(model: Path, canary: Canary, directory: Path) -> Manifest:
    """Publish a model's own weights. Later versions are the same file under another number."""
    from safetensors.torch import load_file

    from learner.publication.config import PublicationConfig
    from learner.publication.publisher import Publisher

    publisher = Publisher(PublicationConfig(), directory)
    return publisher.publish(0, load_file(model / "model.safetensors"), canary)


def batch_seconds(engine: Any, load: Load, first: int, manifests: list[Manifest]) -> tuple[float, list[float]]:
    """Return the seconds of one batch, and those of each load in it."""
    for lease in load.leases(first):
        for k in range(load.completions):
            engine.add(f"{lease.index}.{k}", lease.prompt.token_ids)
    began, steps, loads = time.process_time(), 0, []
    at = {load.new_tokens * (number + 1) // (len(manifests) + 1): each for number, each in enumerate(manifests)}
    while engine.busy:
        if (manifest := at.pop(steps, None)) is not None:
            loading = time.process_time()
            engine.load(manifest)
            loads.append(time.process_time() - loading)
        engine.step()
        steps += 1
    return time.process_time() - began, loads


def measure(engines: dict[str, Any], load: Load, manifest: Manifest, arguments: argparse.Namespace) -> list[Any]:
    rounds, versions = [], itertools.count(1)
    for number in range(arguments.rounds + 1):
        result: dict[str, Any] = {}
        for way in WAYS[number % 2 :] + WAYS[: number % 2]:
            without, _ = batch_seconds(engines[way], load, 2 * number * load.prompts, [])
            manifests = [replace(manifest, version=next(versions)) for _ in range(arguments.syncs)]
            whole, loads = batch_seconds(engines[way], load, (2 * number + 1) * load.prompts, manifests)
            result[way] = {"without": without, "with": whole, "loads": loads, "a_sync": (whole - without) / len(loads)}
        if number:  # the first one warms up
            rounds.append(result)
            print({way: {k: v for k, v in result[way].items() if k != "loads"} for way in WAYS}, flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--syncs", type=int, default=3, help="weight syncs in a batch")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/on_update.json"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    from launch.output.summary import package_versions

    load = Load(arguments.prompts, arguments.completions, arguments.prompt_tokens, arguments.new_tokens, 40_000)
    engines = {way: engine_of(arguments.model, load, way, 512) for way in WAYS}
    tokens = replace(load, prompts=1, prompt_tokens=2 * CANARY_TOKENS).leases(10**6)[0].prompt.token_ids
    # What the engine itself says of these weights: all publications hold them.
    scored, _ = engines["keep"]._score(Canary(tokens, (0.0,) * CANARY_TOKENS))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        manifest = published(arguments.model, Canary(tokens, tuple(scored)), Path(directory))
        rounds = measure(engines, load, manifest, arguments)
    medians = {way: round(statistics.median(each[way]["a_sync"] for each in rounds), 3) for way in WAYS}
    result = {"seconds_of_a_sync": medians, "rounds": rounds, "load": vars(load), "syncs": arguments.syncs}
    result |= {"machine": {**record.machine(), "threads": 1}, "versions": package_versions()}
    record.write(arguments.output, result)
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
