"""Draws docs/figures/board.svg: the live board half way through a real demo run. `python docs/figures/make_board.py`"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from launch.output import board
from launch.settings.loading import load_config
from launch.train import run_training


def main() -> None:
    seen: list[board.RunSnapshot] = []
    update = board.Board.update

    def keep(self: board.Board, snapshot: board.RunSnapshot) -> None:
        seen.append(snapshot)
        update(self, snapshot)

    board.Board.update = keep  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as directory:
        run_training(load_config("embedded", ["evaluation.every_updates=50", f"output={directory}/demo"]))
    half = next(snapshot for snapshot in seen if snapshot.progress >= 0.5 and snapshot.scores["win rate"] is not None)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(board.render(half))
    svg = console.export_svg(title="offbeat demo")
    # The exporter's web fonts would make every reader of the page call a third party.
    svg = re.sub(r"@font-face\s*{[^}]*}\s*", "", svg)
    Path(__file__).with_name("board.svg").write_text(svg)


if __name__ == "__main__":
    main()
