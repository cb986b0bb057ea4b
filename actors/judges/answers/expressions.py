r"""Decide whether two mathematical expressions are equal: math-verify parses them, behind bounds; values decide.

An expression has no comma, relation or set at its top level; `forms.py` takes answers apart into expressions.
math-verify reads LaTeX with ANTLR, which can take minutes for a few nested brackets. Its own comparison rounds to six
digits (3.141593 is pi) and simplifies without a limit. So length, depth, commands, digits and exponents are bounded,
and two expressions are equal if they agree in 50 digits at a few points. Two numbers are compared exactly.
"""

import logging
import re
import threading
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Any

from actors.judges.answers.exact import number

LONGEST_EXPRESSION = 60  # characters
DEEPEST = 4  # brackets within brackets
MOST_DIGITS = 40  # in a row
LARGEST_EXPONENT = 1000
LARGEST_POWER = 24  # product of all exponents of an expression with a variable in it
MOST_VARIABLES = 4
MOST_CHARACTERS = 90  # that are read for one answer, the gold one included
MOST_BRACKETS = 10

# Commands of bounded cost: no sums, products, integrals, limits, factorials.
_COMMANDS = frozenset(
    {"frac", "sqrt", "pi", "theta", "alpha", "beta", "lambda", "phi", "cdot", "times", "div", "infty", "binom"}
    | {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln"}
    | {"lfloor", "rfloor", "lceil", "rceil"}
)
_ALLOWED = re.compile(r"(?:\\[a-zA-Z]+|[a-zA-Z0-9.+\-*/^_{}()\[\]| ])*")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])|(?<![\\a-zA-Z])[a-zA-Z]{2,3}(?![a-zA-Z])")
_GLUED = re.compile(r"[)}\]]\s*\d|[a-zA-Z]\d|\|\s*\d+$")  # `\sqrt{5}1`: a stray digit, not a product
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")
_LOG_BASE = re.compile(r"\\log_\{\w{1,3}\}")
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*(?:\{((?:[^{}^]|\{[^{}^]*\})*)\}|([^\s{]))")
_LARGE_BINOMIAL = re.compile(r"\\binom.*(?:\d{4}|\^)|(?:\d{4}|\^).*\\binom")
_POINTS = (Fraction(29, 41), Fraction(173, 97), Fraction(-13, 37))
_ONE_AT_A_TIME = threading.Lock()  # because threads would share ANTLR's tables


class Comparison:
    """Compares the expressions of one answer with the gold answer's, up to `MOST_CHARACTERS` in all."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, first: str, second: str) -> bool:
        """Decide whether two expressions are equal; False if either is out of bounds or unreadable."""
        one, other = number(first), number(second)
        if one is not None and other is not None:
            return one == other
        if (one is not None or other is not None) and any("." in text for text in (first, second)):
            return False  # a decimal is no rounding of an irrational number
        if not (_is_bounded(first) and _is_bounded(second)):
            return False
        if any(map(str.isupper, _letters(first) | _letters(second))) and _letters(first) != _letters(second):
            return False  # math-verify reads some capitals as small letters
        self._seen |= {first, second}
        return sum(map(len, self._seen)) <= MOST_CHARACTERS and _same_value(first, second)


@lru_cache(maxsize=4096)
def _same_value(first: str, second: str) -> bool:
    try:
        with _ONE_AT_A_TIME:
            left, right = _parsed(first), _parsed(second)
            return left is not None and right is not None and _agree(left, right)
    except Exception:  # the parser and SymPy raise anything at all
        return False


def _is_bounded(text: str) -> bool:
    if len(text) > LONGEST_EXPRESSION or not _ALLOWED.fullmatch(text):
        return False
    if not _COMMANDS.issuperset(re.findall(r"\\([a-zA-Z]+)", text)) or re.search(rf"\d{{{MOST_DIGITS}}}", text):
        return False
    if _GLUED.search(_LOG_BASE.sub(r"\\log ", text)) or _WORD.search(text) or _LARGE_BINOMIAL.search(text):
        return False
    if sum(map(text.count, "{([")) > MOST_BRACKETS:
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    if depth or deepest > DEEPEST:
        return False
    variables = _letters(text)
    return len(variables) <= MOST_VARIABLES and _exponents_are_small(text, bool(variables - {"e", "i"}))


def _letters(text: str) -> set[str]:
    """Return the letters outside commands."""
    return {letter for word in _VARIABLE.findall(text) for letter in word}


def _exponents_are_small(text: str, has_variable: bool) -> bool:
    exponents = []
    for match in _EXPONENT.finditer(text):
        numbers = [int(digits) for digits in re.findall(r"\d+", match[1] or match[2])]
        exponents.append(prod(max(each, 1) for each in numbers))
    if len(exponents) != text.count("^") + text.count("**"):
        return False  # a power in an exponent
    return prod(exponents) <= (LARGEST_POWER if has_variable else LARGEST_EXPONENT)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Return the SymPy expression of `text`; None if it is unreadable, a relation or a set."""
    math_verify = _math_verify()
    # Its own normalisation would drop units: `10 m` would be 10, and `10 km` too.
    plain = math_verify.parser.NormalizationConfig(units=False, malformed_operators=False, nits=False, boxed="none")
    config = [math_verify.LatexExtractionConfig(normalization_config=plain)]
    found = math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    expression = found[0] if found else None
    return expression if getattr(expression, "is_Relational", True) is False and hasattr(expression, "evalf") else None


def _agree(left: Any, right: Any) -> bool:
    """Return whether both agree in 50 digits wherever both have a value. False if no point gives both a value."""
    import sympy

    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    agreed = False
    for index in range(len(_POINTS) if symbols else 1):
        points = (_POINTS[(index + place) % len(_POINTS)] + place for place in range(len(symbols)))
        values = {symbol: sympy.Rational(str(point)) for symbol, point in zip(symbols, points, strict=True)}
        one, other = (expression.evalf(60, subs=values, maxn=300) for expression in (left, right))
        if not (one.is_finite and other.is_finite and one.is_number and other.is_number):
            continue
        if abs(one - other) > sympy.Float("1e-50", 60) * sympy.Max(1, abs(one), abs(other)):
            return False
        agreed = True
    return agreed


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    """Import math-verify on first use, because SymPy takes a third of a second."""
    import math_verify

    # Without a timeout it logs a warning. Its alarms work in a main thread only; the bounds above replace them.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
