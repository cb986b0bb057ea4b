"""Exact-answer verification: is the final answer of a completion the gold one? It must not know data sources.

The default pattern is the format of GSM8K (Cobbe et al. 2021), `#### 72` on the last line of a solution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from actors.config import VerifierJudgeConfig
from actors.errors import UsageError
from actors.records import Group, Judgement, Prompt

# No exponents: `1e999999999`, which a policy could write, would cost gigabytes as an exact number.
NUMBER = re.compile(r"[+-]?(?:\d+/\d+|\d+\.?\d*|\.\d+)", re.ASCII)
LONGEST_NUMBER = 1000


def normalise(answer: str) -> str:
    """`answer` without thousands separators, dollar signs, a trailing period and surplus whitespace."""
    return " ".join(answer.replace(",", "").replace("$", "").split()).rstrip(".").rstrip()


def number(answer: str) -> Fraction | None:
    """The exact value of a normalised answer such as `-72`, `72.50` or `3/4`; None for anything else."""
    if len(answer) > LONGEST_NUMBER or NUMBER.fullmatch(answer) is None:
        return None
    try:
        return Fraction(answer)
    except ZeroDivisionError:
        return None


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are equal as numbers or, where one of them is none, as normalised text."""
    first, second = normalise(first), normalise(second)
    first_number, second_number = number(first), number(second)
    if first_number is None or second_number is None:
        return first == second != ""
    return first_number == second_number


class VerifierJudge:
    """1 for a completion whose final answer is the gold one, 0 for any other."""

    def __init__(self, config: VerifierJudgeConfig) -> None:
        try:
            self._pattern = re.compile(config.answer_pattern)
        except re.error as error:
            raise UsageError(
                f"judge.answer_pattern {config.answer_pattern!r} is no regular expression: {error}"
            ) from error
        if self._pattern.groups < 1:
            raise UsageError(
                f"judge.answer_pattern {config.answer_pattern!r} has no group; put the final answer in parentheses, "
                r"as in '####\s*([^\n]+)'"
            )

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Scores of 0 and 1.

        Raises:
            UsageError: a prompt has no gold answer.
        """
        return [self._judge_one(group) for group in groups]

    def final_answer(self, text: str) -> str | None:
        """Group 1 of the pattern's last match in `text`; None where it does not match."""
        answer = None
        for match in self._pattern.finditer(text):
            answer = match.group(1)
        return answer

    def _judge_one(self, group: Group) -> Judgement:
        gold = self._gold_answer(group.lease.prompt)
        answers = [self.final_answer(completion.text) for completion in group.completions]
        return Judgement(scores=tuple(float(answer is not None and same_answer(answer, gold)) for answer in answers))

    def _gold_answer(self, prompt: Prompt) -> str:
        """The answer in the data: taken out of a whole solution by the pattern, else verbatim."""
        gold = None if prompt.answer is None else self.final_answer(prompt.answer) or prompt.answer
        if gold is None or not normalise(gold):
            raise UsageError(
                f"prompt '{prompt.id}' has no gold answer (got {prompt.answer!r}), so the verifier cannot judge it; "
                "set prompts.answer_field to the column with the answers, or choose another judge"
            )
        return gold
