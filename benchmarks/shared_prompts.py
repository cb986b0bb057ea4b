"""The learner's speed on groups: each prompt once in a row, against one row per completion, and against bare torch.

    python -m benchmarks.shared_prompts --model MODEL_DIR --output benchmarks/results/shared_prompts.json

Takes turns on the same games, prompt 256 and completions of 128 tokens, K of them: an update of the learner with
`learner.share_prompts` (forward and backward of the policy, forward of the reference, optimizer), the same without, and
a bare forward and backward of transformers on the padded sequences, in micro-batches of as many tokens. Completions'
lengths vary if `--varied` is given: uniform from 1 to twice the mean. Memory is what an update added to the process's
resident size at most.
"""

import argparse
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from actors.records import Completion, Game
from benchmarks.record import tell
from learner.config import LearnerConfig, LearnerSpec, OptimizerConfig
from learner.losses.config import RewardLossConfig
from learner.tensors.batching import collate, game_sequences, schedule
from learner.training.engine import TrainEngine


def games(count: int, completions: int, prompt: int, mean: int, *, varied: bool, vocabulary: int) -> list[Game]:
    """Games of random tokens and scores; the behaviour's log-probs are of no policy."""
    rng = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, vocabulary) for _ in range(length))

    def completion() -> Completion:
        length = rng.randint(1, 2 * mean) if varied else mean
        return Completion(tokens(length), (-2.0,) * length, (0,) * length, "", True)

    found = []
    for index in range(count):
        players = tuple(completion() for _ in range(completions))
        preferences = ((0.5,) * completions,) * completions
        scores = tuple(rng.gauss(0.0, 1.0) for _ in players)
        found.append(Game(index, tokens(prompt), players, (), preferences, scores))
    return found


def learner_of(model: Path, micro_batch_tokens: int, dtype: str, *, share_prompts: bool) -> TrainEngine:
    """A learner of one rank."""
    config = LearnerConfig(
        dtype=dtype,
        zero_stage=1,
        cpus_per_rank=torch.get_num_threads(),
        micro_batch_tokens=micro_batch_tokens,
        share_prompts=share_prompts,
        optimizer=OptimizerConfig(lr=1e-7, schedule="constant"),
        loss=RewardLossConfig(),
    )
    return TrainEngine(LearnerSpec(config=config, model_dir=str(model), total_updates=1000))


def bare_update(model: Any, batch: Sequence[Game], micro_batch_tokens: int) -> None:
    """Forward and backward of the log-probs of all completions, padded, with whole logits."""
    sequences = game_sequences(batch, slice(None))
    lengths = [len(prompt) + len(response) for prompt, response, _ in sequences]
    for ((*share,),) in schedule(lengths, 1, 1, micro_batch_tokens):
        padded = collate([sequences[index] for index in share])
        logits = model(input_ids=padded.input_ids, use_cache=False).logits
        logprobs = logits[padded.rows, padded.columns].float().log_softmax(-1)
        logprobs.gather(-1, padded.targets[:, None]).mean().backward()
    model.zero_grad()


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, and MiB of the process's highest resident size above its size before (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest size is that of now
    before, begin = _resident("VmRSS"), time.perf_counter()
    call()
    return time.perf_counter() - begin, _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return median seconds of each way, tokens per second, and ratios."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    batch = games(
        arguments.games,
        arguments.completions,
        arguments.prompt,
        arguments.completion,
        varied=arguments.varied,
        vocabulary=model.config.vocab_size,
    )
    learners = {
        name: learner_of(arguments.model, arguments.micro_batch_tokens, arguments.dtype, share_prompts=shares)
        for name, shares in (("shared", True), ("one row each", False))
    }
    seconds: dict[str, list[float]] = {"shared": [], "one row each": [], "bare": []}
    memory: dict[str, float] = {}
    stats = {}
    for turn in range(arguments.repeats + 1):  # the first warms up
        for name in seconds:
            if name == "bare":
                spent, grown = timed(lambda: bare_update(model, batch, arguments.micro_batch_tokens))
            else:
                spent, grown = timed(lambda name=name: stats.update({name: learners[name].update(batch)}))
            memory[name] = max(memory.get(name, 0.0), grown)
            if turn:
                seconds[name].append(spent)
            print(f"{turn} {name}: {spent:.2f} s", flush=True)
    tokens = sum(len(g.prompt_token_ids) + len(c.token_ids) for g in batch for c in g.players)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "tokens_per_second": {name: round(tokens / value, 1) for name, value in medians.items()},
        "tokens_of_sequences": tokens,
        "tokens_computed": {name: each.padded_tokens for name, each in stats.items()},
        "shared_over_one_row_each": round(medians["one row each"] / medians["shared"], 3),
        "shared_over_bare": round(medians["bare"] / medians["shared"], 3),
        "memory_mib": {name: round(value) for name, value in memory.items()},
        "losses": {name: each.loss for name, each in stats.items()},
        "all_seconds": seconds,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face model")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--games", type=int, default=4)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--micro-batch-tokens", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--varied", action="store_true")
    arguments = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    tell(arguments, measure(arguments))


if __name__ == "__main__":
    main()
