"""What a check found: one line with a level, and what to do about it. Knows nothing of what is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from actors.errors import OffbeatError

Level = Literal["ok", "warning", "error"]
STYLES: dict[Level, str] = {"ok": "green", "warning": "bold yellow", "error": "bold red"}
NAME_WIDTH = 13


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. Made by the checks, shown by `offbeat doctor`."""

    name: str
    """What was checked, in a word or two."""
    level: Level
    """`ok`; `warning`: a run may still go well; `error`: it cannot."""
    text: str
    """What was found."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def ok(name: str, text: str) -> Finding:
    return Finding(name, "ok", text)


def warning(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, "warning", text, remedy)


def error(name: str, text: str, remedy: str) -> Finding:
    return Finding(name, "error", text, remedy)


def refusal(name: str, refused: OffbeatError) -> Finding:
    """The error of another part of the program, whose message ends with what to do, on a last line or after `; `."""
    message = str(refused)
    text, _, remedy = message.rpartition("\n" if "\n" in message else "; ")
    return error(name, text or remedy, remedy if text else "")


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))


def as_json(findings: Sequence[Finding]) -> str:
    """One JSON object: `ok`, the numbers of errors and warnings, and every finding."""
    counts: dict[str, Any] = {level + "s": _count(findings, level) for level in ("error", "warning")}
    return json.dumps(
        {"ok": not exit_code(findings), **counts, "findings": [asdict(finding) for finding in findings]}, indent=2
    )


def show(finding: Finding, console: Console) -> None:
    """Prints a finding, and below it what to do."""
    level = Text(f"{finding.level:<8}", style=STYLES[finding.level])
    console.print(Text.assemble(level, (f"{finding.name:<{NAME_WIDTH}} ", "dim"), finding.text), soft_wrap=True)
    if finding.remedy:
        console.print(Text(" " * (NAME_WIDTH + 9) + finding.remedy, style="bold"), soft_wrap=True)


def verdict(findings: Sequence[Finding]) -> str:
    """The outcome as one line."""
    errors, warnings = _count(findings, "error"), _count(findings, "warning")
    parts = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((errors, "error"), (warnings, "warning")) if n]
    return ", ".join(parts) or f"all {len(findings)} checks passed"


def _count(findings: Sequence[Finding], level: str) -> int:
    return sum(finding.level == level for finding in findings)
