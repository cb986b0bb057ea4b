"""Overhead of a generator: the same requests through `Generator` and through vLLM's own loop.

    python -m benchmarks.generator --model MODEL_DIR [--rounds 5] [--output benchmarks/results/generator.json]

One process, one thread for kernels. A generator takes leases and returns groups, each completion with its text, its
behaviour log-probs and the policy version of every token. The bare engine is vLLM's with vLLM's own scheduling, given
the same prompts and the same limits: once with the log-probs of the sampled tokens, and once without. Its tokens are
counted, not even read. The figure is sampled tokens per second of one batch of requests that start together, by the
clock and by the processor's time of all threads, which programs beside this one lengthen less. The order turns by one
from round to round.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.records import Lease, Prompt
from benchmarks import record

LOADS = ("toy", "model")
GENERATOR, BARE, WITHOUT = "generator", "bare engine", "bare engine, no log-probs"

Rates = dict[str, dict[str, float]]
"""Tokens per second of each way, by the clock and by the processor's time."""


@dataclass(frozen=True)
class Load:
    """Requests that start together: `prompts` x `completions`, all of one length."""

    prompts: int
    completions: int
    prompt_tokens: int
    new_tokens: int
    vocabulary: int

    def leases(self, first: int) -> list[Lease]:
        """Return one lease per prompt; prompts differ from those of every other `first`, so that none is cached."""
        rng = random.Random(first)
        found = []
        for index in range(first, first + self.prompts):
            tokens = tuple(rng.randrange(5, self.vocabulary) for _ in range(self.prompt_tokens))
            found.append(Lease(index, 0, Prompt(f"random:{index}", tokens, ""), min_version=0, deadline=0.0))
        return found


def spec_of(model: Path, load: Load, dtype: str, kv_cache_mib: int) -> GeneratorSpec:
    generators = GeneratorConfig(
        dtype=dtype,
        max_model_len=load.prompt_tokens + load.new_tokens,
        max_running_prompts=load.prompts,
        kv_cache_mib=kv_cache_mib,
    )
    sampling = SamplingConfig(completions_per_prompt=load.completions, max_new_tokens=load.new_tokens)
    return GeneratorSpec(model_dir=model, generators=generators, sampling=sampling)


def bare_engine(spec: GeneratorSpec, load: Load) -> Any:
    """Return vLLM's engine as it comes, with the memory and the limits of a generator's."""
    from vllm import EngineArgs, LLMEngine

    from actors.generation.startup.build import MAX_BATCHED_TOKENS

    requests = load.prompts * load.completions + 1
    arguments = EngineArgs(
        model=str(spec.model_dir),
        dtype=spec.generators.dtype,
        max_model_len=spec.generators.max_model_len,
        max_num_seqs=requests,
        max_num_batched_tokens=max(MAX_BATCHED_TOKENS, requests),
        enforce_eager=True,
        kv_cache_memory_bytes=spec.generators.kv_cache_mib << 20,
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)


def sample_bare(engine: Any, load: Load, leases: Sequence[Lease], ends: Sequence[int], logprobs: int | None) -> int:
    """Sample through the bare engine; return the number of tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        max_tokens=load.new_tokens,
        ignore_eos=True,
        stop_token_ids=list(ends),
        logprobs=logprobs,
        flat_logprobs=logprobs is not None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )
    for lease in leases:
        for k in range(load.completions):
            engine.add_request(f"{lease.index}.{k}", {"prompt_token_ids": list(lease.prompt.token_ids)}, params)
    tokens = 0
    while engine.has_unfinished_requests():
        tokens += sum(len(output.outputs[0].token_ids) for output in engine.step() if output.finished)
    return tokens


def sample_groups(generator: Any, leases: Sequence[Lease]) -> int:
    """Take the groups of `leases`, from their submission to the last one; return the number of tokens."""
    generator.submit(leases)
    groups, tokens = 0, 0
    while groups < len(leases):
        for group in generator.collect(60.0):
            groups += 1
            tokens += sum(len(completion.token_ids) for completion in group.completions)
    return tokens


class Profiled:
    """An engine whose steps and requests are profiled, in the generator's own thread."""

    def __init__(self, spec: GeneratorSpec) -> None:
        from actors.generation.engine import Engine

        self.engine, self.profile = Engine(spec), cProfile.Profile()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def add(self, *arguments: Any) -> None:
        self.profile.runcall(self.engine.add, *arguments)

    def step(self) -> Any:
        return self.profile.runcall(self.engine.step)


def measure(load: Load, spec: GeneratorSpec, rounds: int, *, profile: bool) -> list[Rates]:
    """Tokens per second of each way, one dictionary a round."""
    from actors.generation.engine import Engine
    from actors.generation.generator import Generator

    made: list[Any] = []

    def make(spec: GeneratorSpec) -> Any:
        made.append((Profiled if profile else Engine)(spec))
        return made[0]

    generator = Generator(spec, make)
    bare = bare_engine(spec, load)
    ends = made[0].ends
    ways: dict[str, Callable[[list[Lease]], int]] = {
        GENERATOR: lambda leases: sample_groups(generator, leases),
        BARE: lambda leases: sample_bare(bare, load, leases, ends, 0),
        WITHOUT: lambda leases: sample_bare(bare, load, leases, ends, None),
    }
    names = list(ways)
    results = []
    for number in range(rounds + 1):
        turn = number % len(names)
        leases = load.leases(number * load.prompts)
        # All ways sample the same prompts, each engine from a cache that does not hold them.
        result: Rates = {}
        for name in names[turn:] + names[:turn]:
            made[0]._llm.reset_prefix_cache()
            bare.reset_prefix_cache()
            clock, processor = time.perf_counter(), time.process_time()
            tokens = ways[name](leases)
            result[name] = {
                "clock": tokens / (time.perf_counter() - clock),
                "processor": tokens / (time.process_time() - processor),
            }
        if number:  # the first one warms up
            results.append(result)
            print({name: round(rate["processor"], 1) for name, rate in result.items()}, flush=True)
    generator.close()
    if profile:
        stats = pstats.Stats(made[0].profile)
        stats.sort_stats("tottime").print_stats(20)
        stats.sort_stats("cumtime").print_stats(r"/actors/")
    return results


def summary(rounds: Sequence[Rates], by: str) -> dict[str, Any]:
    """Medians over rounds: of each way's rate, and of the generator's share of each bare one in the same round."""
    shares = {name: [each[GENERATOR][by] / each[name][by] for each in rounds] for name in (BARE, WITHOUT)}
    rates = {name: statistics.median(each[name][by] for each in rounds) for name in rounds[0]}
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "generator_over": {name: round(statistics.median(values), 3) for name, values in shares.items()},
        "least": {name: round(min(values), 3) for name, values in shares.items()},
        "most": {name: round(max(values), 3) for name, values in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model of real size, in bfloat16; needed for the load `model`")
    parser.add_argument(
        "--loads", nargs="+", choices=LOADS, default=LOADS, help="others stay in the output as they are"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs=2, default=(96, 4), help="of the toy model, and of --model")
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--profile", action="store_true", help="print where the generator's engine spends its time")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/generator.json"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    from benchmarks.overlap import VOCABULARY, make_model
    from launch.output.summary import package_versions

    result: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    with tempfile.TemporaryDirectory() as directory:
        toy = Path(directory) / "policy"
        make_model(toy, hidden=128, layers=2)  # before the engines: vLLM's worker changes this process's torch
        cases = {
            "toy": (toy, Load(arguments.prompts[0], arguments.completions, 16, 48, VOCABULARY)),
            "model": (arguments.model, Load(arguments.prompts[1], arguments.completions, 64, 32, 40_000)),
        }
        for name in arguments.loads:
            model, load = cases[name]
            dtype, cache = ("float32", 1024) if name == "toy" else ("bfloat16", 512)
            rounds = measure(load, spec_of(model, load, dtype, cache), arguments.rounds, profile=arguments.profile)
            medians = {by: summary(rounds, by) for by in ("clock", "processor")}
            result[name] = {"load": vars(load), "dtype": dtype, "rounds": rounds} | medians
            print(name, json.dumps(medians), flush=True)
    result["machine"] = {**record.machine(), "threads": 1}
    result["versions"] = package_versions()
    record.write(arguments.output, result)


if __name__ == "__main__":
    main()
