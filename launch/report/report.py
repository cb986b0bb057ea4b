"""`offbeat report`: read the runs, put the page together, write it whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from actors.errors import UsageError, writing
from actors.files import atomic_write, megabytes
from actors.foreign.text import shown
from launch.report import compare, sections
from launch.report.drawing import svg
from launch.report.records import Run, read_run
from launch.report.verdict import verdict

NAME = "report.html"
MARK = "<!-- offbeat report -->"
"""Near the start of every report, so that no other file is replaced by one."""
_HERE = Path(__file__).parent


def run_report(directories: Sequence[Path], output: Path | None) -> int:
    """Write the report of one run, or of several compared; print where it is, and the verdict.

    Raises UsageError for a directory without a run or a file that must not be replaced, RunError if writing fails.
    """
    if len(directories) > compare.MOST_RUNS:
        raise UsageError(
            f"{len(directories)} runs were given, and a report compares at most {compare.MOST_RUNS}; give fewer, or "
            "use `offbeat sweep`, whose table has room for all"
        )
    if len({directory.resolve() for directory in directories}) < len(directories):
        given = ", ".join(map(str, directories))
        raise UsageError(f"given {given}: one run twice; leave one out, because a report compares different runs")
    runs = [read_run(directory) for directory in directories]
    path = output if output is not None else directories[0] / NAME if len(runs) == 1 else Path(NAME)
    _require_ours(path)
    page, said = _single(runs[0], path.parent) if len(runs) == 1 else _compared(runs, path.parent)
    with writing(path, "or choose another file with --output FILE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, page.encode("utf-8", "replace"))
    for line in said:
        print(shown(line))
    print(shown(f"{path} ({megabytes(path.stat().st_size)})"))
    return 0


def _require_ours(path: Path) -> None:
    """Raise UsageError if `path` holds anything but an earlier report."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give a file with --output FILE")
    if path.exists():
        with path.open("rb") as file:
            if MARK.encode() not in file.read(200):
                raise UsageError(f"{path} is there and is no report; choose another file with --output FILE")


def _single(run: Run, base: Path) -> tuple[str, Sequence[str]]:
    found = verdict(run)
    title = run.name
    about = " · ".join(part for part in (str(run.setting("name") or ""), run.loss, _began(run)) if part)
    return page(title, about, sections.head(run), sections.body(run, base)), found.sentences


def _compared(runs: Sequence[Run], base: Path) -> tuple[str, Sequence[str]]:
    names = compare.names_of(runs)
    title = f"{len(runs)} runs compared"
    content = page(title, ", ".join(names), compare.head(runs, names), compare.body(runs, names, base))
    return content, compare.differences(runs, names)


def _began(run: Run) -> str:
    times = [row["time"] for row in run.rows[:1] if isinstance(row.get("time"), int | float)]
    try:
        return f"first update {datetime.fromtimestamp(times[0]):%Y-%m-%d %H:%M}" if times else ""
    except (ValueError, OverflowError, OSError):
        return ""


def page(title: str, about: str, head: str, body: Iterable[tuple[str, str]]) -> str:
    """Return the whole page, which loads nothing and runs no script but its own."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = "".join(f"<section><h2>{svg.text(name)}</h2>{content}</section>\n" for name, content in body)
    return f"""<!doctype html>
{MARK}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{svg.text(title)}: Offbeat</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><h1>{svg.text(title)}</h1><p>{svg.text(about)}</p></header>
{head}
{parts}</main>
<div id="tip" role="status"></div>
<script>{script}</script>
</body>
</html>
"""
