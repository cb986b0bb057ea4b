"""Regular expressions from settings, whose last match holds an answer in group 1."""

import re

from actors.errors import UsageError


def compile_pattern(setting: str, text: str, example: str) -> re.Pattern[str]:
    """Compile `text`. Raises UsageError if it is not a regular expression or has no group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(f"{setting} {text!r} is not a regular expression: {error}") from error
    if pattern.groups < 1:
        raise UsageError(f"{setting} {text!r} has no group; put the answer in parentheses, as in '{example}'")
    return pattern


def last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """Return group 1 of the last match in `text`; None without a match."""
    last = None
    for match in pattern.finditer(text):
        last = match.group(1)
    return last
