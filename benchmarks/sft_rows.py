"""Fine-tuning's rows: padding and seconds per step of one row without padding, of packed rows and of padded ones.

    python -m benchmarks.sft_rows --model MODEL_DIR [--examples 32] [--batches 200] [--rounds 3]

Prompts and responses have log-normal lengths about `--prompt` and `--response` tokens; if they are longer than
`--longest` together they are drawn again. Padding is counted over many batches, without a model. Then the learner takes
steps on the first batch in the three ways, in turns on one model: forward, backward and optimizer.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from learner.stages.sft import SupervisedObjective
from learner.tensors.batching import TokenSequence

WAYS: dict[str, dict[str, bool]] = {
    "one row": {"shares_prompts": True},
    "packed": {"packing": True},
    "padded": {"packing": False},
}


def demonstrations(arguments: argparse.Namespace, vocabulary: int, seed: int) -> list[TokenSequence]:
    """A batch of random tokens; no two prompts are equal."""
    rng = np.random.default_rng(seed)
    found: list[TokenSequence] = []
    while len(found) < arguments.examples:
        means = np.log([arguments.prompt, arguments.response])
        prompt, response = np.maximum(1, rng.lognormal(means, arguments.spread)).astype(int)
        if prompt + response <= arguments.longest:
            tokens = rng.integers(5, vocabulary, prompt + response).tolist()
            found.append((tokens[:prompt], tokens[prompt:]))
    return found


def padding(arguments: argparse.Namespace) -> dict[str, float]:
    """Share of padding among all tokens computed, over many batches."""
    counts = {name: np.zeros(2) for name in WAYS}
    for seed in range(arguments.batches):
        batch = demonstrations(arguments, 1000, seed)
        for name, way in WAYS.items():
            objective = SupervisedObjective(arguments.micro_batch_tokens, **way)
            for own in objective.micro_batches(batch, 0, 1):
                made = objective.collate(own)
                counts[name] += made.tokens, made.padded_tokens
    return {name: round(1.0 - tokens / padded, 4) for name, (tokens, padded) in counts.items()}


def seconds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of each way, in turns."""
    from learner.backend.loading import load_for_ranks
    from learner.backend.sharded import ShardedModel, join_process_group
    from learner.stages.config import SftTrainerConfig
    from learner.training.trainer import Trainer

    config = SftTrainerConfig(dtype=arguments.dtype, zero_stage=1, micro_batch_tokens=arguments.micro_batch_tokens)
    device = join_process_group(config)
    policy = load_for_ranks(arguments.model, config)
    if not policy.shares_prompts:
        raise SystemExit(f"the architecture of {arguments.model} cannot have rows without padding")
    batch = demonstrations(arguments, policy.head.weight.shape[0], 0)
    with tempfile.TemporaryDirectory() as name:
        trainer = Trainer(ShardedModel(policy, config, 1000, device, arguments.model, Path(name)))
        objectives = {way: SupervisedObjective(config.micro_batch_tokens, **kind) for way, kind in WAYS.items()}
        rounds = []
        for number in range(arguments.rounds + 1):
            taken = {}
            for way, objective in objectives.items():
                started = time.perf_counter()
                trainer.update(batch, objective)
                taken[way] = time.perf_counter() - started
            print(f"round {number}: {json.dumps(taken)}", flush=True)
            rounds.append(taken)
    timed = rounds[1:]  # the first compiles kernels
    return {
        "tokens": sum(map(len, (part for example in batch for part in example))),
        "rounds": timed,
        "median": {way: round(statistics.median(each[way] for each in timed), 3) for way in WAYS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="none: padding alone is counted")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--examples", type=int, default=32, help="per step")
    parser.add_argument("--batches", type=int, default=200, help="for the count of padding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=float, default=60.0, help="median tokens")
    parser.add_argument("--response", type=float, default=120.0, help="median tokens")
    parser.add_argument("--spread", type=float, default=0.7, help="standard deviation of the lengths' logarithms")
    parser.add_argument("--longest", type=int, default=1024, help="tokens")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sft_rows.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"padding": padding(arguments)}
    print(json.dumps(result["padding"]), flush=True)
    if arguments.model is not None:
        result |= seconds(arguments)
    result["settings"] = {name: str(value) for name, value in vars(arguments).items() if name != "output"}
    record.write(arguments.output, result | {"machine": record.machine()})
    print(json.dumps(result.get("median", {}), indent=1))


if __name__ == "__main__":
    main()
