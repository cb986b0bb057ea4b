"""A claim: text of a page whose numbers are filled in from a raw result.

A field of the text is a path in the raw result, `{median/generation:.1f}`, or the name of a function beside the text
that computes the value. A step of a path is a key, a place in a list, or the only entry of a list that has the given
values: `runs/row=lag-16&updates=600/kl_tail`. Behind the colon is the form of the number, as in `format` or `FORMS`.

To measure again, run the script and put what the test expects into the page. To add a number, put its text into the
page's list with a field for the number. Compute ratios and means here, from the raw values.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"

FORMS: dict[str, Callable[[float], str]] = {
    "tens": lambda value: f"{round(value, -1):,.0f}",
    "hundreds": lambda value: f"{round(value, -2):,.0f}",
    "MB": lambda value: f"{value / 1e6:.0f}",
    "GB": lambda value: f"{value / 1e9:.2f}",
}


@cache
def raw_result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


@dataclass(frozen=True)
class Claim:
    """Text of `page`. Paths and functions start at the place `at` of what the file `raw` holds."""

    page: str
    raw: str
    text: str
    at: str
    computed: Mapping[str, Callable[[Any], Any]]

    def filled(self, raw: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """Fill in the numbers: the text with single spaces, and where in it each number stands."""
        start = found(raw_result(self.raw) if raw is None else raw, self.at)
        text, places = "", []
        for literal, field, form, _ in string.Formatter().parse(single_spaced(self.text)):
            text += literal
            if field is not None:
                value = self.computed[field](start) if field in self.computed else found(start, field)
                number = FORMS[form](value) if form in FORMS else format(value, form or "")
                places += [(len(text), len(text) + len(number))] if number else []
                text += number
        return text, places


class Maker(Protocol):
    def __call__(self, text: str, at: str = "", **computed: Callable[[Any], Any]) -> Claim: ...


def of(page: str, raw: str) -> Maker:
    """Return a maker of claims of one page about one raw result."""
    return lambda text, at="", **computed: Claim(page, raw, text, at, computed)


def of_seeds(row: str, kind: str = "figures") -> Callable[[Any], str]:
    """Write a sweep's mean exploitability of a row and half its interval; of `differences`, with the sign."""

    def value(raw: Any) -> str:
        (wanted,) = (each for each in raw["rows"] if each["name"] == row)
        figure = wanted[kind]["exploitability"]
        sign = "+" if kind == "differences" else ""
        return f"{figure['mean']:{sign}.3f} ± {(figure['high'] - figure['low']) / 2:.3f}"

    return value


def found(raw: Any, path: str) -> Any:
    """Follow a path. A slash between spaces belongs to a key."""
    for step in re.split(r"(?<! )/(?! )", path) if path else []:
        if isinstance(raw, list) and "=" in step:
            wanted = dict(part.split("=") for part in step.split("&"))
            (raw,) = (each for each in raw if all(str(each[key]) == value for key, value in wanted.items()))
        else:
            raw = raw[int(step)] if isinstance(raw, list) else raw[step]
    return raw


def single_spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text)
