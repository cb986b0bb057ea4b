"""Signals when all updates are made, while the final policy is evaluated. With fakes for Ray's actors."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launch import train
from learner.backend.manifest import MANIFEST
from tests.fakes.generators import FakeGenerator
from tests.fakes.judges import FakeJudge
from tests.launch.sessions import Actors, Learner, config_of, in_place_of_ray, summary_of


class Signalled(FakeJudge):
    """Sends these to this very process over the first groups of the final evaluation."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals

    async def judge(self, groups: Any) -> Any:
        if groups[0].lease.index < 0:
            signals, self._signals = self._signals, ()
            for number in signals:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.01)
        return await super().judge(groups)


class Replacing(Learner):
    """Writes the model over what an earlier part of the run left."""

    async def save_pretrained(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    return in_place_of_ray(monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_the_final_evaluation_waits_for_it(
    tmp_path: Path, actors: Actors, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    actors.judge = Signalled(number)
    assert train.run_training(config_of(tmp_path)) == 0
    assert "all updates are done, saving and evaluating" in capsys.readouterr().err
    assert summary_of(tmp_path)["status"] == "completed"
    assert summary_of(tmp_path)["win_rate"]["n"] == 4


def test_a_second_one_ends_the_run_which_can_be_resumed_for_its_evaluation_alone(
    tmp_path: Path, actors: Actors
) -> None:
    actors.judge = Signalled(signal.SIGINT, signal.SIGINT)
    with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
        train.run_training(config_of(tmp_path))
    assert summary_of(tmp_path)["status"] == "interrupted"
    assert "win_rate" not in summary_of(tmp_path) or summary_of(tmp_path)["win_rate"] is None
    assert (tmp_path / "run" / "final" / MANIFEST).is_file()

    actors.judge, actors.learner, actors.generators = FakeJudge(), Replacing(), [FakeGenerator("a")]
    assert train.run_training(config_of(tmp_path), resume=True) == 0
    assert actors.learner.batches == []
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["updates"], summary["win_rate"]["n"]) == ("completed", 6, 4)
