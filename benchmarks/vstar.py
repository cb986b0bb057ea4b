"""A verifier by DPO on an arithmetic task: the route of V-STaR by the commands, from nothing, on two cores.

    python -m benchmarks.vstar [--seed N] [--digits 3] [--forgetful 0.6] [--rounds 2] [--output FILE] [--work DIR]

A model of random weights is fine-tuned on sums written out digit by digit (`offbeat sft`). A share `--forgetful` of its
demonstrations forgets every carry, as a pupil may: if it is above one half, the solver's own likelihood and a vote are
for the wrong procedure. In each round the solver answers training problems, its solutions become pairs, correct over
incorrect (`offbeat evaluate --pairs`), and it goes on to learn the demonstrations and all correct solutions. The
verifier learns the pairs of all rounds (`offbeat dpo`), from the first solver. On held-out problems it then chooses
among K solutions of the first and of the last solver (`offbeat evaluate --best-of K --verifier`), by its likelihood, as
Hosseini et al. 2024, "V-STaR", do, and by its implicit reward. Controls: a vote, and the solver's own likelihood.

`--digits 4 --forgetful 0 --rounds 1 --epochs 8` is a task whose errors are slips, which likelihood does show.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from actors.intervals import mean_interval
from benchmarks import record
from launch.evaluate.best_of import Candidates, best_of_k, majority_is_correct, report
from launch.output.summary import package_versions

TRAIN, TEST = 3000, 200
PAIR_PROMPTS, PAIR_SAMPLES, MAX_PAIRS = 800, 8, 6
BEST_OF = 16
BEFORE, AFTER = "Q: ", "\nA: "
ANSWER = re.compile(r"#### (\d+)")


@dataclass(frozen=True)
class Task:
    """The problems, the demonstrations and the length of the route."""

    digits: int
    forgetful: float
    rounds: int
    epochs: int
    seed: int


def solution(a: int, b: int, digits: int, *, forgetful: bool = False) -> str:
    """Write `a + b` from the last place to the first and the sum behind `####`; no carries if it is forgetful."""
    steps, places, carry = [], [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        places.append(total % 10 if place < digits - 1 else total)
        carry = 0 if forgetful else total // 10
    return f"{', '.join(steps)} #### {int(''.join(map(str, reversed(places))))}"


def carries(a: int, b: int, digits: int) -> bool:
    """Return whether forgetting carries makes the sum wrong."""
    return solution(a, b, digits) != solution(a, b, digits, forgetful=True)


def write_problems(directory: Path, task: Task) -> None:
    """Write demonstrations.jsonl, train.jsonl and test.jsonl; answers of the first are forgetful in part.

    Every problem has a carry that counts. The test's problems are in neither of the other files.
    """
    rng = random.Random(task.seed)
    problems: set[tuple[int, int]] = set()
    while len(problems) < TRAIN + TEST:
        drawn = (rng.randrange(10**task.digits), rng.randrange(10**task.digits))
        if task.forgetful == 0 or carries(*drawn, task.digits):
            problems.add(drawn)
    order = sorted(problems)
    rng.shuffle(order)

    def rows(part: Sequence[tuple[int, int]], share: float) -> list[dict[str, str]]:
        return [
            {"question": f"{a}+{b}", "answer": solution(a, b, task.digits, forgetful=rng.random() < share)}
            for a, b in part
        ]

    write_rows(directory / "demonstrations.jsonl", rows(order[:TRAIN], task.forgetful))
    write_rows(directory / "train.jsonl", rows(order[:TRAIN], 0.0))
    write_rows(directory / "test.jsonl", rows(order[TRAIN:], 0.0))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SCRATCH = {"path": "scratch", "scratch": {"vocabulary": 300, "layers": 3, "heads": 4, "max_tokens": 128}}
"""The first solver. The others go on from it, so that all of them and the verifier have one tokenizer."""
FURTHER_EPOCHS = 2  # of a solver that goes on


def configurations(work: Path, task: Task) -> dict[str, dict[str, Any]]:
    learner = {"dtype": "float32", "zero_stage": 1, "micro_batch_tokens": 4096, "seed": task.seed}
    cluster = {"address": "local", "object_store_mib": 128}
    template = f"{BEFORE}{{prompt}}{AFTER}"
    sft = {
        "data": {
            "prompt_field": "question", "response_field": "answer", "template": template, "max_tokens": 96,
            "validation_fraction": 0.02,
        },
        "training": {"epochs": task.epochs, "batch_size": 64, "evaluate_every": 200, "seed": task.seed},
        "learner": learner | {"optimizer": {"lr": 2e-3, "warmup_updates": 20}},
        "cluster": cluster,
    }  # fmt: skip
    dpo = {
        "data": {"validation_fraction": 0.1},
        "training": {"epochs": 2, "batch_size": 32, "evaluate_every": 50, "seed": task.seed},
        "learner": learner | {"loss": {"beta": 0.1}, "optimizer": {"lr": 1e-4, "warmup_updates": 10}},
        "cluster": cluster,
    }
    evaluate = {
        "seed": task.seed,
        "prompts": {
            "prompt_field": "question", "answer_field": "answer", "template": template, "max_prompt_tokens": 32,
            "seed": task.seed,
        },
        "sampling": {"completions_per_prompt": BEST_OF, "max_new_tokens": 64},
        "generators": {"dtype": "float32", "max_model_len": 96, "kv_cache_mib": 128, "max_running_prompts": 16},
        "judging": {"judge": {"kind": "verifier"}, "missing_eos_score": 0.0},
        "publication": {"canary_tokens": 16},
        "learner": learner,
        "cluster": cluster,
    }  # fmt: skip
    files = {"sft": sft, "dpo": dpo, "evaluate": evaluate}
    for name, settings in files.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return files


class Route:
    """The steps of one seed below a directory. Steps that an earlier call finished there are not taken again."""

    def __init__(self, work: Path, task: Task) -> None:
        self.work, self.task = work, task
        self.seconds: dict[str, float] = {}
        write_problems(work, task)
        configurations(work, task)

    def run(self) -> dict[str, Any]:
        """Take the whole route; returns the figures of each solver's test."""
        self._solver(1)
        for number in range(1, self.task.rounds + 1):
            self._sample(number)
            if number < self.task.rounds:
                self._solver(number + 1)
        self._verifier()
        solvers = sorted({1, self.task.rounds})
        return {f"solver {number}": self._choose(number) for number in solvers}

    @property
    def held_out(self) -> dict[str, Any]:
        """Last figures of each stage of training on its own held-out rows, and its updates."""
        kept = ("updates", "train_examples", "held_out", "wall_seconds")
        told = {path.parent.name: json.loads(path.read_text()) for path in sorted(self.work.glob("*/summary.json"))}
        return {name: {key: summary[key] for key in kept} for name, summary in told.items()}

    def final(self, name: str) -> Path:
        return self.work / name / "final"

    def _command(self, name: str, verb: str, *arguments: str) -> None:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "launch", verb, str(self.work / f"{verb}.yaml"), *arguments], check=True)
        self.seconds[name] = time.perf_counter() - started

    def _solver(self, number: int) -> None:
        """Train a solver on the demonstrations and all correct solutions of the rounds before it."""
        rows = read_rows(self.work / "demonstrations.jsonl")
        found = [row for each in range(1, number) for row in read_rows(self.work / f"solutions{each}.jsonl")]
        correct = {
            (row["prompt"].removeprefix(BEFORE).removesuffix(AFTER), row["response"]) for row in found if row["correct"]
        }
        rows += [{"question": question, "answer": answer} for question, answer in sorted(correct)]
        source = self.work / f"taught{number}.jsonl"
        write_rows(source, rows)
        if not self.final(f"solver{number}").is_dir():
            output = self.work / f"solver{number}"
            start = [f"model={json.dumps(SCRATCH)}"] if number == 1 else [
                f"model.path={self.final(f'solver{number - 1}')}", f"training.epochs={FURTHER_EPOCHS}"
            ]  # fmt: skip
            self._command(output.name, "sft", f"output={output}", f"data.source={source}", *start)

    def _sample(self, number: int) -> None:
        pairs, solutions = (self.work / f"{name}{number}.jsonl" for name in ("pairs", "solutions"))
        if not pairs.is_file():
            self._command(
                pairs.stem, "evaluate", f"model.path={self.final(f'solver{number}')}",
                f"prompts.source={self.work / 'train.jsonl'}", f"--prompts={PAIR_PROMPTS}", f"--best-of={PAIR_SAMPLES}",
                f"--max-pairs={MAX_PAIRS}", f"--solutions={solutions}", f"--pairs={pairs}",
            )  # fmt: skip

    def _verifier(self) -> None:
        rows = [
            row for number in range(1, self.task.rounds + 1) for row in read_rows(self.work / f"pairs{number}.jsonl")
        ]
        different = {json.dumps(row, sort_keys=True): row for row in rows}
        write_rows(self.work / "pairs.jsonl", list(different.values()))
        if not self.final("verifier").is_dir():
            self._command(
                "verifier", "dpo", f"output={self.work / 'verifier'}", f"data.source={self.work / 'pairs.jsonl'}",
                f"model.path={self.final('solver1')}",
            )  # fmt: skip

    def _choose(self, number: int) -> dict[str, Any]:
        solver, solutions = self.final(f"solver{number}"), self.work / f"test{number}.jsonl"
        if not solutions.is_file():
            judges = dict.fromkeys([self.final("verifier"), self.final("solver1"), solver])
            self._command(
                solutions.stem, "evaluate", f"model.path={solver}", f"prompts.source={self.work / 'test.jsonl'}",
                f"--prompts={TEST}", f"--best-of={BEST_OF}", f"--solutions={solutions}",
                *(f"--verifier={path}" for path in judges),
            )  # fmt: skip
        return figures(read_rows(solutions))


CHOICES = ("the verifier's likelihood", "the verifier's reward", "the solver's likelihood")


def choices(likelihoods: Sequence[float]) -> list[float]:
    """Return the scores to choose by, as in `CHOICES`; the verifier learned from the first solver, its reference.

    `likelihoods` are by the verifier, by the first solver and, if it is another, by the solver that wrote the answer.
    """
    return [likelihoods[0], likelihoods[0] - likelihoods[1], likelihoods[-1]]


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what each choice reaches, and by problem how much more the verifier's likelihood does than the others."""
    sampled = [candidates(list(group)) for _, group in itertools.groupby(rows, key=lambda row: row["prompt_id"])]
    told = report(sampled)
    reached = {name: [best_of_k(each.correct or (), each.scores[number], BEST_OF) for each in sampled]
               for number, name in enumerate(CHOICES)}  # fmt: skip
    reached["a vote"] = [float(majority_is_correct(each)) for each in sampled]
    reached["one answer"] = [fmean(map(float, each.correct or ())) for each in sampled]
    verifier = reached[CHOICES[0]]
    differences = {
        name: [ours - theirs for ours, theirs in zip(verifier, values, strict=True)] for name, values in reached.items()
    }
    return {
        "prompts": told.prompts,
        "candidates": told.candidates,
        "pass_at_1": asdict(told.pass_at_1) if told.pass_at_1 else None,
        "majority": asdict(told.majority) if told.majority else None,
        "choices": CHOICES,
        "rows": [asdict(row) for row in told.rows],
        "verifier_less": {
            name: {"value": fmean(values), "interval": mean_interval(values)}
            for name, values in differences.items()
            if name != CHOICES[0]
        },
    }


def candidates(rows: Sequence[dict[str, Any]]) -> Candidates:
    """Return one problem's answers with the scores of `choices`."""
    found = [ANSWER.search(row["response"]) for row in rows]
    return Candidates(
        tuple(row["correct"] for row in rows),
        tuple(each and each.group(1) for each in found),
        tuple(zip(*(choices(row["verifier_scores"]) for row in rows), strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--digits", type=int, default=3)
    parser.add_argument("--forgetful", type=float, default=0.6, help="share of demonstrations that forget carries")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="of each solver's training")
    parser.add_argument("--work", type=Path, help="directory of data and runs; unset: a temporary one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/vstar_rounds.json"))
    arguments = parser.parse_args()
    task = Task(arguments.digits, arguments.forgetful, arguments.rounds, arguments.epochs, arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        route = Route(work, task)
        measured, held_out = route.run(), route.held_out
    runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.is_file() else []
    kept = [run for run in runs if run["task"] != asdict(task)]
    run = {"task": asdict(task), "solvers": measured, "held_out": held_out, "seconds": route.seconds}
    result = {"machine": record.machine(), "versions": package_versions(), "runs": [*kept, run]}
    record.write(arguments.output, result)
    print(json.dumps(run, indent=1))


if __name__ == "__main__":
    main()
