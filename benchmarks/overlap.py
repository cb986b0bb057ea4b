"""Overlap: asynchronous throughput against generation alone and learning alone, on the same actors in one run.

    python -m benchmarks.overlap [--rounds 3] [--updates 24] [--output benchmarks/results/overlap.json]

Two cores: one generator actor and one learner rank, one thread each, with the judge and the driver on whatever is left.
Every round measures, in this order, generation alone (evaluation leases, the learner idle), learning alone (the same
recorded batch again and again, the generator idle), and the real loop at several staleness bounds, 0 being synchronous.
The figure of merit is groups per second at a bound over the slower of the two alone. A random model samples to the
length limit nearly always, so every group costs the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Completion, Prompt
from actors.replay_buffer.buffer import ReplayBuffer
from actors.replay_buffer.pairing import best_and_worst
from benchmarks import record
from launch.cluster import wiring
from launch.output.run_directory import SharedMemory
from launch.run.loop import LoopEvents, TrainingLoop
from launch.run.pools.generator_pool import COLLECT_SECONDS
from launch.settings.run import RunConfig

VOCABULARY = 1024
WARM_UPDATES = 4


def score(prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
    """A judge that costs nothing: a fixed pseudo-random score of the tokens."""
    return [float(sum(token * (place + 1) for place, token in enumerate(c.token_ids)) % 997) for c in completions]


class RandomPrompts:
    """Prompt `i`: tokens drawn with seed `i`."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def prompt(self, position: int) -> Prompt:
        tokens = np.random.default_rng(position).integers(3, VOCABULARY, self._tokens)
        return Prompt(f"random:{position}", tuple(int(token) for token in tokens), "")


def make_model(directory: Path, hidden: int, layers: int) -> None:
    """A random Llama; sizes are printed with the result."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        intermediate_size=hidden * 3,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(directory)


def make_config(arguments: argparse.Namespace, bound: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "overlap",
            "updates": arguments.updates,
            "model": {"path": "made-here"},
            "prompts": {"max_prompt_tokens": arguments.prompt_tokens},
            "sampling": {
                "completions_per_prompt": arguments.completions,
                "max_new_tokens": arguments.new_tokens,
            },
            "generators": {
                "dtype": "float32",
                "max_model_len": arguments.prompt_tokens + arguments.new_tokens,
                "max_running_prompts": 2 * arguments.prompts_per_update,
                "kv_cache_mib": 512,
            },
            "judging": {"judge": {"kind": "function", "path": "benchmarks.overlap:score"}, "missing_eos_score": None},
            "replay": {"prompts_per_update": arguments.prompts_per_update, "max_staleness": bound},
            "learner": {
                "dtype": "float32",
                "zero_stage": 1,
                "micro_batch_tokens": arguments.micro_batch_tokens,
                "optimizer": {"lr": 1e-7, "schedule": "constant"},
            },
            "checkpoints": {"every_updates": 0},
            "cluster": {"address": "local", "num_cpus": 2},
        }
    )


class Bench:
    """The actors, started once, and the measurements on them. All results are groups per second."""

    def __init__(self, arguments: argparse.Namespace, model_dir: str, shared_memory: Path) -> None:
        self.arguments = arguments
        config = make_config(arguments, 1)
        self.prompts = RandomPrompts(arguments.prompt_tokens)
        self.generators = wiring.start_generators(config, model_dir, model_dir)
        self.judge = wiring.start_judges(config, model_dir)[0]
        self.learner = wiring.start_learner(config, model_dir, model_dir, shared_memory, shared_memory)

    def loop(self, bound: int, stamps: list[float]) -> TrainingLoop:
        config = make_config(self.arguments, bound)

        async def no_checkpoint(loop: TrainingLoop) -> None:
            raise AssertionError("no checkpoint is due")

        return TrainingLoop(
            config,
            buffer=ReplayBuffer(config.replay, self.prompts, config.updates),
            generators=self.generators,
            judge=self.judge,
            learner=self.learner,
            events=LoopEvents(
                on_update=lambda progress, values: stamps.append(time.monotonic()),
                on_watch=lambda loop: None,
                on_checkpoint=no_checkpoint,
                on_message=print,
            ),
        )

    @staticmethod
    async def settle() -> None:
        """Lets the last loop's collect calls, which it gave up, run out: they would swallow the next one's groups."""
        await asyncio.sleep(COLLECT_SECONDS + 0.5)

    async def training(self, bound: int) -> dict[str, Any]:
        stamps: list[float] = []
        loop = self.loop(bound, stamps)

        async def main(loop: TrainingLoop) -> None:
            await loop.publish()
            await loop.pool.acknowledged(0)
            await loop.learn()

        await loop.run(main)
        timed = stamps[WARM_UPDATES:]
        return {
            "groups_per_second": (len(timed) - 1) * self.arguments.prompts_per_update / (timed[-1] - timed[0]),
            "staleness": {str(age): count for age, count in sorted(loop.progress.staleness.items())},
            "learner_seconds": {name: round(s, 3) for name, s in loop.progress.clock.seconds.items()},
        }

    async def alone(self) -> dict[str, float]:
        """Generation alone, then learning alone on the pairs that it made."""
        loop = self.loop(1, [])
        results: dict[str, float] = {}
        count = self.arguments.prompts_per_update

        async def main(loop: TrainingLoop) -> None:
            await loop.publish()
            await loop.pool.acknowledged(0)
            prompts = [self.prompts.prompt(10_000 + i) for i in range(count * self.arguments.updates // 2)]
            await loop.sample(prompts[:count])
            started = time.monotonic()
            groups = await loop.sample(prompts)
            results["generation"] = len(prompts) / (time.monotonic() - started)
            judged = await self.judge.judge(groups[:count])
            pairs = [best_and_worst(group, None) for group in judged]  # type: ignore[arg-type]
            await self.learner.update(pairs)
            started = time.monotonic()
            for _ in range(self.arguments.updates // 2):
                await self.learner.update(pairs)
            results["learning"] = count * (self.arguments.updates // 2) / (time.monotonic() - started)

        # Leases for training would keep the generator busy: none is granted while the loop itself does not learn.
        loop.buffer.grant = lambda limit, now: []  # type: ignore[method-assign]
        await loop.run(main)
        return results

    async def measure(self) -> dict[str, Any]:
        await self.learner.ready()
        rounds = []
        for number in range(self.arguments.rounds):
            result: dict[str, Any] = {"alone": await self.alone()}
            for bound in self.arguments.bounds:
                await self.settle()
                result[f"bound {bound}"] = await self.training(bound)
            await self.settle()
            slower = min(result["alone"].values())
            for bound in self.arguments.bounds:
                result[f"bound {bound}"]["of_slower_alone"] = result[f"bound {bound}"]["groups_per_second"] / slower
            rounds.append(result)
            print(f"round {number + 1}: {json.dumps(result)}", flush=True)
        return {"rounds": rounds, "median": self.medians(rounds)}

    def medians(self, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        names = {"generation": ("alone", "generation"), "learning": ("alone", "learning")}
        for bound in self.arguments.bounds:
            for key in ("groups_per_second", "of_slower_alone"):
                names[f"bound {bound}, {key}"] = (f"bound {bound}", key)
        return {name: round(statistics.median(r[a][b] for r in rounds), 3) for name, (a, b) in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=24, help="updates per timed loop")
    parser.add_argument("--bounds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts-per-update", type=int, default=16)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/overlap.json"))
    arguments = parser.parse_args()
    shared_memory = SharedMemory()
    config = make_config(arguments, 1)
    with tempfile.TemporaryDirectory() as directory, wiring.ray_session(config.cluster):
        try:
            make_model(Path(directory), arguments.hidden, arguments.layers)
            result = asyncio.run(Bench(arguments, directory, shared_memory.path).measure())
        finally:
            shared_memory.close()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "output"}
    result["machine"] = {"cores": 2, "threads_per_actor": 1, "processor": platform.machine()}
    result["versions"] = {name: version(name) for name in ("torch", "ray", "deepspeed", "transformers")}
    record.write(arguments.output, result)
    print(json.dumps(result["median"], indent=1))


if __name__ == "__main__":
    main()
