"""`offbeat samples`: what a run's policy answered, as it was trained."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from actors.foreign.text import WHOLE, shown
from launch.output.metrics import damaged_lines
from launch.output.samples import (
    BEFORE_AND_AFTER,
    SAMPLES,
    Answer,
    BeforeAndAfter,
    Sample,
    read_before_and_after,
    read_samples,
)


def show_samples(run: Path, last: int, *, as_json: bool = False) -> int:
    """Print the last samples of a run and, once it has ended, answers before and after; return the exit code 0.

    Raises UsageError if the run has no file of samples.
    """
    samples, damaged = read_samples(run)
    answers, damaged_answers = read_before_and_after(run)
    samples, answers = samples[-last:], answers[:last]
    for name, count in ((SAMPLES, damaged), (BEFORE_AND_AFTER, damaged_answers)):
        if count:
            print(shown(f"offbeat: warning: {damaged_lines(run / name, count)}"), file=sys.stderr)
    if as_json:
        found = {"samples": [asdict(each) for each in samples], "answers": [asdict(each) for each in answers]}
        print(json.dumps(found))
        return 0
    if not samples and not answers:
        print(shown(f"offbeat: {run} has no sample yet; the first comes with the first update"), file=sys.stderr)
    console = Console(highlight=False)
    for text in [*map(_sample, samples), *map(_before_and_after, answers)]:
        console.print(Text(shown(text, WHOLE, lines=True)), soft_wrap=True)
    return 0


def _sample(sample: Sample) -> str:
    answers = [_answer("best", sample.best), _answer("worst", sample.worst)]
    return "\n".join([f"update {sample.step}, {sample.prompt_id}: {sample.prompt}", *answers, ""])


def _before_and_after(row: BeforeAndAfter) -> str:
    answers = [_answer("before training", row.start), _answer("after training", row.final)]
    return "\n".join([f"evaluation, {row.prompt_id}: {row.prompt}", *answers, ""])


def _answer(name: str, answer: Answer) -> str:
    cut = "" if answer.finished else ", without an end"
    lines = answer.text.splitlines() or [""]
    return "\n".join([f"  {name}, score {answer.score:.3g}{cut}:", *(f"    {line}" for line in lines)])
