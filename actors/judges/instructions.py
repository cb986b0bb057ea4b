"""Score how well an answer follows its prompt's checkable instructions on form: a judge function.

The preset `chat` names it as `actors.judges.instructions:followed`, and the prompts in `actors/data/instructions.jsonl`
name their checks. It reads texts only; copy it to start a judge of your own (docs/judges.md).
"""

import re
from collections.abc import Callable, Sequence

from actors.errors import UsageError
from actors.records import Completion, Prompt


def followed(prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
    """Score each completion with the mean of the prompt's checks, between 0 and 1.

    `prompt.answer` names the checks, as in `words=8-20; no_commas`. Each gives partial credit, so that two
    answers that both fail can still be ranked. Raises UsageError if a check is unknown or malformed.
    """
    checks = parse(prompt.answer or "")
    return [sum(check(completion.text) for check in checks) / len(checks) for completion in completions]


def parse(text: str) -> list[Callable[[str], float]]:
    """Read the checks that `text` names, separated by semicolons. Raises UsageError, listing the known ones."""
    checks = []
    for part in text.split(";"):
        name, _, argument = part.strip().partition("=")
        try:
            checks.append(CHECKS[name](argument))
        except (KeyError, ValueError):
            raise UsageError(
                f"'{part.strip()}' is no check; write them as in 'words=8-20; sentences=1; no_commas; lowercase; "
                "bullets=3; includes=water', in the column that prompts.answer_field names"
            ) from None
    return checks


def words(limits: str) -> Callable[[str], float]:
    """Expect a number of words within `limits`, such as `8-20`; otherwise give the ratio of count and limit."""
    fewest, most = map(int, limits.split("-"))
    return lambda answer: min(1.0, len(answer.split()) / fewest, most / max(1, len(answer.split())))


def lowercase(_: str) -> Callable[[str], float]:
    """Expect no capital letter; n of them give 1 / (1 + n)."""
    return lambda answer: 1 / (1 + sum(map(str.isupper, answer)))


def no_commas(_: str) -> Callable[[str], float]:
    """Expect no comma; n of them give 1 / (1 + n)."""
    return lambda answer: 1 / (1 + answer.count(","))


def bullets(count: str) -> Callable[[str], float]:
    """Expect `count` lines that start with `-` or `*`; n more or fewer give 1 / (1 + n)."""
    wanted = int(count)
    return lambda answer: 1 / (1 + abs(len(re.findall(r"^\s*[-*] ", answer, re.MULTILINE)) - wanted))


def sentences(count: str) -> Callable[[str], float]:
    """Expect `count` sentences, counted by their last marks; n more or fewer give 1 / (1 + n)."""
    wanted = int(count)
    return lambda answer: 1 / (1 + abs(len(re.findall(r"[.!?]+(?=\s|$)", answer)) - wanted))


def includes(word: str) -> Callable[[str], float]:
    """Expect `word`, in any case."""
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    return lambda answer: float(pattern.search(answer) is not None)


CHECKS: dict[str, Callable[[str], Callable[[str], float]]] = {
    check.__name__: check for check in (words, sentences, no_commas, lowercase, bullets, includes)
}
"""Functions from a check's argument, the text after `=`, to a function that scores an answer, by the check's name."""
