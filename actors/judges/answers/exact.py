r"""Compare answers by the exact rule: equal as exact numbers, or as text without notation. Pure functions, no library.

GSM8K needs no other rule, and ten thousand answers take a second.
"""

import re
from fractions import Fraction

LONGEST_ANSWER = 1000  # characters; nothing longer is read as a number

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
# Words that change the value, or introduce a second value, so they are no units.
_NO_UNIT = re.compile(
    r"\b(?:[a-z]|pi|sqrt|or|and|to|by|plus|minus|times|over|mod|less|more|half|halves|thirds?|quarters?|"
    r"dozens?|hundreds?|thousands?|millions?|billions?|trillions?)\b",
    re.IGNORECASE,
)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}` or `\fbox{...}`; None without one.

    Nested braces belong to the content; escaped braces do not count.
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
    r"""Remove notation: thousands separators, `$`, `%`, degrees, LaTeX's spaces and fonts, a leading `x =`, a final
    period, surplus whitespace. `\frac{a}{b}` becomes `a/b`, and `1\frac{1}{2}` becomes `1 1/2`.
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
    """Return the exact value of a normalised answer such as `-72`, `72.50`, `3/4` or `1 1/2`; None for other text."""
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
    """Split a normalised answer into number and unit, as in (`72`, `apples`). The unit may be empty.

    A unit consists of words of two letters or more that do not change the value. (`2 million` and `3 or 4` change it.)
    """
    match = _WITH_UNIT.fullmatch(answer) if len(answer) <= LONGEST_ANSWER else None
    if match is None or _NO_UNIT.search(match.group(2)):
        return answer, ""
    return match.group(1), match.group(2)


def same_answer(first: str, second: str) -> bool:
    """Compare two answers: as exact numbers if both are numbers, else as normalised text.

    Units are compared only if both have one: `72 apples` is `72`, and `5 cm` is not `5 mm`.
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
    """Write ` a/b` if both are plain numbers (the space separates a whole number before it); else keep the text."""
    numerator, denominator = match[1] or match[2] or "", match[3] or match[4] or ""
    if number(numerator.strip()) is None or number(denominator.strip()) is None:
        return f"\\frac{{{numerator}}}{{{denominator}}}"
    return f" {numerator.strip()}/{denominator.strip()}"
