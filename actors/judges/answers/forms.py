r"""Decide whether two mathematical answers are the same: remove notation, then compare them by their form.

An answer is a set, a tuple or an interval, a list in any order, a union, a matrix, a relation, a choice, words, a
number with a unit, or an expression. Forms are compared part by part, and expressions by `expressions.py`, so an
interval is never a set and `(1, 2)` never `(2, 1)`. Every rule is a pure function of two short texts.
"""

import re
from collections.abc import Sequence

from actors.judges.answers.exact import normalise, number, without_unit
from actors.judges.answers.expressions import Comparison

LONGEST_ANSWER = 400  # characters
MOST_PARTS = 24  # of a set, tuple, list, union or matrix

_OPEN, _CLOSE = "([{", ")]}"
_NAMES = (
    (r"\\!", ""),
    (r"(?<=\d)(?:\\,|\{,\})(?=\d{3}(?!\d))", ","),
    (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|~", " "),
    (r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg)(?![a-zA-Z])\.?", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])|≤", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])|≥", r"\\ge "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\neq(?![a-zA-Z])|≠", r"\\ne "),
    (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
    (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
    (r"\\lbrack(?![a-zA-Z])", "["),
    (r"\\rbrack(?![a-zA-Z])", "]"),
    (r"\\(?:ast|cdot)(?![a-zA-Z])|·", r"\\cdot "),
    (r"\N{MULTIPLICATION SIGN}", r"\\times "),
    (r"π", r"\\pi "),
    (r"∞", r"\\infty "),
    (r"√", r"\\sqrt "),
    (r"\N{UNION}", r"\\cup "),
    (r"±", r"\\pm "),
    (r"\\(?:emptyset|varnothing)(?![a-zA-Z])|∅", r"\\{\\}"),
    (r"\\(?:operatorname|mathbb|mathbf|mathrm|mathit|boldsymbol|textrm|textbf|textit|mbox)(?![a-zA-Z])", r"\\text"),
    (r"(?<=\d) (?=\d{3}(?!\d))(?=[\d ]*$)", ","),
)
_NAMES_COMPILED = tuple((re.compile(pattern), by) for pattern, by in _NAMES)
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|([0-9a-zA-Z]))\s*(?:\{([^{}]*)\}|([0-9a-zA-Z]))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-zA-Z]|\\pi(?![a-zA-Z]))")
_SHORT_POWER = re.compile(r"([_^])\s*\{\s*([0-9a-zA-Z])\s*\}")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[\d})a-z])\s*\\text\s*\{\s*([a-zA-Z./ ]{1,40})\s*\}\s*(?:\^\s*\{?([23])\}?)?\s*$")
_NO_UNIT = re.compile(
    r"\b(?:and|or|if|for|when|to|mod|dozen|hundred|thousand|million|billion|trillion)s?\b", re.IGNORECASE
)
_SPACE = re.compile(r"(?<![0-9a-zA-Z])\s+|\s+(?![0-9a-zA-Z])")
_CHOICE = re.compile(r"\(([A-J])\)[.:]?(?:\s+\w[^()]*)?|([A-J])(?:[.:)](?:\s+\w[^()]*)?)?")
_RELATION = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<|>|=")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_MEMBER = re.compile(r"([a-zA-Z])\s*\\in(?![a-zA-Z])\s*(.+)", re.DOTALL)
_WORDS = re.compile(r"[a-zA-Z]{3,}(?:[ -][a-zA-Z]+)*")
_NAME = re.compile(r"\\?[a-zA-Z]+(?:_\w|'|\([a-z]\))?")
_BASE = re.compile(r"\d_")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
_Part = tuple[str, str]


def same_form(first: str, second: str) -> bool:
    """Decide whether two answers, taken from boxes, mean the same; False if either is out of bounds."""
    if max(len(first), len(second)) > LONGEST_ANSWER:
        return False
    one, other = spelled(first), spelled(second)
    if (choice := _choice(first)) and (other_choice := _choice(second)):
        return choice == other_choice
    (one, unit), (other, other_unit) = _without_unit(one), _without_unit(other)
    unit, other_unit = unit or _currency(first), other_unit or _currency(second)
    if unit and other_unit and unit.removesuffix("s") != other_unit.removesuffix("s"):
        return False
    return one != "" and other != "" and _same(one, other, Comparison())


def spelled(answer: str) -> str:
    r"""Write LaTeX in one way: `\dfrac12` as `\frac{1}{2}`, `\sqrt5` as `\sqrt{5}`, no meaningless spaces."""
    text = re.sub(r"\\[()\[\]]|\\\$|\$", "", answer).replace("\N{MINUS SIGN}", "-").replace("\\%", "").replace("%", "")
    for pattern, by in _NAMES_COMPILED:
        text = pattern.sub(by, text)
    text = re.sub(r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|°", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if not _brackets(text) and _grouped(text) else text
    for _ in range(3):
        text = _SHORT_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)
        text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_POWER.sub(r"\1{\2}", text)
    text = re.sub(r"([_^])\s*([0-9a-zA-Z])", r"\1{\2}", text)
    return _SPACE.sub("", " ".join(text.split()).rstrip(".").strip())


def _grouped(text: str) -> bool:
    """Return whether every comma of `text` separates thousands of a single number."""
    return re.fullmatch(r"[^\d,]*\d{1,3}(?:,\d{3})+(?:\.\d+)?[^\d,]*", text) is not None


def _brackets(text: str) -> bool:
    return text[:1] in ("(", "[") or text.startswith("\\{")


def _choice(text: str) -> str:
    """Return the letter of `(A)`, `A.`, `\text{(A)}` or `(A) a choice`; else the empty string."""
    match = _CHOICE.fullmatch(_TEXT.sub(r"\1", text.replace("$", "")).strip())
    return "" if match is None else match[1] or match[2]


def _currency(text: str) -> str:
    return "dollars" if re.match(r"\s*-?\s*\\?\$\s*-?[\d.]", text) and text.count("$") == 1 else ""


def _without_unit(text: str) -> _Part:
    match = _UNIT.search(text)
    if match and text[: match.start()] and not _NO_UNIT.search(match[1]):
        return text[: match.start()].rstrip("\\ "), " ".join(match[1].split()).rstrip(".") + (match[2] or "")
    plain, unit = without_unit(_TEXT.sub(r"\1", text))
    return (plain, unit) if unit else (text, "")


def _same(first: str, second: str, equal: Comparison) -> bool:
    """Compare two spelled answers by their forms."""
    if first == second:
        return True
    member, other_member = _MEMBER.fullmatch(first), _MEMBER.fullmatch(second)
    if member and other_member and member[1] != other_member[1]:
        return False
    if member or other_member:
        return _same(member[2] if member else first, other_member[2] if other_member else second, equal)
    for take in (_listed, _union, _matrix, _bracketed):
        one, other = take(first), take(second)
        if one is not None or other is not None:
            return one is not None and other is not None and one[:2] == other[:2] and _same_parts(one, other, equal)
    if _RELATION.search(first) or _RELATION.search(second):
        return _same_relation(first, second, equal)
    words = [_TEXT.sub(r"\1", text).strip() for text in (first, second)]
    if all(map(_WORDS.fullmatch, words)):
        return words[0].casefold() == words[1].casefold()
    if any("\\text" in text or _BASE.search(text) for text in (first, second)):
        return words[0] == words[1]
    return _signed_infinity(first) == _signed_infinity(second) != "" or equal(_number(first), _number(second))


def _number(text: str) -> str:
    plain = normalise(text)
    return plain if number(plain) is not None else text


def _signed_infinity(text: str) -> str:
    return {"\\infty": "+", "+\\infty": "+", "-\\infty": "-"}.get(text.replace(" ", ""), "")


_Form = tuple[str, int, bool, Sequence[str]]  # kind with its brackets, number of parts, ordered, parts


def _same_parts(first: _Form, second: _Form, equal: Comparison) -> bool:
    if first[2]:
        return all(_same(one, other, equal) for one, other in zip(first[3], second[3], strict=True))
    rest = list(second[3])
    for part in first[3]:
        found = next((index for index, other in enumerate(rest) if _same(part, other, equal)), None)
        if found is None:
            return False
        rest.pop(found)
    return True


def _form(kind: str, ordered: bool, parts: Sequence[str]) -> _Form:
    kind = kind if len(parts) <= MOST_PARTS else f"{kind} that is too long"
    return kind, len(parts), ordered, parts


def _listed(text: str) -> _Form | None:
    r"""Read values in any order: `1,2`, `1 \text{ and } 2`, `\pm 1`. None for a single value."""
    text = re.sub(r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|(?<=[\d}) ])\s*\b(?:and|or)\b\s*(?=[\d(\\{ -])", ",", text)
    parts = [each for part in split(text, ",") for each in _both_signs(part)]
    names = {part.partition("=")[0] if "=" in part else "" for part in parts}
    return _form("list" if len(names) == 1 else "list of several variables", False, parts) if len(parts) > 1 else None


def _both_signs(text: str) -> list[str]:
    if text.count("\\pm") != 1 or "\\mp" in text:
        return [text]
    before, after = text.split("\\pm")
    return [f"{before}+{after}" if before else after.strip(), f"{before}-{after}"]


def _union(text: str) -> _Form | None:
    parts = split(text, "\\cup")
    return _form("union", False, parts) if len(parts) > 1 else None


def _matrix(text: str) -> _Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    kind = "determinant" if match[1] in ("vmatrix", "Vmatrix") else "matrix"
    rows = [row.split("&") for row in re.split(r"\\\\", match[2].strip()) if row.strip()]
    shape = "x".join(str(len(row)) for row in rows)
    return _form(f"{kind} {shape}", True, [cell.strip() for row in rows for cell in row])


def _bracketed(text: str) -> _Form | None:
    r"""Read `\{1,2\}` in any order, and `(1,2)` or `[1,2)` in order, with these brackets. None for other text."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2]
        return _form("set", False, split(inner, ",") if inner.strip() else [])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(parts := split(text[1:-1], ",")) > 1:
        return _form(text[0] + text[-1], True, parts)
    return None


def _same_relation(first: str, second: str, equal: Comparison) -> bool:
    """Compare relations side by side, in both directions. `x = 5` also equals `5`, but not `y = 5`."""
    one, other = _chain(first), _chain(second)
    if len(one[0]) == 1 or len(other[0]) == 1:
        bare, (sides, signs) = (first, other) if len(one[0]) == 1 else (second, one)
        return signs == ["="] and _NAME.fullmatch(sides[0]) is not None and _same(bare, sides[1], equal)
    turned = other[0][::-1], [_TURNED[sign] for sign in reversed(other[1])]
    for sides, signs in (other, turned):
        if signs == one[1] and all(_same(a, b, equal) for a, b in zip(one[0], sides, strict=True)):
            return True
    if one[1] != ["="] or other[1] != ["="] or not all(map(_is_equation, (first, second))):
        return False
    left, right, turned_right = (f"({a})-({b})" for a, b in (one[0], other[0], other[0][::-1]))
    return equal(left, right) or equal(left, turned_right)


def _chain(text: str) -> tuple[list[str], list[str]]:
    return [side.strip() for side in _RELATION.split(text)], _RELATION.findall(text)


def _is_equation(text: str) -> bool:
    return len(set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)))) > 1


def split(text: str, separator: str) -> list[str]:
    """Split `text` at separators outside all brackets. Half-open intervals close with either bracket."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if text[index] in _OPEN:
            depth += 1
        elif text[index] in _CLOSE:
            depth -= 1
        elif depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index].strip())
            index += len(separator)
            start = index
            continue
        index += 1
    return [*parts, text[start:].strip()]
