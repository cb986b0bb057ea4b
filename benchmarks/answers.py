"""Answers of GSM8K by the exact rule: how many golds are right, altered ones accepted, and answers per second.

    python -m benchmarks.answers GSM8K_DIRECTORY [--altered 100000] [--output FILE]

One core. Altered: a digit changed, appended or removed, the sign, the decimal point, halved or doubled values.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

from actors.judges.answers.config import VerifierJudgeConfig
from actors.judges.answers.exact import number, same_answer
from actors.judges.answers.forms import same_form
from actors.judges.answers.verifier import VerifierJudge
from actors.records import Completion, Group, Lease, Prompt

OUTPUT = Path(__file__).resolve().parent / "results" / "answers.json"


def altered(answer: str, random_numbers: random.Random) -> Iterator[str]:
    """Yield answers near `answer` for ever; some are equal to it in value."""
    while True:
        place = random_numbers.randrange(len(answer))
        digit = str(random_numbers.randrange(10))
        yield random_numbers.choice(
            [
                answer[:place] + digit + answer[place + 1 :],
                answer[:place] + digit + answer[place:],
                answer + digit,
                answer[:place] + answer[place + 1 :],
                answer[:place] + "." + answer[place:],
                f"-{answer}",
                f"1/{answer}",
                f"{answer}/{digit}",
                f"{answer} or {digit}",
                f"{digit} {answer}/9",
            ]
        )


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--altered", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    lines = [
        line
        for split in ("train", "test")
        for line in (arguments.directory / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    solutions = [json.loads(line)["answer"] for line in lines]
    golds = [solution.rpartition("####")[2].strip() for solution in solutions]
    groups = [
        Group(
            Lease(index, 0, Prompt(str(index), (1,), "", answer=solution), 0, 0.0),
            tuple(Completion((1,), (0.0,), (0,), text, finished=True) for text in (solution, f"#### 1{golds[index]}")),
        )
        for index, solution in enumerate(solutions)
    ]
    started = time.perf_counter()
    scores = [judgement.scores for judgement in asyncio.run(VerifierJudge(VerifierJudgeConfig()).judge(groups))]
    seconds = time.perf_counter() - started
    generator, pairs = random.Random(0), []
    while len(pairs) < arguments.altered:
        gold = generator.choice(golds)
        answer = next(altered(gold, generator))
        if number(answer.replace(",", "")) != number(gold.replace(",", "")):
            pairs.append((gold, answer))
    figures = {
        "golds": len(golds),
        "golds_right": sum(right == 1.0 for right, _ in scores),
        "golds_right_by_form": sum(same_form(gold, gold + ".0") for gold in golds),
        "altered": len(pairs),
        "altered_accepted": sum(same_answer(gold, answer) for gold, answer in pairs),
        "altered_accepted_by_form": sum(same_form(gold, answer) for gold, answer in pairs[:5000]),
        "answers_per_second": round(2 * len(groups) / seconds),
    }
    text = json.dumps(figures, indent=2) + "\n"
    print(text)
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
