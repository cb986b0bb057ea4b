"""The commands and files of a page, in order: what its reader types, and what its reader writes."""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = re.compile(r"^```(\w*).*\n")
PROGRAMS = {
    "offbeat",
    "make",
    "python",
    "python3",
    "pip",
    "git",
    "cd",
    "export",
    "tensorboard",
    "vllm",
    "docker",
    "ray",
}
FILE = re.compile(r"# (\w+\.(?:py|yaml))$")


@dataclass(frozen=True)
class Written:
    """A file that the page has its reader write."""

    name: str
    text: str


Step = Written | str
"""A file to write, or a line of a shell."""


def steps(page: str) -> list[Step]:
    """Read the steps off a page: code that begins with `# name.py` is a file, and lines that begin with a program are
    commands. Other blocks, such as what a command prints, are left out."""
    found: list[Step] = []
    for language, block in blocks(page):
        lines = block.splitlines()
        name = FILE.match(lines[0]) if lines else None
        if name:
            found.append(Written(name[1], block))
        elif language in ("", "sh", "bash") and lines and _is_command(lines[0]):
            found += commands(block)
    return found


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block of code, fenced or indented by four."""
    found: list[tuple[str, str]] = []
    language: str | None = None
    lines: list[str] = []
    for line in [*page.splitlines(keepends=True), "\n", "end\n"]:
        if language is not None:
            if line.startswith("```"):
                found.append((language, "".join(lines)))
                language, lines = None, []
            else:
                lines.append(line)
        elif line.startswith("    ") or (lines and not line.strip()):
            lines.append(line[4:] if line.strip() else "\n")
        else:
            if lines:
                found.append(("", "".join(lines).rstrip("\n") + "\n"))
            lines = []
            if fence := FENCE.match(line):
                language = fence[1]
    return found


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line, without comments and without a prompt."""
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*$", "", line).removeprefix("$ ").strip())]


def _is_command(line: str) -> bool:
    words = line.removeprefix("$ ").split()
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return bool(words) and words[0] in PROGRAMS
