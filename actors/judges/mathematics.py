r"""Final answers of mathematics: found in a text, normalised, compared. Pure; it must not know judges or data.

Two formats: what follows a marker, as in GSM8K (`#### 72`, Cobbe et al. 2021), and the last `\boxed{...}`, as in MATH
(Hendrycks et al. 2021).
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST_ANSWER = 1000
"""Characters; nothing longer is read as a number."""

_BRACE = re.compile(r"(?P<box>\\f?box(?:ed)?\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)

_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|~")
_LATEX_WORDS = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_VARIABLE = re.compile(r"\\?[a-zA-Z]\w*\s*=\s*(.+)", re.DOTALL)

# No exponents: `1e999999999`, which a policy could write, would cost gigabytes as an exact number.
_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
NUMBER = re.compile(rf"([+-]?)\s*(?:(\d+)\s+(?=\d+\s*/))?({_DECIMAL})(?:\s*/\s*([+-]?{_DECIMAL}))?", re.ASCII)
_WITH_UNIT = re.compile(rf"([+-]?\s*{_DECIMAL}(?:\s*/\s*{_DECIMAL})?)\s+([^\W\d_][^\d=+*<>(){{}}\\]*)", re.ASCII)
# Words that are not the name of what is counted: with them the value is another one, or more than one.
_NO_UNIT = re.compile(
    r"\b(?:[a-z]|pi|sqrt|or|and|to|by|plus|minus|times|over|mod|less|more|half|halves|thirds?|quarters?|"
    r"dozens?|hundreds?|thousands?|millions?|billions?|trillions?)\b",
    re.IGNORECASE,
)


def last_boxed(text: str) -> str | None:
    r"""What the last whole `\boxed{...}` of `text` holds, braces within braces included; None where there is none.

    `\fbox{...}` counts too; an escaped brace does not count as one.
    """
    last: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # where a box's content starts; None for other braces
    for match in _BRACE.finditer(text):
        if match["box"] or match["open"]:
            open_braces.append(match.end() if match["box"] else None)
        elif match["close"] and open_braces:
            start = open_braces.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else text[slice(*last)]


def normalise(answer: str) -> str:
    r"""`answer` without what notation adds: thousands separators, `$`, `%`, degrees, LaTeX's spaces and fonts,
    `x =` before it, a final period, surplus whitespace. `\frac{a}{b}` becomes `a/b`, `1\frac{1}{2}` becomes `1 1/2`.
    """
    text = answer.replace("\N{MINUS SIGN}", "-").replace("\\$", "").replace("$", "")
    text = text.replace("\\%", "").replace("%", "")
    text = _LATEX_WORDS.sub("", _SPACES.sub(" ", text))
    text = _DEGREES.sub("", _TEXT.sub(r" \1 ", text))
    text = _THOUSANDS.sub("", text)
    text = _FRACTION.sub(_plain_fraction, text)
    text = " ".join(text.split()).rstrip(".").rstrip()
    assigned = _VARIABLE.fullmatch(text)
    return assigned.group(1).strip() if assigned else text


def number(answer: str) -> Fraction | None:
    """The exact value of a normalised answer such as `-72`, `72.50`, `3/4` or `1 1/2`; None for anything else."""
    match = NUMBER.fullmatch(answer) if len(answer) <= LONGEST_ANSWER else None
    if match is None:
        return None
    sign, whole, numerator, denominator = match.groups()
    try:
        value = Fraction(whole or 0) + Fraction(numerator) / Fraction(denominator or 1)
    except ZeroDivisionError:
        return None
    return -value if sign == "-" else value


def without_unit(answer: str) -> tuple[str, str]:
    """A normalised answer as number and unit, as in (`72`, `apples`); the unit is empty where there is none.

    Only words of two letters or more are units, and none that change the value, as in `2 million` or `3 or 4`.
    """
    match = _WITH_UNIT.fullmatch(answer) if len(answer) <= LONGEST_ANSWER else None
    if match is None or _NO_UNIT.search(match.group(2)):
        return answer, ""
    return match.group(1), match.group(2)


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are equal: as exact numbers, or as normalised text where one of them is no number.

    A unit counts only where both have one: `72 apples` is `72`, and `5 cm` is not `5 mm`.
    """
    first, second = normalise(first), normalise(second)
    if first == second:
        return first != ""
    (first, first_unit), (second, second_unit) = without_unit(first), without_unit(second)
    if first_unit and second_unit and first_unit != second_unit:
        return False
    value = number(first)
    return value is not None and value == number(second)


def _plain_fraction(match: re.Match[str]) -> str:
    """`a/b` where both are plain numbers, with a space before it, which a whole number needs; else as it is."""
    numerator, denominator = match[1] or match[2] or "", match[3] or match[4] or ""
    if number(numerator.strip()) is None or number(denominator.strip()) is None:
        return f"\\frac{{{numerator}}}{{{denominator}}}"
    return f" {numerator.strip()}/{denominator.strip()}"
