"""Which numbers of a page are figures, and so need a claim or an excuse.

Figures are, in the sections of `SECTIONS`, the numbers in rows of tables, and in sentences those with a decimal point,
a comma for thousands, a percent sign or a unit. A raw result must fill in those with a point, a percent sign or a unit.
The others may also be part of a claim's text, as settings that say which run is meant. No figures are numbers in code,
headings, heads of tables and targets of links, versions of packages, and names such as SmolLM2-135M.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.claims.claim import single_spaced

WHOLE: tuple[str, ...] = ()

SECTIONS: dict[str, tuple[str, ...]] = {
    "README.md": WHOLE,
    "docs/anchor.md": ("Measured", "At every age", "At a lag of 64"),
    "docs/benchmarks.md": WHOLE,
    "docs/data.md": ("Sources and layouts",),
    "docs/doctor.md": ("Estimates and measurements",),
    "docs/environments.md": ("Example: a policy learns to use a calculator",),
    "docs/evaluate.md": ("Measured",),
    "docs/generators.md": ("Speed over the bare engine", "A weight sync while requests run", "Quantised engines"),
    "docs/judges.md": ("A verifier", "Your own function"),
    "docs/lora.md": ("What it takes", "Adapters beside all weights"),
    "docs/losses.md": ("Runs that diverge",),
    "docs/nash.md": ("Measured",),
    "docs/preference.md": ("What they reach",),
    "docs/prompts.md": ("A chat model", "GSM8K"),
    "docs/publication.md": ("What proves a version",),
    "docs/reference.md": ("Reference actors",),
    "docs/scale.md": ("Coordinators", "What was simulated"),
    "docs/sweep.md": ("A real model on old samples", "Which loss bears old samples"),
    "docs/plan.md": ("Measured",),
    "docs/world.md": ("The starting point",),
}
"""The sections that tell what was measured, without those below them. docs/faults.md names a test in each row."""

UNITS = (
    "bytes",
    "GB",
    "GFLOP",
    "groups/s",
    "hours",
    "KB",
    "KiB",
    "MB",
    "MiB",
    "microseconds",
    "min",
    "minutes",
    "ms",
    "nats",
    "s",
    "seconds",
    "TB",
    "tokens/s",
)
NUMBER = re.compile(r"(?<![\w.#/-])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!\.?\d|[\w/])")
MEASURED = re.compile(rf"%|(?:-| )(?:{'|'.join(map(re.escape, UNITS))})(?![\w])")
UNREAD = (
    re.compile(r"^#+ .*$", re.MULTILINE),
    re.compile(r"^\|.*\n(?=\|[-|]+\|$)", re.MULTILINE),
    re.compile(r"^```[a-z].*?^```$", re.MULTILINE | re.DOTALL),
    re.compile(r"(?<=\n\n)(?: {4}.*\n)+"),
    re.compile(r"`[^`\n]+`"),
    re.compile(r"\]\([^)]*\)"),
)
"""Headings, heads of tables, code, targets of links. What a command prints, a block without a language, is read."""


@dataclass(frozen=True)
class Figure:
    """Where a number begins and ends in `single_spaced(page)`, and whether a raw result must fill it in."""

    begin: int
    end: int
    strict: bool

    def within(self, places: Iterable[tuple[int, int]]) -> bool:
        return any(begin <= self.begin and self.end <= end for begin, end in places)


def figures(page: str, sections: Sequence[str]) -> Iterator[Figure]:
    """Find the figures in the text of a page."""
    read = page
    for pattern in UNREAD:
        read = pattern.sub(lambda match: re.sub(r"\d", "#", match[0]), read)
    if sections:
        read = "".join(part if heading in sections else hidden(part) for heading, part in parts(read))
    rows = single_spaced(re.sub(r"^(?!\|).*$", lambda match: hidden(match[0]), read, flags=re.MULTILINE))
    read = single_spaced(read)
    for number in NUMBER.finditer(read):
        strict = bool(re.search("[.e]", number[0]) or MEASURED.match(read, number.end()))
        if strict or "," in number[0] or rows[number.start()] != "#":
            yield Figure(*number.span(), strict)


def hidden(text: str) -> str:
    return re.sub(r"\d", "#", text)


def parts(page: str) -> Iterator[tuple[str, str]]:
    """Cut a page at its headings."""
    for part in re.split(r"^(?=##+ )", page, flags=re.MULTILINE):
        yield part.partition("\n")[0].lstrip("# "), part
