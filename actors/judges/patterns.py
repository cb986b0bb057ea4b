"""Search texts with regular expressions from settings. Group 1 of the last match is the answer."""

import re

import regex  # like `re`, but with a time limit

from actors.errors import RunError, UsageError

MOST_SECONDS = 0.5
"""Longest search of one text: without it, nested repetitions as in `(a|aa)+$` may take years for a short text."""


class AnswerPattern:
    """A user's regular expression with a group for the answer."""

    def __init__(self, setting: str, text: str, example: str) -> None:
        """Compile `text`. Raises UsageError if it is not a regular expression or has no group."""
        self._setting, self._text = setting, text
        try:
            self._pattern = regex.compile(text)
        except regex.error as error:
            raise UsageError(f"{setting} {text!r} is not a regular expression: {error}") from error
        if self._pattern.groups < 1:
            raise UsageError(f"{setting} {text!r} has no group; put the answer in parentheses, as in '{example}'")

    def last(self, text: str) -> tuple[str, dict[str, str]] | None:
        """Return group 1 of the last match in `text` and its named groups; None without a match.

        Raises RunError if the search takes too long.
        """
        last = None
        try:
            for match in self._pattern.finditer(text, timeout=MOST_SECONDS):
                last = match
        except TimeoutError:
            raise RunError(
                f"{self._setting} {self._text!r} searched an answer of {len(text):,} characters for more than "
                f"{MOST_SECONDS} s; write it without repetitions within repetitions"
            ) from None
        return None if last is None else (last[1], last.groupdict())

    def answer(self, text: str) -> str | None:
        """Return group 1 of the last match in `text`; None without a match. Raises as `last`."""
        last = self.last(text)
        return None if last is None else last[0]


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """Return group 1 of the last match in `text` of one of our own patterns; None without a match."""
    last = None
    for match in pattern.finditer(text):
        last = match.group(1)
    return last
