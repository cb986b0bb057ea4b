"""In-process stand-ins for the learner and for the ranks of a training stage; nothing is trained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.records import (
    Canary,
    Game,
    Manifest,
    Pair,
)
from launch.run.protocols import Publication
from learner.records import StageStats


@dataclass
class FakeStats:
    loss: float = 0.5
    lr: float = 1e-3
    skipped: bool = False
    log_ratio_max: float = 0.0
    step_size: float | None = None
    pairs: int = 0
    ties: int = 0


class FakeLearner:
    """Counts what it is asked to do."""

    host = "127.0.0.1"

    def __init__(self, update_seconds: float = 0.002) -> None:
        self.batches: list[list[Any]] = []
        """Pairs or games."""
        self.measured: list[bool] = []
        self.exported: list[int] = []
        self.retired: list[int] = []
        self._update_seconds = update_seconds

    async def update(self, items: Sequence[Pair] | Sequence[Game], measure_step: bool = False) -> FakeStats:
        await asyncio.sleep(self._update_seconds)
        self.batches.append(list(items))
        self.measured.append(measure_step)
        return FakeStats()

    async def export(self, version: int) -> Publication:
        self.exported.append(version)
        return Publication(Manifest(version, (), Canary((), ()), "shm"))

    async def retire(self, version: int) -> None:
        self.retired.append(version)

    def each(self) -> Sequence[Any]:
        return ()

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int], Any]]) -> list[Any]:
        return [([-1.0] * len(response), [-1.5] * len(response)) for _, response, _ in sequences]


class FakeRanks:
    """All ranks of a stage as one: nothing is trained, and the held-out losses are told beforehand.

    `held_out` gives the loss of each evaluation in turn, the last one for ever; with none, nothing is held out.
    `on_advance` is called with the number of updates after each `advance`.
    """

    def __init__(self, held_out: Sequence[float] = (), on_advance: Callable[[int], None] | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        """Method and arguments, paths left out."""
        self.updates = 0
        self._held_out, self._on_advance = list(held_out), on_advance

    async def ready(self) -> None: ...

    async def close(self) -> None: ...

    def each(self) -> Sequence[Any]:
        return ()

    async def advance(self, updates: int) -> list[StageStats]:
        self.calls.append(("advance", updates))
        self.updates += updates
        done = range(self.updates - updates + 1, self.updates + 1)
        if self._on_advance is not None:
            self._on_advance(self.updates)
        await asyncio.sleep(0.01 if self._on_advance is None else 0.1)  # signals arrive
        common = {"metrics": {}, "grad_norm": 1.0, "lr": 0.1, "tokens": 10, "padded_tokens": 12, "seconds": 0.5}
        return [
            StageStats(update=update, loss=1 / update, **common, skipped=False, skipped_updates=0) for update in done
        ]

    async def evaluate(self) -> dict[str, float]:
        self.calls.append(("evaluate",))
        if not self._held_out:
            return {}
        loss = self._held_out.pop(0) if len(self._held_out) > 1 else self._held_out[0]
        return {"loss": loss, "tokens": 5.0, "padded_tokens": 6.0}

    async def save(self, stage: Path) -> None:
        self.calls.append(("save",))
        for part in ("deepspeed", "hf"):
            (stage / part).mkdir()
            (stage / part / "updates").write_text(str(self.updates))

    async def load(self, checkpoint: Path) -> None:
        self.calls.append(("load",))
        self.updates = int((checkpoint / "deepspeed" / "updates").read_text())

    async def save_pretrained(self, directory: Path) -> None:
        self.calls.append(("save_pretrained",))
        directory.mkdir(exist_ok=True)
        (directory / "updates").write_text(str(self.updates))

    async def finish(self, directory: Path) -> dict[str, Any]:
        return {}
