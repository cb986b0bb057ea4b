"""The result of a check, a line with a level and a remedy, and its printing. Must not depend on any check."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from actors.errors import OffbeatError
from actors.foreign.text import shown
from actors.redaction import redact

Level = Literal["ok", "warning", "error"]
STYLES: dict[Level, str] = {"ok": "green", "warning": "bold yellow", "error": "bold red"}
NAME_WIDTH = 13


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str  # subject of the check, one or two words
    level: Level
    """`error` if the run cannot work, `warning` if it may still work."""
    text: str
    remedy: str = ""  # next step; empty if none is needed


def graded(name: str, text: str, remedy: str = "", *, fatal: bool = False, doubtful: bool = False) -> Finding:
    """Return an error if `fatal`, else a warning if `doubtful`, else `ok` without the remedy."""
    level: Level = "error" if fatal else "warning" if doubtful else "ok"
    return Finding(name, level, text, "" if level == "ok" else remedy)


def from_exception(name: str, exception: OffbeatError) -> Finding:
    """Split an Offbeat error message into text and remedy: the remedy is its last line, or follows its last `; `."""
    message = str(exception)
    text, _, remedy = message.rpartition("\n" if "\n" in message else "; ")
    return Finding(name, "error", text or remedy, remedy if text else "")


def report(findings: Iterable[Finding], *, as_json: bool = False) -> int:
    """Print each finding as it comes, then a summary; or one JSON object at the end. Return 1 on any error, else 0."""
    console, given = Console(highlight=False), []
    for finding in findings:
        given.append(finding)
        if not as_json:
            show(finding, console)
    levels = [finding.level for finding in given]
    counts = {"errors": levels.count("error"), "warnings": levels.count("warning")}
    if as_json:
        listed = [redact(asdict(finding)) for finding in given]
        print(json.dumps({"ok": not counts["errors"], **counts, "findings": listed}, indent=2))
    else:
        parts = [f"{count} {what if count > 1 else what[:-1]}" for what, count in counts.items() if count]
        passed = "the one check passed" if len(given) == 1 else f"all {len(given)} checks passed"
        console.print(", ".join(parts) or passed, style="bold")
    return int(counts["errors"] > 0)


def show(finding: Finding, console: Console) -> None:
    """Print a finding, with its remedy on the next line."""
    level = Text(f"{finding.level:<8}", style=STYLES[finding.level])
    console.print(
        Text.assemble(level, (f"{finding.name:<{NAME_WIDTH}} ", "dim"), shown(finding.text, lines=True)), soft_wrap=True
    )
    if finding.remedy:
        console.print(Text(" " * (NAME_WIDTH + 9) + shown(finding.remedy), style="bold"), soft_wrap=True)
