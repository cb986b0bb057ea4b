"""Exact-answer verification: is the final answer of a completion the gold one? It must not know data sources.

The default format is that of GSM8K (Cobbe et al. 2021), `#### 72` on the last line of a solution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors.errors import UsageError
from actors.judges.config import VerifierJudgeConfig
from actors.judges.mathematics import last_boxed, normalise, same_answer
from actors.records import Group, Judgement, Prompt


class VerifierJudge:
    """1 for a completion whose final answer is the gold one, `format_score` for another answer, 0 for none."""

    def __init__(self, config: VerifierJudgeConfig) -> None:
        """Raises UsageError for a pattern that is none, or that has no group."""
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
        self._boxed = config.format == "boxed"
        self._format_score = config.format_score

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Scores of 0, `format_score` and 1.

        Raises:
            UsageError: a prompt has no gold answer.
        """
        return [self._judge_one(group) for group in groups]

    def final_answer(self, text: str) -> str | None:
        """The final answer in `text`, verbatim; None where there is none in the format."""
        return last_boxed(text) if self._boxed else self._last_match(text)

    def _last_match(self, text: str) -> str | None:
        answer = None
        for match in self._pattern.finditer(text):
            answer = match.group(1)
        return answer

    def _judge_one(self, group: Group) -> Judgement:
        gold = self._gold_answer(group.lease.prompt)
        return Judgement(scores=tuple(self._score(completion.text, gold) for completion in group.completions))

    def _score(self, text: str, gold: str) -> float:
        answer = self.final_answer(text)
        if answer is None or not normalise(answer):
            return 0.0
        return 1.0 if same_answer(answer, gold) else self._format_score

    def _gold_answer(self, prompt: Prompt) -> str:
        """The answer in the data: in the format, else where the pattern says, else verbatim."""
        given = prompt.answer
        gold = None if given is None else self.final_answer(given) or self._last_match(given) or given
        if gold is None or not normalise(gold):
            raise UsageError(
                f"prompt '{prompt.id}' has no gold answer (got {prompt.answer!r}), so the verifier cannot judge it; "
                "set prompts.answer_field to the column with the answers, or choose another judge"
            )
        return gold
