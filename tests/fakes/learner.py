"""In-process stand-ins for the learner and for the ranks of a training stage; nothing is trained."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.records import Canary, Game, Manifest, Pair
from launch.run.protocols import Publication
from learner.records import StageStats


@dataclass
class FakeStats:
    loss: float = 0.5
    lr: float = 1e-3
    skipped: bool = False
    log_ratio_max: float = 0.0
    step_size: float | None = None


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

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
        return [([-1.0] * len(response), [-1.5] * len(response)) for _, response in sequences]

    async def exact_table(self) -> Any:
        """The uniform policy's."""
        return np.full((16, 259, 18), -math.log(18.0))


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

    def call(self, method: str, *arguments: Any) -> Any:
        self.calls.append((method, *(value for value in arguments if not isinstance(value, str))))
        return getattr(self, method)(*arguments)

    def ready(self) -> None:
        pass

    def close(self) -> None:
        pass

    def advance(self, updates: int) -> list[StageStats]:
        self.updates += updates
        done = range(self.updates - updates + 1, self.updates + 1)
        if self._on_advance is not None:
            self._on_advance(self.updates)
        common = {"metrics": {}, "grad_norm": 1.0, "lr": 0.1, "tokens": 10, "padded_tokens": 12, "seconds": 0.5}
        return [
            StageStats(update=update, loss=1 / update, **common, skipped=False, skipped_updates=0) for update in done
        ]

    def evaluate(self) -> dict[str, float]:
        if not self._held_out:
            return {}
        loss = self._held_out.pop(0) if len(self._held_out) > 1 else self._held_out[0]
        return {"loss": loss, "tokens": 5.0, "padded_tokens": 6.0}

    def save(self, stage: str) -> None:
        for part in ("deepspeed", "hf"):
            (Path(stage) / part).mkdir()
            (Path(stage) / part / "updates").write_text(str(self.updates))

    def load(self, checkpoint: str) -> None:
        self.updates = int((Path(checkpoint) / "deepspeed" / "updates").read_text())

    def save_pretrained(self, directory: str) -> None:
        Path(directory).mkdir(exist_ok=True)
        (Path(directory) / "updates").write_text(str(self.updates))

    def finish(self, directory: str) -> dict[str, Any]:
        return {}
