"""Figures that no raw result can hold, by page and reason.

A text stands in its page once; `…` in it stands for what comes between.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.claims.claim import ROOT, single_spaced


@dataclass(frozen=True)
class Excuse:
    """Text of `page` that no claim fills in, and why."""

    page: str
    reason: str
    text: str

    def places(self) -> list[tuple[int, int]]:
        """Find the text in its page with single spaces."""
        pattern = ".*?".join(re.escape(part) for part in single_spaced(self.text).split("…"))
        page = single_spaced((ROOT / self.page).read_text("utf-8"))
        return [match.span() for match in re.finditer(pattern, page)]


def read(file: Path) -> tuple[Excuse, ...]:
    """Read excuses from a list: `# page`, then `## reason`, then a text in each line below it."""
    excuses, page, reason = [], "", ""
    for line in file.read_text("utf-8").splitlines():
        if line.startswith("## "):
            reason = line[3:]
        elif line.startswith("# "):
            page = line[2:]
        elif line:
            excuses.append(Excuse(page, reason, line))
    return tuple(excuses)


EXCUSED = read(Path(__file__).with_name("excused.txt"))
