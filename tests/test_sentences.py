"""Docstrings of the product and its benchmarks: the action or the thing first, in one breath."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house import ROOT, TOPS, House, assert_only

HOUSE = House.at(ROOT, (*TOPS, "benchmarks", "examples"))
MOST_WORDS = 20
"""Limit on a function's first sentence. Words without two letters in a row, as in formulas, do not count."""
CLAUSES = {"What", "How", "Whether", "Who", "Whom", "Whose", "Which", "Where", "When", "That", "Those", "Of"}
"""First words of clauses and fragments: only the end of such a docstring says what it is about, or its code."""
TOLD = re.compile(r"\b(?:(?:is|are|was|be|been|being) told|tells?|telling)\b")
"""Computers print, warn, report or pass on."""
WORD = re.compile(r"[A-Za-z]{2}")
SENTENCE_END = re.compile(r"[.:;](?=\s)|\n\n|\Z")


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield each docstring with its owner and line; strings below fields and constants count as docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for above, each in zip([node, *body], body, strict=False) if isinstance(body, list) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                yield above, each.lineno, each.value.value.strip()


def long_first_sentence(owner: ast.AST, text: str) -> str | None:
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
        first = SENTENCE_END.split(text, maxsplit=1)[0]
        words = [word for word in first.split() if WORD.search(word)]
        return first if len(words) > MOST_WORDS else None
    return None


def clause(owner: ast.AST, text: str) -> str | None:
    return text.splitlines()[0] if re.split(r"\W", text, maxsplit=1)[0] in CLAUSES else None


def told(owner: ast.AST, text: str) -> str | None:
    found = TOLD.search(text)
    return found and found.group()


@pytest.mark.parametrize("rule", [clause, told, long_first_sentence])
def test_a_docstring_says_first_what_it_is_about(rule):
    assert_only(
        (),
        (
            f"{HOUSE.paths[name].relative_to(ROOT)}:{line}: {wrong}"
            for name, tree in HOUSE.trees.items()
            for owner, line, text in docstrings(tree)
            if (wrong := rule(owner, text))
        ),
    )


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (clause, '"""What it does."""'),
        (clause, 'class A:\n    b: int\n    """Whether it is so."""'),
        (told, 'def f():\n    """Return what the driver is told."""'),
        (long_first_sentence, f'def f():\n    """Return {"the word " * 10}s."""'),
    ],
)
def test_a_docstring_that_does_not_is_found(rule, source):
    assert [text for owner, _, text in docstrings(ast.parse(source)) if rule(owner, text)]
    assert not [1 for owner, _, _ in docstrings(ast.parse(source)) if rule(owner, "Return the rows, [n], if a b c.")]
