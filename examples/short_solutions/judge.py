"""Judge a solution of a word problem by its form: it ends with `The answer is N.` and has few words.

Whether the answer is right does not count; for that combine it with the verifier (docs/judges.md).
"""

import re
from collections.abc import Sequence

from actors.records import Completion, Prompt

ENOUGH = 30
"""Words that a solution may have at no cost."""
LAST = re.compile(r"The answer is \$?-?\d[\d,]*(\.\d+)?\.\s*$")
ANYWHERE = re.compile(r"answer is\D{0,3}\d", re.IGNORECASE)


def short_in_form(prompt: Prompt, completions: Sequence[Completion]) -> list[float]:
    """Score each completion with the mean of its form and its brevity, between 0 and 1.

    Form is 1 if it ends with `The answer is N.`, 1/2 if it says so elsewhere or otherwise, else 0.
    Brevity is 1 up to `ENOUGH` words, and that number over the words beyond.
    """
    return [(form(completion.text) + brevity(completion.text)) / 2 for completion in completions]


def form(text: str) -> float:
    if LAST.search(text):
        return 1.0
    return 0.5 if ANYWHERE.search(text) else 0.0


def brevity(text: str) -> float:
    words = len(text.split())
    return min(1.0, ENOUGH / words) if words else 0.0
