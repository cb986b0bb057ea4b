"""Whole training runs in this process: fakes for Ray's actors, a small configuration, and what a run has left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actors.errors import RunError
from launch import train
from launch.cluster import wiring
from launch.output.journal_reader import JournalReader
from launch.settings.run import RunConfig
from learner.backend import checkpoints
from tests.fakes.generators import FakeGenerator
from tests.fakes.judges import FakeJudge
from tests.fakes.learner import FakeLearner, FakeStats


@dataclass
class Stats(FakeStats):
    accuracy: float = 0.5
    kl_chosen: float = 0.0
    kl_rejected: float = 0.0
    kl_players: float | None = None
    grad_norm: float = 1.0


class Learner(FakeLearner):
    """Writes what a checkpoint must hold; `interrupt_at` sends a signal to this very process during that update."""

    interrupt_at: int | None = None
    break_at: int | None = None
    diverging: Container[int] = ()
    """Updates of this learner, from 1, that report a KL of 600 nats."""
    signals = (signal.SIGINT,)

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Path] = []

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def load(self, checkpoint: Path) -> None:
        self.loaded.append(checkpoint)

    async def update(self, items: Any, measure_step: bool = False) -> Stats:
        await super().update(items, measure_step)
        if self.interrupt_at == len(self.batches):
            for number in self.signals:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
        if self.break_at == len(self.batches):
            raise RunError("the learner ran out of memory")
        return Stats(kl_chosen=600.0 if len(self.batches) in self.diverging else 1.0)

    async def save(self, stage: Path) -> None:
        for part in (checkpoints.ENGINE, checkpoints.MODEL):
            (stage / part).mkdir()
            (stage / part / "data").write_text("")

    async def save_pretrained(self, directory: Path) -> None:
        directory.mkdir()

    async def close(self) -> None: ...


@dataclass
class Actors:
    """What a run is given instead of Ray's actors."""

    learner: Learner
    judge: FakeJudge
    generators: list[FakeGenerator]


def in_place_of_ray(patch: pytest.MonkeyPatch) -> Actors:
    """Give every run from now on the actors that are returned, and those that take their places."""
    made = Actors(Learner(), FakeJudge(), [FakeGenerator("a")])
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setattr(train.SharedMemory, "require", lambda self, nbytes, *, what: None)
    patch.setattr(wiring, "ray_session", lambda cluster: contextlib.nullcontext())
    patch.setattr(wiring, "check_resources", lambda config: None)
    patch.setattr(wiring, "run_on_all_cores", lambda *arguments, **keywords: None)
    patch.setattr(wiring, "start_generators", lambda *_, **__: made.generators)
    patch.setattr(wiring, "start_judges", lambda config, model_dir: [made.judge])
    patch.setattr(wiring, "start_learner", lambda *arguments: made.learner)
    return made


def config_of(tmp_path: Path, **settings: Any) -> RunConfig:
    """A run of 6 updates in `tmp_path / "run"`."""
    base: dict[str, Any] = {
        "model": {"path": "world"},
        "output": str(tmp_path / "run"),
        "updates": 6,
        "prompts": {"source": "world", "max_prompt_tokens": 8},
        "sampling": {"completions_per_prompt": 2, "max_new_tokens": 4},
        "replay": {"prompts_per_update": 4},
        "checkpoints": {"every_updates": 0},
        "evaluation": {"prompts": 4},
    }
    return RunConfig.model_validate({**base, **settings})


def summary_of(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run" / "summary.json").read_text())


def journaled(tmp_path: Path) -> list[tuple[int, list[int]]]:
    """Updates of the run's journal, and the leases that each consumed."""
    rows = JournalReader(tmp_path / "run" / "journal").rows
    return [(row.update, list(row.lease_indices)) for row in rows]
