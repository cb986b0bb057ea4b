"""Judge answers by verifiable instructions: count the prompt's instructions that an answer follows.

Instructions and their arguments are those of IFEval (Zhou et al. 2023, arXiv 2311.07911), from two columns of the data:
`instruction_id_list` and `kwargs`. The rules are in `checks.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.errors import UsageError
from actors.judges.answers.checks import CHECKS, UNSUPPORTED, Check
from actors.judges.answers.config import InstructionsJudgeConfig
from actors.records import Group, Judgement, Prompt

LONGEST_ANSWER = 50_000  # characters; a longer answer follows no instruction


class InstructionsJudge:
    """Scores the share of the instructions that are followed, or 1 if all are."""

    def __init__(self, config: InstructionsJudgeConfig) -> None:
        self._all = config.score == "all"
        self._loose = config.strictness == "loose"

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Check every completion. Raises UsageError if a prompt's instructions cannot be read or checked."""
        return [self._judged(group) for group in groups]

    def _judged(self, group: Group) -> Judgement:
        checks = read_checks(group.lease.prompt)
        return Judgement(tuple(self._score(completion.text, checks) for completion in group.completions))

    def _score(self, text: str, checks: Sequence[Check]) -> float:
        followed = sum(follows(text, check, loose=self._loose) for check in checks)
        return float(followed == len(checks)) if self._all else followed / len(checks)


def follows(text: str, check: Check, *, loose: bool) -> bool:
    """Return whether an answer, or if `loose` one of its variants, follows an instruction. An empty answer does not."""
    if len(text) > LONGEST_ANSWER:
        return False
    return any(variant.strip() != "" and check(variant) for variant in (variants(text) if loose else [text]))


def variants(text: str) -> Iterator[str]:
    """Yield an answer without first line, last line, both or neither, with and without asterisks (section 2.2)."""
    lines = text.split("\n")
    for some in (text, *("\n".join(each).strip() for each in (lines[1:], lines[:-1], lines[1:-1]))):
        yield some
        yield some.replace("*", "")


def read_checks(prompt: Prompt) -> list[Check]:
    """Read a prompt's instructions. Raises UsageError if there are none, or if any cannot be read or checked."""
    given = prompt.metadata.get("answer")
    who = f"prompt '{prompt.id}'"
    names, arguments = _columns(given)
    if not names or len(names) != len(arguments):
        raise UsageError(
            f"{who} has no instructions that can be read (got {given!r:.100}); set prompts.answer_field to "
            "[instruction_id_list, kwargs], a list of names and a list of as many dictionaries"
        )
    return [_check(who, str(name), each) for name, each in zip(names, arguments, strict=True)]


def _columns(given: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    if not isinstance(given, Mapping):
        return [], []
    names, arguments = given.get("instruction_id_list"), given.get("kwargs")
    return (names, arguments) if isinstance(names, list) and isinstance(arguments, list) else ([], [])


def _check(who: str, name: str, arguments: Any) -> Check:
    if name in UNSUPPORTED:
        raise UsageError(f"{who}: instruction '{name}' cannot be checked: {UNSUPPORTED[name]}; leave such prompts out")
    if name not in CHECKS:
        raise UsageError(f"{who}: instruction '{name}' is unknown; known are {', '.join(sorted(CHECKS))}")
    # Parquet gives every row every key, with null if the instruction lacks the argument.
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    try:
        return CHECKS[name](**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{who}: instruction '{name}' with {given!r:.200} cannot be read: {error}") from None
