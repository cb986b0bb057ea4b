r"""Verify final answers: a completion scores 1 if its final answer is the gold answer, or one of several.

An answer after a marker, as in GSM8K (`#### 72`, Cobbe et al. 2021), is compared by the exact rule of `exact.py`; the
last `\boxed{...}`, as in MATH (Hendrycks et al. 2021), by its mathematical form too.
"""

import re
from collections.abc import Sequence

from actors.errors import UsageError
from actors.judges.answers.config import VerifierJudgeConfig
from actors.judges.answers.exact import last_boxed, normalise, same_answer
from actors.judges.answers.forms import same_form
from actors.judges.patterns import AnswerPattern, last_match
from actors.judges.threads import in_daemon_thread
from actors.records import Group, Judgement, Prompt

_SAID = re.compile(
    r"(?:(?:answer|option|choice)[ \t]{1,4}(?:is|would be)[ \t]{0,4}:?|\banswer\*{0,2}:)[ \t*]{0,8}([^\n]{1,400})",
    re.IGNORECASE,
)
_BARE = re.compile(r"[\s*\"'`$]*(?:\\(?:text|textbf|mathrm)\s*\{)?\s*\(?\s*([A-J])\s*(?:[).:}*\"'`$]|$)")
_NAMED = re.compile(r"[\s*\"'`$]*\(?\s*([A-J])(?:[^\w']|$)")


class VerifierJudge:
    """Scores 1 for a gold answer, `format_score` for another answer in the format, 0 for none."""

    def __init__(self, config: VerifierJudgeConfig) -> None:
        """Compile the pattern. Raises UsageError if it is not a regular expression or has no group."""
        self._pattern = AnswerPattern("judging.judge.answer_pattern", config.answer_pattern, r"####\s*([^\n]+)")
        self._format = config.format
        self._format_score = config.format_score

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Compare every completion with its prompt's gold answers. Raises UsageError if a prompt has none."""
        golds = [self._gold_answers(group.lease.prompt) for group in groups]

        def judged() -> list[Judgement]:
            return [
                Judgement(tuple(self._score(completion.text, gold) for completion in group.completions))
                for group, gold in zip(groups, golds, strict=True)
            ]

        return judged() if self._format == "pattern" else await in_daemon_thread(judged)

    def final_answer(self, text: str) -> str | None:
        """Return the final answer in `text`, verbatim; None if no answer has the format."""
        match self._format:
            case "pattern":
                return self._pattern.answer(text)
            case "boxed":
                return last_boxed(text)
            case "math":
                return last_boxed(text) or said_answer(text)
            case "choice":
                return choice(text)

    def _score(self, text: str, golds: Sequence[str]) -> float:
        answer = self.final_answer(text)
        if answer is None or not normalise(answer):
            return 0.0
        return 1.0 if any(self._same(answer, gold) for gold in golds) else self._format_score

    def _same(self, answer: str, gold: str) -> bool:
        match self._format:
            case "pattern":
                return same_answer(answer, gold)
            case "boxed":  # answers that were right without math-verify stay right
                return same_answer(answer, gold) or same_form(answer, gold)
            case "math":
                return same_form(answer, gold)
            case "choice":
                return answer == gold

    def _gold_answers(self, prompt: Prompt) -> list[str]:
        given = prompt.metadata.get("answer")
        several = [str(each) for each in given] if isinstance(given, list | tuple) else [prompt.answer or ""]
        golds = [gold for each in several if normalise(gold := self._gold_answer(each))]
        if not golds:
            raise UsageError(
                f"prompt '{prompt.id}' has no gold answer (got {prompt.answer!r}), so the verifier cannot judge it; "
                "set prompts.answer_field to the column with the answers, or choose another judge"
            )
        return golds

    def _gold_answer(self, given: str) -> str:
        """Read a gold answer: in the format, else by the pattern, else the whole text."""
        if self._format == "choice":
            return choice(self._pattern.answer(given) or given) or ""
        found = last_boxed(given) if self._format == "math" else self.final_answer(given)
        return found or self._pattern.answer(given) or given


def said_answer(text: str) -> str | None:
    """Return the text after the last `the answer is` or `Answer:`, up to the sentence's end; None without one."""
    said = last_match(_SAID, text)
    if said is None:
        return None
    marked = re.match(r"\s{0,4}\$([^$]+)\$|\s{0,4}\\\((.+?)\\\)", said)
    return (marked[1] or marked[2]) if marked else re.split(r"\.(?:\s|$)|\s(?:because|since)\s", said)[0].strip(" *")


def choice(text: str) -> str | None:
    r"""Return the letter of a choice such as `(A)`. It is in the last box, after `the answer is`, or at the start."""
    boxed, said = last_boxed(text), said_answer(text)
    match = _BARE.match(boxed[:100]) if boxed else _NAMED.match(said) if said else _BARE.match(text[:100])
    return match[1] if match else None
