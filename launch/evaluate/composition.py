"""Compositional problems: pairs in which the second problem needs the answer of the first.

Two problems of a data set make a third: a number in the text of the second is replaced by X, and X is the answer of
the first, which is that number. A policy that solves each part as often as it does alone solves the third about as
often as the product of the two (Hosseini et al. 2024, "Not All LLM Reasoners Are Created Equal", section 2).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from actors.data.rows import MalformedRowsError, read_prompt_rows
from actors.errors import UsageError
from actors.foreign.text import many
from actors.intervals import mean_interval, share_interval
from actors.judges.answers.exact import normalise, number
from launch.evaluate.best_of import Estimate
from launch.settings.run import RunConfig

PARTS = ("first", "second", "composed")
TEXT = "Let X be the answer to this problem: {first}\n\nUse the value of X to solve this problem: {second}"
SMALLEST = 3
"""Smallest number that X may stand for: 1 and 2 are often written out, or not what a problem is about."""
_NUMBER = re.compile(r"(?<![\w./,-])\d[\d,]*(?:\.\d+)?(?![\w/]|\.\d)")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its worked or bare answer, verbatim from the data."""

    text: str
    answer: str
    value: Fraction | None
    """The final answer; None if it is no number."""


@dataclass(frozen=True, slots=True)
class Composed:
    """Two problems, and the third that they make; its answer is the second's."""

    first: Problem
    second: Problem
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Accuracies on parts and wholes, each with a 95% interval over pairs."""

    pairs: int
    first: Estimate
    second: Estimate
    composed: Estimate
    product: float
    """Accuracy on the first parts times that on the second."""
    gap: Estimate
    """Accuracy on the wholes less the product; below 0 if the policy fails to compose what it can do."""


def compose(problems: Sequence[Problem], limit: int, seed: int) -> list[Composed]:
    """Make at most `limit` pairs, drawn by `seed`; no problem is second in two of them.

    X replaces an integer that occurs once in the second problem's text, is used by its answer if that is a worked one,
    and is the answer of another problem.
    """
    rng = random.Random(f"composed:{seed}")
    by_value: dict[Fraction, list[Problem]] = {}
    for problem in problems:
        if problem.value is not None:
            by_value.setdefault(problem.value, []).append(problem)
    pairs: list[Composed] = []
    for second in rng.sample(problems, len(problems)):
        choices = [
            (match, first)
            for match in _replaceable(second)
            for first in by_value.get(_value(match.group()), ())
            if first.text != second.text
        ]
        if choices and len(pairs) < limit:
            match, first = rng.choice(choices)
            asked = f"{second.text[: match.start()]}X{second.text[match.end() :]}"
            pairs.append(Composed(first, second, TEXT.format(first=first.text, second=asked)))
    return pairs


def _replaceable(problem: Problem) -> list[re.Match[str]]:
    """Find the numbers of a problem that X may stand for."""
    if problem.value is None:
        return []
    found = list(_NUMBER.finditer(problem.text))
    values = [_value(match.group()) for match in found]
    used = {_value(text) for text in _NUMBER.findall(" ".join(re.findall(r"<<([^=>]*)=", problem.answer)))}
    worked = "<<" in problem.answer
    return [
        match
        for match, value in zip(found, values, strict=True)
        if value.denominator == 1 and value >= SMALLEST and values.count(value) == 1 and (not worked or value in used)
    ]


def _value(text: str) -> Fraction:
    return Fraction(text.rstrip(",").replace(",", ""))


# ---------------------------------------------------------------- as an evaluation


@contextmanager
def composed_prompts(
    config: RunConfig, pairs: int | None, final_answer: Callable[[str], str | None]
) -> Iterator[tuple[RunConfig, int]]:
    """Write pairs of `prompts.source` as prompts of their own; yield the configuration that reads them, and how many.

    `final_answer` finds the answer in a gold one. Raises UsageError if no two problems make a pair.
    """
    if not isinstance(config.prompts.answer_field, str):
        raise UsageError("--composed reads gold answers from one column; set prompts.answer_field to its name")
    problems = list(_problems(config, config.prompts.answer_field, final_answer))
    limit = config.evaluation.prompts if pairs is None else pairs
    made = compose(problems, limit, config.seed)
    if not made or (pairs is not None and len(made) < pairs):
        raise UsageError(
            f"--composed found {many(len(made), 'pair')} among the {len(problems)} problems of prompts.source, fewer "
            f"than {limit}; a pair needs a problem whose text has a number that is another one's answer. Give more, "
            f"or --prompts {max(1, len(made))}"
        )
    with TemporaryDirectory(prefix="offbeat-composed-") as scratch:
        path = Path(scratch) / "composed.jsonl"
        rows = [row for pair in made for row in _rows(pair, config)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        prompts = config.prompts.model_copy(update={"source": str(path), "on_malformed": "error"})
        try:
            yield config.model_copy(update={"prompts": prompts}), len(made)
        except UsageError as error:
            if str(path) not in str(error):
                raise
            raise UsageError(_unreadable(error, config)) from error


def _unreadable(error: UsageError, config: RunConfig) -> str:
    """Say what makes room for pairs that are too long, of which a reader knows no file."""
    problems = error.problems if isinstance(error, MalformedRowsError) else ()
    longest = max((problem.tokens for problem in problems), default=0)
    if not longest:
        return f"--composed: a pair cannot be read as a prompt: {error}"
    room = config.generators.max_model_len + longest - config.prompts.max_prompt_tokens
    return (
        f"--composed puts two problems into one prompt, and pairs have {longest} tokens and more, above "
        f"prompts.max_prompt_tokens {config.prompts.max_prompt_tokens}; set prompts.max_prompt_tokens={2 * longest} "
        f"generators.max_model_len={room + longest}"
    )


def _problems(config: RunConfig, answer_field: str, final_answer: Callable[[str], str | None]) -> Iterator[Problem]:
    for row in read_prompt_rows(config.prompts):
        text, answer = row.columns.get(config.prompts.prompt_field), row.columns.get(answer_field)
        if not isinstance(text, str):
            raise UsageError(
                f"{row.id}: --composed puts two problems into one text, and '{config.prompts.prompt_field}' is no text "
                "there; set prompts.prompt_field to a column of texts"
            )
        if isinstance(answer, str | int | float):
            found = final_answer(str(answer)) or str(answer)
            yield Problem(text.strip(), str(answer), number(normalise(found)))


def _rows(pair: Composed, config: RunConfig) -> list[dict[str, str]]:
    """Return the three problems of a pair, in the order of `PARTS`, under the columns of the data."""
    given = (
        (pair.first.text, pair.first.answer),
        (pair.second.text, pair.second.answer),
        (pair.text, pair.second.answer),
    )
    return [{config.prompts.prompt_field: text, str(config.prompts.answer_field): answer} for text, answer in given]


def measure(correct: Mapping[str, Sequence[bool]]) -> Gap:
    """Compare wholes with their parts; `correct` maps a prompt's id, which ends in its line, to its answers.

    The product's interval is by the delta method: a pair counts with c - (s2 a + s1 b - s1 s2), for its own accuracies
    a, b and c and the means s1 and s2.
    """
    by_line = {int(name.rpartition(":")[2]): fmean(answers) for name, answers in correct.items()}
    lines = [by_line[line] for line in sorted(by_line)]
    first, second, composed = (lines[part :: len(PARTS)] for part in range(len(PARTS)))
    s1, s2 = fmean(first), fmean(second)
    differences = [c - (s2 * a + s1 * b - s1 * s2) for a, b, c in zip(first, second, composed, strict=True)]
    return Gap(
        pairs=len(first),
        first=Estimate.of(first, share_interval),
        second=Estimate.of(second, share_interval),
        composed=Estimate.of(composed, share_interval),
        product=s1 * s2,
        gap=Estimate.of(differences, mean_interval),
    )


def render(found: Gap) -> str:
    """Return the comparison as a table."""

    rows = [
        ("first problem alone", found.first.cell()),
        ("second problem alone", found.second.cell()),
        ("product", f"{found.product:.3f}"),
        ("composed", found.composed.cell()),
        ("composed - product", found.gap.cell()),
    ]
    head = f"{found.pairs} pairs of problems, the second needs the first one's answer; 95% intervals over pairs"
    return "\n".join([head, *(f"{name:<23}{value}" for name, value in rows)])
