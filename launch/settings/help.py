"""Every setting of a verb as readable tables, for `offbeat VERB --help`. Knows the settings' words, not their use."""

from __future__ import annotations

import os

from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from launch.settings.fields import Setting, settings

WIDTH_WITHOUT_TERMINAL = 120


def print_settings(model: type[BaseModel], console: Console | None = None) -> None:
    """Prints `model`, one table for each section: key, type or choices with bounds, default, meaning."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    # A section's own leaves stand together even where a subsection was declared between them.
    sections: dict[str, list[Setting]] = {}
    for setting in settings(model):
        sections.setdefault(setting.section, []).append(setting)
    console.print("\nSettings, in the YAML file as sections or on the command line as KEY=VALUE:")
    key_width = max(len(entry.key) for entries in sections.values() for entry in entries)
    for section, entries in sections.items():
        console.print()
        console.print(Text.assemble((section or "run", "bold"), "  ", (entries[0].title, "dim")))
        console.print(Padding(_table(entries, key_width), (0, 0, 0, 2)))


def _table(entries: list[Setting], key_width: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column("key", no_wrap=True, min_width=key_width)
    table.add_column("allowed", ratio=3)
    table.add_column("default", ratio=2)
    table.add_column("meaning", ratio=6)
    for entry in entries:
        table.add_row(
            Text(entry.key, style="cyan"),
            Text(entry.allowed),
            Text(entry.default, style="bold red" if entry.default == "required" else "green"),
            Text(f"kind {', '.join(entry.only_for)}: {entry.description}" if entry.only_for else entry.description),
        )
    return table
